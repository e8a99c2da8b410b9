"""Files that are written whole or not at all, and archives that do not unpack to more than they should."""

import contextlib
import csv
import errno
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from alexnet_jax.errors import UserError


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all. Raises UserError if it cannot."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, and its folder. Raises UserError if it cannot."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a file of comma-separated values whole or not at all, and its folder. Raises UserError if it cannot."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and its folder. Raises UserError if it cannot.

    A symbolic link in its place is replaced, not followed.
    """
    temporary = path.parent / f"{path.name}.tmp"
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def acquire_lock(path: Path, timeout: float = -1.0) -> contextlib.ExitStack | None:
    """Keeps other processes of this machine from a lock file until the result is closed, or this process dies.

    Waits for `timeout` seconds, for ever if it is negative; returns None if another has the lock for that long. Raises
    UserError if the file cannot be made, or is a symbolic link.
    """
    held = contextlib.ExitStack()
    with naming(path):
        try:
            held.enter_context(filelock.FileLock(path).acquire(timeout=timeout))
        except filelock.Timeout:
            return None
    return held


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Makes an error of the file system one that names the file."""
    try:
        yield
    except OSError as error:
        hint = "; is the disk full?" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise UserError(f"cannot write {path}: {error.strerror or error}{hint}") from error


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive whose members, unpacked, are not much more than the file: weights hardly shrink.

    Raises ValueError for another, or if two members have one name; errors of zipfile for a damaged one.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > most_unpacked(path.stat().st_size):
            raise ValueError(f"its members would unpack to {unpacked:,} bytes")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two of its members have one name")
        yield archive


def most_unpacked(packed: int) -> int:
    """Bytes that weights of so many bytes in files may take in memory: 20 times as many, 64 MiB in any case."""
    return max(20 * packed, 2**26)
