"""Lists the known vulnerabilities of the packages in requirements.lock, from a file, without network.

    curl -O https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip
    python -m docs.check_vulnerabilities all.zip

The file is what OSV (osv.dev) exports of an ecosystem: a zip archive of a JSON file for each vulnerability. Exit code 1
if there is one.
"""

import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from docs.make_lock import locked


def main(path: Path) -> None:
    """Prints a line for each vulnerability. Exit code 1 if there are any, 2 if the file is no export of OSV."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")]
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        print(f"error: {path} is no export of OSV: {error}", file=sys.stderr)
        sys.exit(2)
    packages = locked()
    found = sorted(line for entry in entries for line in concerned(entry, packages))
    print("\n".join(found) or f"none of {len(entries):,} vulnerabilities concerns one of {len(packages)} packages")
    sys.exit(bool(found))


def concerned(entry: Mapping[str, Any], packages: Mapping[str, str]) -> Iterator[str]:
    """A line for each package, given with its version, that a vulnerability in OSV's form concerns."""
    for affected in () if "withdrawn" in entry else entry.get("affected", ()):
        package = affected.get("package", {})
        name = canonicalize_name(package.get("name", ""))
        if package.get("ecosystem") != "PyPI" or name not in packages:
            continue
        version = packages[name]
        ranges = [one["events"] for one in affected.get("ranges", ()) if one.get("type") == "ECOSYSTEM"]
        if version in affected.get("versions", ()) or any(is_within(Version(version), events) for events in ranges):
            yield f"{name} {version}: {entry['id']} {entry.get('summary', '')}".rstrip()


def is_within(version: Version, events: list[dict[str, str]]) -> bool:
    """Whether a version lies in a range of OSV: introduced, and neither fixed nor after the last that is affected."""
    inside = False
    for event in sorted(events, key=lambda event: order(next(iter(event.values())))):
        ((kind, text),) = event.items()
        if kind == "introduced" and version >= order(text):
            inside = True
        elif (kind == "fixed" and version >= order(text)) or (kind == "last_affected" and version > order(text)):
            inside = False
    return inside


def order(text: str) -> Version:
    """A version of OSV for comparison; "0" is before all, and one that is none after all."""
    try:
        return Version("0.dev0" if text == "0" else text)
    except InvalidVersion:
        return Version("9999!0")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
