"""The records of a run: metrics.jsonl, a view of it for TensorBoard, and times in timing.jsonl.

metrics.jsonl holds nothing that depends on the speed of the machine, so an interrupted and resumed run leaves the same
bytes as an uninterrupted one. Each of its lines has a digest; see `record_chain`.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from alexnet_jax.errors import UserError, check_keys, reason
from alexnet_jax.run import record_chain
from alexnet_jax.system.files import make_folder, naming, write_text

_METRICS: Mapping[str, type] = {"kind": str, "examples_seen": int}
_TIMING: Mapping[str, type] = {"examples_seen": int}
"""What every record of metrics.jsonl and of timing.jsonl must hold."""


class MetricWriter:
    """Appends records to metrics.jsonl, timing.jsonl and TensorBoard event files in a run folder.

    Attributes:
      digest: of the last record in metrics.jsonl.

    Raises UserError where a file cannot be written.
    """

    def __init__(self, workdir: Path, examples_seen: int):
        """Opens the files at a position of the run; records after it are dropped, for they will be written again."""
        board = make_folder(workdir / "tensorboard")
        self._metrics, kept = _reopen(workdir / "metrics.jsonl", _METRICS, examples_seen)
        self._timing, _ = _reopen(workdir / "timing.jsonl", _TIMING, examples_seen)
        self.digest = record_chain.last_digest(kept)
        self._board = _Board(board, examples_seen + 1)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            with (
                contextlib.closing(self._board),
                naming(self._metrics.name),
                self._metrics,
                naming(self._timing.name),
                self._timing,
            ):
                _check_present(self._metrics)
        except UserError:
            if error is None:  # else this is the error that ended the run, a second time
                raise

    def write(self, kind: str, examples_seen: int, values: Mapping[str, Any]) -> None:
        """Records values that do not depend on the machine, under a kind of record such as "step" or "epoch"."""
        text = json.dumps({"kind": kind, "examples_seen": examples_seen, **values})
        line, self.digest = record_chain.link(text, self.digest)
        _append(self._metrics, line)
        self._board.write(kind, examples_seen, values)

    def write_timing(self, examples_seen: int, values: Mapping[str, float]) -> None:
        """Records times and speeds."""
        _append(self._timing, json.dumps({"examples_seen": examples_seen, **values}))
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
    """The complete records of metrics.jsonl, without their digests. Raises UserError if it is damaged."""
    path = workdir / "metrics.jsonl"
    records = _records(path, _lines(path), _METRICS)
    for record in records:
        record.pop("digest", None)
    return records


def find_fault(workdir: Path, expected: str) -> str:
    """Says in a line which record of metrics.jsonl is not as it was written; "" if all are, see `record_chain`.

    Args:
      workdir: the folder of a run.
      expected: the digest that the newest checkpoint holds of the records before it; "" if it is not known.
    """
    path = workdir / "metrics.jsonl"
    fault = record_chain.find_fault(_lines(path), expected)
    return f"{path}: {fault}" if fault else ""


def read_timing(workdir: Path) -> list[dict[str, Any]]:
    """The complete records of timing.jsonl. Raises UserError if it is damaged."""
    path = workdir / "timing.jsonl"
    return _records(path, _lines(path), _TIMING)


def _records(path: Path, lines: Sequence[str], kinds: Mapping[str, type]) -> list[dict[str, Any]]:
    """The records in the lines of a file, which must hold values of these types."""
    records = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}, is damaged: {reason(error)}") from error
        check_keys(where, records[-1], kinds)
    return records


def _lines(path: Path) -> list[str]:
    """The lines of a file, without a last one that a kill cut short; none if there is no file."""
    try:
        return path.read_text().split("\n")[:-1] if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {reason(error)}") from error


def _append(file: TextIO, line: str) -> None:
    with naming(file.name):
        _check_present(file)
        file.write(line + "\n")
        file.flush()


def _check_present(file: TextIO) -> None:
    """Raises UserError if an open file is no longer what lies under its name: what is written would be lost."""
    path = Path(file.name)
    if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
        raise UserError(f"{path} was removed or replaced while the run was writing to it: the run ends here")


def _reopen(path: Path, kinds: Mapping[str, type], examples_seen: int) -> tuple[TextIO, list[str]]:
    """Drops records after a position and a line that a kill cut short.

    Returns:
      The file, opened to append to it, and its lines.
    """
    lines = _lines(path)
    records = zip(lines, _records(path, lines, kinds), strict=True)
    kept = [line for line, record in records if record["examples_seen"] <= examples_seen]
    write_text(path, "".join(line + "\n" for line in kept))
    return path.open("a", newline="\n"), kept
