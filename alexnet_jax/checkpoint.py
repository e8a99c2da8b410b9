"""Checkpoints by Orbax: written while training goes on, the latest few and the best, verified by a digest."""

import dataclasses
import functools
import hashlib
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from alexnet_jax.errors import UserError
from alexnet_jax.system import console
from alexnet_jax.system.files import most_unpacked

_ITEM = "run"
_STAGING = "tmp"
"""The folder that a checkpoint is written in; it gets its own name when it is whole."""

_ONE_SAVE = threading.Lock()
"""Orbax numbers saves by a variable of the process (0.12.8): of two at once, one may wait for the other's signals."""

MAX_BLOCKED_SHARE = 0.1
"""Of the time that training may lose to saves that can be left out."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: nested dicts of NumPy arrays, and the plain data that was saved beside them."""

    examples_seen: int
    tree: Any
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, each a folder named by the number of examples seen.

    What is saved is copied first, so training may go on (and donate its buffers) while a thread writes the copy. One is
    written at a time; no other is touched before it is whole.
    """

    def __init__(self, directory: Path, keep: int, on_failure: str = "stop"):
        """With `on_failure` "continue" only the last save must succeed; the failure of another is a warning."""
        self.directory = directory.absolute()
        self._keep, self._on_failure = keep, on_failure
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None
        self._busy_until = 0.0
        self._copy: Any = None
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in [*self.directory.glob(f"*{_STAGING}*"), *self.directory.glob("*.new")]:  # of a run that was killed
            shutil.rmtree(path)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except UserError as failure:
            if error is None:
                raise
            console.warn(str(failure))  # beside the error that ended the run
        finally:
            self._thread.shutdown()

    def is_busy(self) -> bool:
        """True while a save now would have to wait, or would cost training more than MAX_BLOCKED_SHARE of its time."""
        return (self._pending is not None and not self._pending.done()) or time.monotonic() < self._busy_until

    def save(self, examples_seen: int, tree: Any, metadata: dict[str, Any], best: int | None) -> None:
        """Starts saving a tree of arrays and JSON data; waits for the save before it.

        Args:
          examples_seen: the checkpoint's name; one of the same name is replaced.
          tree: nested dicts of arrays on the host or on devices.
          metadata: plain data that JSON can hold.
          best: the checkpoint to keep whatever its age.

        Raises:
          UserError: the save before it failed, and that is to stop the run.
        """
        began = time.monotonic()
        self._settle(self._on_failure)
        self._pending = self._thread.submit(self._write, examples_seen, self._copied(tree), metadata, best)
        now = time.monotonic()
        self._busy_until = now + (now - began) * (1 / MAX_BLOCKED_SHARE - 1)

    def check(self) -> None:
        """Says what went wrong with a save that has ended, by a warning or a UserError. Does not wait."""
        if self._pending is not None and self._pending.done():
            self._settle(self._on_failure)

    def wait(self) -> None:
        """Blocks until everything is on disk. Raises UserError if that failed."""
        self._settle("stop")

    def set_aside_after(self, examples_seen: int) -> None:
        """Moves newer checkpoints, which are damaged or abandoned, to `damaged/` beside the folder."""
        for name in checkpoint_names(self.directory):
            if name > examples_seen:
                target = self.directory.parent / "damaged" / str(name)
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                (self.directory / str(name)).rename(target)

    def _copied(self, tree: Any) -> Any:
        """A copy of arrays on the host, in the memory of the one before: new memory takes up to ten times as long."""
        arrays = jax.tree.map(np.asarray, tree)
        if _layout(arrays) != _layout(self._copy):
            self._copy = jax.tree.map(np.empty_like, arrays)
        jax.tree.map(np.copyto, self._copy, arrays)
        return self._copy

    def _settle(self, on_failure: str) -> None:
        """Waits for the save that is under way and says what went wrong."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except UserError as error:
            if on_failure == "stop":
                raise
            console.warn(f"{error}. Training goes on and the next save is tried")

    def _write(self, examples_seen: int, tree: Any, metadata: dict[str, Any], best: int | None) -> None:
        """Writes a checkpoint whole, then removes those that are no longer to be kept. Raises UserError."""
        staging = self.directory / _STAGING
        staged = staging / str(examples_seen)
        try:
            shutil.rmtree(staging, ignore_errors=True)  # writers of a failed save may have come too late
            staging.mkdir(parents=True)
            # As JSON gives it back.
            described = json.loads(json.dumps({**metadata, "best": self._best_on_disk(examples_seen, best)}))
            with _ONE_SAVE, _orbax() as orbax:
                orbax.save(
                    staged,
                    args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(tree)}),
                    custom_metadata={**described, "digest": digest(tree, described)},
                )
            _read_metadata(staged)
            self._publish(staged)
            self._remove_old(described["best"])
        except Exception as error:  # Orbax passes on whatever its writers raised.
            names = checkpoint_names(self.directory)
            good = f"The last good checkpoint is {self.directory / str(names[-1])}" if names else "There is no other"
            raise UserError(
                f"saving {self.directory / str(examples_seen)} failed ({_reason(error)}); is the disk full? {good}"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # what is left of a failed save fills the disk

    def _best_on_disk(self, examples_seen: int, best: int | None) -> int | None:
        """The best checkpoint, or the best before it if its own save failed."""
        names = checkpoint_names(self.directory)
        if best is None or best in (examples_seen, *names):
            return best
        return _read_metadata(self.directory / str(names[-1])).get("best") if names else None

    def _publish(self, staged: Path) -> None:
        """Gives a whole checkpoint its name."""
        target = self.directory / staged.name
        if target.exists():  # a kill between these leaves one of them, whole: see restore_latest
            staged = staged.rename(target.with_suffix(".new"))
            target.rename(self.directory / _STAGING / "replaced")
        staged.rename(target)

    def _remove_old(self, best: int | None) -> None:
        for name in checkpoint_names(self.directory)[: -self._keep]:
            if name != best:
                # By another name first: a kill must not leave half of it under its own.
                half = (self.directory / str(name)).rename(self.directory / _STAGING / "removed")
                shutil.rmtree(half)


def checkpoint_names(directory: Path) -> list[int]:
    """The checkpoints in a folder, as examples seen, oldest first."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def restore_latest(directory: Path) -> tuple[Restored | None, list[str]]:
    """The newest readable checkpoint, None if there are none yet; and a warning for each damaged one that it skipped.

    Raises UserError if there are checkpoints but none can be read.
    """
    for path in directory.glob("*.new"):  # whole; the one that it was to replace is gone
        if not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
    warnings: list[str] = []
    for name in reversed(checkpoint_names(directory)):
        try:
            return restore(directory, name), warnings
        except UserError as error:
            warnings.append(str(error))
    if warnings:
        raise UserError(f"{'; '.join(warnings)}. No other is left: begin anew with another --workdir")
    return None, []


def restore(directory: Path, examples_seen: int) -> Restored:
    """The named checkpoint. Raises UserError if it cannot be read or its content is not what was saved."""
    path = directory.absolute() / str(examples_seen)
    try:
        with _orbax() as orbax:
            found = orbax.metadata(path)
            metadata = _described(found)
            _check_size(path, found.item_metadata[_ITEM].tree)
            tree = orbax.restore(path, args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeRestore()}))[_ITEM]
        if digest(tree, metadata) != metadata["digest"]:
            raise ValueError("its content does not match its digest")
    except Exception as error:  # Orbax raises anything from KeyError to its own errors on damaged files.
        raise UserError(f"checkpoint {path} is damaged: {_reason(error)}") from error
    return Restored(examples_seen, tree, metadata)


def _check_size(path: Path, shapes: Any) -> None:
    """Raises ValueError if arrays of these shapes would take far more memory than their files, not compressed."""
    needed = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in jax.tree.leaves(shapes))
    present = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if needed > most_unpacked(present):
        raise ValueError(f"its arrays would take {needed:,} bytes, its files have {present:,}")


def _orbax() -> ocp.Checkpointer:
    """Orbax for this process alone: in a distributed run it would wait for the others. Process 0 alone writes arrays.

    The newer interface (orbax.checkpoint.v1) waits for the others in any case (0.12.8). Arrays are not compressed,
    which would take most of the time and save a twelfth of the space.
    """
    _silence_late_writers()
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
    )
    arrays = ocp.PyTreeCheckpointHandler(use_zarr3=True, use_compression=False, multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone), **{_ITEM: arrays}
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _read_metadata(path: Path) -> dict[str, Any]:
    """The plain data saved beside a checkpoint. Raises ValueError or an error of Orbax if they are damaged."""
    with _orbax() as orbax:
        return _described(orbax.metadata(path))


def _described(found: Any) -> dict[str, Any]:
    """The plain data among what Orbax knows of a checkpoint. Raises ValueError if they are not ours."""
    metadata = found.custom_metadata
    if not isinstance(metadata, dict) or "digest" not in metadata:
        raise ValueError("its metadata are missing")
    return metadata


def _reason(error: Exception) -> str:
    """What went wrong, in a line; TensorStore says it after a list of paths."""
    line = (str(error.__cause__ or error) or repr(error)).splitlines()[0]
    return line if len(line) <= 200 else line.rpartition('": ')[2][-200:]


@functools.cache
def _silence_late_writers() -> None:
    """Keeps TensorStore from printing a traceback for each array it is still busy with when Orbax has given up."""
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others


def _layout(tree: Any) -> Any:
    """Names, types and shapes of arrays."""
    return jax.tree.map(lambda array: (array.dtype, array.shape), tree)


def digest(tree: Any, metadata: Mapping[str, Any]) -> str:
    """SHA-256 over every array with its name, type and shape, and over the data beside them but the digest itself."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        whole.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        whole.update(array.data)
    described = {name: value for name, value in metadata.items() if name != "digest"}
    whole.update(json.dumps(described, sort_keys=True).encode())
    return whole.hexdigest()
