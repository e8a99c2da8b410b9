"""Writes requirements.lock: all that the tests and the documentation need, each package with the hash of its file.

    python -m docs.make_lock

The files are those for Python 3.11 on Linux with an x86-64 processor, which has to run this. `pip install
--require-hashes -r requirements.lock` then installs these very files, whoever serves them.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parent.parent
LOCK = PROJECT / "requirements.lock"
REQUIREMENTS = ("requirements-test.txt", "requirements-docs.txt")


def main() -> None:
    """Asks pip what it would install, and writes that down."""
    words = ["--dry-run", "--ignore-installed", "--quiet", "--report=-", *(f"-r{name}" for name in REQUIREMENTS)]
    command = [sys.executable, "-m", "pip", "install", *words]
    report = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True).stdout
    LOCK.write_text(lock(json.loads(report)))


def lock(report: Mapping[str, Any]) -> str:
    """The lines of the lock for an installation report of pip, sorted by name."""
    lines = ["# Made by python -m docs.make_lock for Python 3.11 on Linux, x86-64."]
    for package in sorted(report["install"], key=lambda one: canonicalize_name(one["metadata"]["name"])):
        name, version = canonicalize_name(package["metadata"]["name"]), package["metadata"]["version"]
        lines.append(f"{name}=={version} --hash=sha256:{package['download_info']['archive_info']['hashes']['sha256']}")
    return "".join(f"{line}\n" for line in lines)


def locked() -> dict[str, str]:
    """The versions in the lock by name."""
    words = [line.split()[0] for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    return dict(word.split("==") for word in words)


if __name__ == "__main__":
    main()
