"""The run's record: metrics.jsonl is the truth, TensorBoard a view of it, timing.jsonl what the clock said.

metrics.jsonl holds nothing that depends on the machine's speed, so an interrupted and resumed run leaves the same bytes
as an uninterrupted one.
"""

import contextlib
import errno
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from alexnet_jax.errors import UserError, reason

_FLUSH_SECONDS = 120.0
"""The longest time that TensorBoard's numbers wait for the next one before they can be seen."""


class MetricWriter:
    """Appends records to metrics.jsonl, timing.jsonl and TensorBoard event files in a run folder.

    Raises UserError where a file cannot be written.
    """

    def __init__(self, workdir: Path, examples_seen: int):
        """Opens the record at a position of the run; what was written after it is dropped and will be written again."""
        with _naming(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "timing.jsonl"):
            _truncate(workdir / name, examples_seen)
        self._metrics = (workdir / "metrics.jsonl").open("a")
        self._timing = (workdir / "timing.jsonl").open("a")
        self._board = _Board(workdir / "tensorboard", examples_seen + 1)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for file in (self._metrics, self._timing):
                with _naming(file.name):
                    file.close()
            self._board.close()
        except UserError:
            if error is None:  # else it is the error that ended the run, once more
                raise

    def write(self, kind: str, examples_seen: int, values: Mapping[str, Any]) -> None:
        """Records values that the experiment alone determines."""
        _append(self._metrics, {"kind": kind, "examples_seen": examples_seen, **values})
        self._board.write(kind, examples_seen, values)

    def write_timing(self, examples_seen: int, values: Mapping[str, float]) -> None:
        """Records what depends on the machine."""
        _append(self._timing, {"examples_seen": examples_seen, **values})
        self._board.write("timing", examples_seen, values)

    def sync(self) -> None:
        """Puts the records on disk: called before a checkpoint, which must not be ahead of them."""
        for file in (self._metrics, self._timing):
            with _naming(file.name):
                file.flush()
                os.fsync(file.fileno())


class _Board:
    """TensorBoard's event files. Not by SummaryWriter: an error of its thread is shown and then blocks the program."""

    def __init__(self, folder: Path, purge_step: int):
        """Events from `purge_step` on, in older files, are to be forgotten."""
        import tensorboardX  # takes seconds where torch is installed, which it then imports
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._folder, self._scalar, self._event = folder, tensorboardX.summary.scalar, event_pb2.Event
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        with _naming(folder):
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
            self._events.write_event(self._event(wall_time=time.time(), step=purge_step, session_log=start))
            self._flush()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Records the numbers among the values."""
        with _naming(self._folder):
            for name, value in values.items():
                if isinstance(value, int | float):
                    summary = self._scalar(f"{kind}/{name}", value)
                    self._events.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._flush()

    def close(self) -> None:
        with _naming(self._folder):
            self._events.close()

    def _flush(self) -> None:
        self._events.flush()
        self._flushed = time.monotonic()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The complete records of metrics.jsonl. Raises UserError if it is damaged."""
    return _read(workdir / "metrics.jsonl")


def read_timing(workdir: Path) -> list[dict[str, Any]]:
    """The complete records of timing.jsonl. Raises UserError if it is damaged."""
    return _read(workdir / "timing.jsonl")


def _read(path: Path) -> list[dict[str, Any]]:
    """Its records; not a last line that a kill cut short."""
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {reason(error)}") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all. Raises UserError if it cannot."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, and its folder. Raises UserError if it cannot."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and its folder. Raises UserError if it cannot.

    A symbolic link in its place is replaced, not followed.
    """
    temporary = path.parent / f"{path.name}.tmp"
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def open_lock(path: Path) -> TextIO:
    """A file to be locked, made if need be and left as it is. Raises UserError if it cannot be, or is a link."""
    with _naming(path):
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")


def describe_environment(command: list[str]) -> dict[str, Any]:
    """The command, the versions of Python and of the packages that decide results, and the code's git revision."""
    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "tensorflow-datasets",
        "numpy",
        "pillow",
        "simplejpeg",
    )
    return {
        "command": command,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "git": _git_revision(Path(__file__).parent),
    }


def _git_revision(folder: Path) -> str | None:
    """Commit of the checkout, with "-dirty" if it has changes; None outside a checkout or without git."""
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _append(file: TextIO, record: Mapping[str, Any]) -> None:
    with _naming(file.name):
        file.write(json.dumps(record) + "\n")
        file.flush()


def _truncate(path: Path, examples_seen: int) -> None:
    """Drops records after a position, and a line that a kill cut short."""
    if path.exists():
        records = [record for record in _read(path) if record["examples_seen"] <= examples_seen]
        write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    else:
        path.unlink(missing_ok=True)  # a link to nothing


@contextlib.contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """Makes an error of the file system one that names the file."""
    try:
        yield
    except OSError as error:
        hint = "; is the disk full?" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise UserError(f"cannot write {path}: {error.strerror or error}{hint}") from error
