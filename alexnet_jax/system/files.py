"""Writes files whole or not at all, locks files, and opens zip archives that unpack to a bounded size."""

import contextlib
import csv
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from alexnet_jax.errors import UserError, disk_hint, reason

_FORMULA = re.compile(r"[=@\t\r\n]|[+-](?![\d.]+$)")
"""How text begins that a spreadsheet runs, or may: negative numbers are none."""

_MARKUP = re.compile(rb"\s*<(!doctype|html|head|\?xml|svg)", re.IGNORECASE)


def expand_home(path: Path | str) -> str:
    """A path with ~ expanded; "" stays as it is, and so does a ~ that is no user's home."""
    return os.path.expanduser(path)  # noqa: PTH111, Path.expanduser makes "." of "" and raises for the latter


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all. Raises UserError if it cannot."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def local_path(path: str | Path) -> Path:
    """The path of a file or folder. Raises UserError for a URL, such as gs://bucket/run, of another machine's."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise UserError(f"{path} is not on this machine: runs and files are kept in local folders, also mounted ones")
    return Path(path)


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file, a dict or a list. Raises UserError if it cannot be read or is something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} is damaged: it holds a {type(content).__name__}, not a {kind.__name__}")
    return content


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; makes its folder. Raises UserError if it cannot."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file of `csv_line`s whole or not at all; makes its folder. Raises UserError if it cannot."""
    write_text(path, "".join(f"{csv_line(row)}\n" for row in rows))


def csv_line(row: Sequence[Any]) -> str:
    """A row as a line of CSV, without its end; text that a spreadsheet would run as a formula follows an apostrophe."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(map(inert, row))  # so that both are quoted within cells
    return text.getvalue().removesuffix("\r\n")


def inert(cell: Any) -> Any:
    """A cell of a table, after an apostrophe if it is text that a spreadsheet would run as a formula."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def make_folder(path: Path) -> Path:
    """Makes a folder of ours unless it exists, and returns it.

    Raises UserError if it cannot be made, or is a symbolic link: in a folder from elsewhere it may lead anywhere.
    """
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link, which is not followed: remove it, or put a folder there")
    with naming(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; makes its folder. Raises UserError if it cannot.

    A symbolic link of that name is replaced, not followed.
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


def flush(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk, where they survive a power failure."""
    is_folder = path.is_dir()
    if is_folder and sys.platform == "win32":  # which opens no folders
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def acquire_lock(path: Path, timeout: float = -1.0) -> contextlib.ExitStack | None:
    """Locks a file against other processes of this machine until the result is closed or this process ends.

    Waits for `timeout` seconds, for ever if it is negative; returns None if another process holds the lock for that
    long. Raises UserError if the file cannot be made, or is a symbolic link.
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
    """Turns an OSError inside the context into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{disk_hint(error)}") from error


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive of weights, which hardly compress.

    Raises ValueError if its members would unpack to more than `most_unpacked` bytes or two of them have one name, and
    errors of zipfile if it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > most_unpacked(path.stat().st_size):
            raise ValueError(f"its members would unpack to {unpacked:,} bytes")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two of its members have one name")
        yield archive


def other_content(start: bytes) -> str:
    """What a failed download left in place of an image or of weights, by its first bytes; "" if it seems none."""
    if _MARKUP.match(start):
        return "HTML or XML, perhaps an error page in place of the download"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS to the file; fetch it by: git lfs pull"
    return ""


def most_unpacked(packed: int) -> int:
    """Bytes of memory that weights may take whose files have `packed` bytes: 20 times as many, and at least 64 MiB."""
    return max(20 * packed, 2**26)
