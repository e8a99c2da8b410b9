"""Digests of the files of a prepared folder: written when it is prepared, compared later.

Those of all files but the images are compared when the folder is opened, those of all files by `verify`.
manifest.json names every other file of the folder with its SHA-256, and holds a digest of these names and digests.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alexnet_jax.errors import UserError, reason
from alexnet_jax.system.machine import available_cores

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The manifest of a prepared folder.

    Attributes:
      directory: the folder.
      files: SHA-256 of each file by its name.
      digest: SHA-256 of `files`.
    """

    directory: Path
    files: Mapping[str, str]
    digest: str

    def check(self, names: Iterable[str]) -> None:
        """Raises UserError that names the first of these files which is not as it was prepared."""
        for name in names:
            if fault := self.fault(name):
                raise damaged_error(self.directory, f"{name} ({fault})")

    def fault(self, name: str) -> str:
        """What is wrong with a file; "" if it is as it was prepared."""
        try:
            return "" if _file_digest(self.directory / name) == self.files.get(name) else "its SHA-256 is another"
        except OSError as error:
            return reason(error)

    def faults(self, progress: Callable[[int], None]) -> dict[str, str]:
        """What is wrong with each file that is not as it was prepared; reads all files, in threads.

        Args:
          progress: called with the size of each file that was read, in bytes.
        """

        def check(name: str) -> str:
            fault = self.fault(name)
            progress(self.size(name))
            return fault

        with ThreadPoolExecutor(available_cores()) as pool:
            faults = pool.map(check, self.files)
            return {name: fault for name, fault in zip(self.files, faults, strict=True) if fault}

    def size(self, name: str) -> int:
        """Bytes of a file; 0 if it is missing."""
        path = self.directory / name
        return path.stat().st_size if path.is_file() else 0


def damaged_error(directory: Path, what: str) -> UserError:
    """Returns the error to raise where a prepared folder cannot be used: it names what is damaged, and the remedy."""
    removal, command = f"rm -r {shlex.quote(str(directory))}", "python -m alexnet_jax prepare"
    anew = f"`{removal}` removes it, and training or `{command}` makes it anew from the original images"
    return UserError(f"{directory} is damaged: {what}; {anew}")


def write_manifest(directory: Path, names: Iterable[str]) -> None:
    """Writes manifest.json for these files of a folder, itself excepted."""
    names = sorted(set(names) - {MANIFEST})
    with ThreadPoolExecutor(available_cores()) as pool:
        files = dict(zip(names, pool.map(lambda name: _file_digest(directory / name), names), strict=True))
    content = {"digest": _digest_of(files), "files": files}
    (directory / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def read_manifest(directory: Path) -> Manifest | None:
    """Returns the manifest of a folder; None if it was prepared without one. Raises UserError if it is damaged."""
    try:
        content = json.loads((directory / MANIFEST).read_text())
        files = dict(content["files"])
        if content["digest"] != _digest_of(files) or any(Path(name).name != name for name in files):
            raise ValueError("its content does not match its digest")
        return Manifest(directory, files, content["digest"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise damaged_error(directory, f"{MANIFEST} ({error})") from error


def _digest_of(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
