"""The records of a run: metrics.jsonl, a view of it for TensorBoard, and times in timing.jsonl.

metrics.jsonl holds nothing that depends on the speed of the machine, so an interrupted and resumed run leaves the same
bytes as an uninterrupted one.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from alexnet_jax.errors import UserError, reason
from alexnet_jax.system.files import naming, write_text


class MetricWriter:
    """Appends records to metrics.jsonl, timing.jsonl and TensorBoard event files in a run folder.

    Raises UserError where a file cannot be written.
    """

    def __init__(self, workdir: Path, examples_seen: int):
        """Opens the files at a position of the run; records after it are dropped, for they will be written again."""
        self._metrics = _reopen(workdir / "metrics.jsonl", examples_seen)
        self._timing = _reopen(workdir / "timing.jsonl", examples_seen)
        self._board = _Board(workdir / "tensorboard", examples_seen + 1)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            for file in (self._metrics, self._timing):
                with naming(file.name):
                    file.close()
            self._board.close()
        except UserError:
            if error is None:  # else this is the error that ended the run, a second time
                raise

    def write(self, kind: str, examples_seen: int, values: Mapping[str, Any]) -> None:
        """Records values that do not depend on the machine, under a kind of record such as "step" or "epoch"."""
        _append(self._metrics, {"kind": kind, "examples_seen": examples_seen, **values})
        self._board.write(kind, examples_seen, values)

    def write_timing(self, examples_seen: int, values: Mapping[str, float]) -> None:
        """Records times and speeds."""
        _append(self._timing, {"examples_seen": examples_seen, **values})
        self._board.write("timing", examples_seen, values)

    def write_picture(self, name: str, examples_seen: int, png: bytes) -> None:
        """Shows a picture in TensorBoard, from the content of a PNG file."""
        self._board.write_picture(name, examples_seen, png)

    def sync(self) -> None:
        """Flushes the records to the disk; called before a checkpoint is saved, which must not be ahead of them."""
        for file in (self._metrics, self._timing):
            with naming(file.name):
                file.flush()
                os.fsync(file.fileno())


class _Board:
    """Writes TensorBoard event files; not by SummaryWriter, of which an error in its thread blocks the program."""

    def __init__(self, folder: Path, purge_step: int):
        """Tells TensorBoard to forget events of older files from `purge_step` on."""
        import tensorboardX  # takes seconds where torch is installed, which it then imports
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._folder, self._scalar, self._event = folder, tensorboardX.summary.scalar, event_pb2.Event
        self._summary = summary_pb2.Summary
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        with naming(folder):
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))
            self._write(purge_step, session_log=start)
            self._events.flush()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Records the numbers among the values."""
        with naming(self._folder):
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._write(step, summary=self._scalar(f"{kind}/{name}", value))
            self._events.flush()

    def write_picture(self, name: str, step: int, png: bytes) -> None:
        """Records a picture."""
        picture = self._summary.Value(tag=name, image=self._summary.Image(encoded_image_string=png))
        with naming(self._folder):
            self._write(step, summary=self._summary(value=[picture]))
            self._events.flush()

    def close(self) -> None:
        with naming(self._folder):
            self._events.close()

    def _write(self, step: int, **content: Any) -> None:
        self._events.write_event(self._event(wall_time=time.time(), step=step, **content))


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The complete records of metrics.jsonl. Raises UserError if it is damaged."""
    return _read(workdir / "metrics.jsonl")


def read_timing(workdir: Path) -> list[dict[str, Any]]:
    """The complete records of timing.jsonl. Raises UserError if it is damaged."""
    return _read(workdir / "timing.jsonl")


def _read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, without a last line that a kill cut short."""
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {reason(error)}") from error


def _append(file: TextIO, record: Mapping[str, Any]) -> None:
    with naming(file.name):
        file.write(json.dumps(record) + "\n")
        file.flush()


def _reopen(path: Path, examples_seen: int) -> TextIO:
    """Drops records after a position and a line that a kill cut short, then opens the file to append to it."""
    records = [record for record in _read(path) if record["examples_seen"] <= examples_seen]
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    return path.open("a")
