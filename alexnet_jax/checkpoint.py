"""Checkpoints with Orbax: saved in the background, verified by a digest; the newest few and the best are kept."""

import dataclasses
import functools
import hashlib
import json
import math
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from alexnet_jax.errors import UserError, disk_hint, failure_of_the_machine
from alexnet_jax.system import console
from alexnet_jax.system.files import make_folder, most_unpacked, naming

_ITEM = "run"
_STAGING = "tmp"
"""The folder in which a checkpoint is written; it is moved out once it is complete."""

_ONE_SAVE = threading.Lock()
"""Held while Orbax saves: it numbers saves by a global variable (0.12.8), so two at once may wait for each other."""

MAX_BLOCKED_FRACTION = 0.1
"""The fraction of training time that saves which can be skipped may block."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """The content of a checkpoint: nested dicts of NumPy arrays, and JSON data saved with them."""

    examples_seen: int
    tree: Any
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, each a folder named by the number of examples seen.

    A save first copies the arrays, so that training can continue (and donate its buffers) while a thread writes the
    copy. One checkpoint is written at a time, and no older one is removed before it is complete.
    """

    def __init__(self, directory: Path, keep: int, on_failure: str = "stop"):
        """Opens or makes the folder and removes unfinished saves.

        Args:
          directory: folder of the checkpoints.
          keep: number of newest checkpoints that are kept.
          on_failure: "stop", a failed save raises UserError; "continue", it is a warning unless it is the last.
        """
        self.directory = directory.absolute()
        self._keep, self._on_failure = keep, on_failure
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None
        self._busy_until = 0.0
        self._copy: Any = None
        make_folder(self.directory)
        for path in [*self.directory.glob(f"*{_STAGING}*"), *self.directory.glob("*.new")]:  # left by a killed run
            _remove(path)

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
            console.warn(str(failure))  # in addition to the error that ended the run
        finally:
            self._thread.shutdown()

    def is_busy(self) -> bool:
        """Whether a save now would have to wait, or block training for more than MAX_BLOCKED_FRACTION of its time."""
        return (self._pending is not None and not self._pending.done()) or time.monotonic() < self._busy_until

    def save(self, examples_seen: int, tree: Any, metadata: dict[str, Any], best: int | None) -> None:
        """Starts saving a tree of arrays and JSON data, once the previous save has ended.

        Args:
          examples_seen: the checkpoint's name; one of the same name is replaced.
          tree: nested dicts of arrays on the host or on devices.
          metadata: JSON data.
          best: examples seen at the best checkpoint, which is kept whatever its age.

        Raises:
          UserError: the previous save failed, and `on_failure` is "stop".
        """
        began = time.monotonic()
        self._settle(self._on_failure)
        self._pending = self._thread.submit(self._write, examples_seen, self._copied(tree), metadata, best)
        now = time.monotonic()
        self._busy_until = now + (now - began) * (1 / MAX_BLOCKED_FRACTION - 1)

    def check(self) -> None:
        """Reports a save that has failed, by a warning or a UserError. Does not wait."""
        if self._pending is not None and self._pending.done():
            self._settle(self._on_failure)

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises UserError if it failed."""
        self._settle("stop")

    def set_aside_after(self, examples_seen: int) -> None:
        """Moves checkpoints later than this, damaged or abandoned ones, to `damaged/` next to the folder."""
        for name in checkpoint_names(self.directory):
            if name > examples_seen:
                target = self.directory.parent / "damaged" / str(name)
                shutil.rmtree(target, ignore_errors=True)
                make_folder(target.parent)
                (self.directory / str(name)).rename(target)

    def _copied(self, tree: Any) -> Any:
        """Copies the arrays to the host, into the memory of the previous copy: new memory is up to ten times slower."""
        arrays = jax.tree.map(np.asarray, tree)
        if _layout(arrays) != _layout(self._copy):
            self._copy = jax.tree.map(np.empty_like, arrays)
        jax.tree.map(np.copyto, self._copy, arrays)
        return self._copy

    def _settle(self, on_failure: str) -> None:
        """Waits for the save in progress and reports its failure, by a warning or a UserError."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except UserError as error:
            if on_failure == "stop":
                raise
            console.warn(f"{error}. Training goes on and the next save is tried")

    def _write(self, examples_seen: int, tree: Any, metadata: dict[str, Any], best: int | None) -> None:
        """Writes a checkpoint and publishes it, then removes old ones. Raises UserError if that fails."""
        staging = self.directory / _STAGING
        staged = staging / str(examples_seen)
        try:
            shutil.rmtree(staging, ignore_errors=True)  # late writers of a failed save may have left files
            staging.mkdir()  # a folder of the run that has vanished is not made anew
            # The digest is of the data as JSON returns them.
            described = json.loads(json.dumps({**metadata, "best": self._best_on_disk(examples_seen, best)}))
            with _ONE_SAVE, _orbax() as orbax:
                save = functools.partial(
                    orbax.save,
                    staged,
                    args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(tree)}),
                    custom_metadata={**described, "digest": digest(tree, described)},
                )
                _in_daemon(save)
            _read_metadata(staged)
            self._publish(staged)
            self._remove_old(described["best"])
        except Exception as error:  # Orbax raises whatever its writers raise
            names = checkpoint_names(self.directory)
            good = f"The last good checkpoint is {self.directory / str(names[-1])}" if names else "There is no other"
            why = f"({_reason(error)}){disk_hint(error) or '.'}"
            raise UserError(f"saving {self.directory / str(examples_seen)} failed {why} {good}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # the rest of a failed save would fill the disk

    def _best_on_disk(self, examples_seen: int, best: int | None) -> int | None:
        """The best checkpoint; if its save failed, the best one of those on disk, as they record it."""
        names = checkpoint_names(self.directory)
        if best is None or best in (examples_seen, *names):
            return best
        return _read_metadata(self.directory / str(names[-1])).get("best") if names else None

    def _publish(self, staged: Path) -> None:
        """Moves a complete checkpoint to its final name."""
        target = self.directory / staged.name
        if target.exists():  # a kill between the moves leaves a whole one: see restore_latest
            staged = staged.rename(target.with_suffix(".new"))
            target.rename(self.directory / _STAGING / "replaced")
        staged.rename(target)

    def _remove_old(self, best: int | None) -> None:
        """Removes all but the newest checkpoints and the best one."""
        for name in checkpoint_names(self.directory)[: -self._keep]:
            if name != best:
                # Moved away first, so that a kill leaves no incomplete checkpoint under its name.
                half = (self.directory / str(name)).rename(self.directory / _STAGING / "removed")
                shutil.rmtree(half)


def checkpoint_names(directory: Path) -> list[int]:
    """The numbers of examples seen at the checkpoints in a folder, in ascending order."""
    return sorted(int(path.name) for path in directory.glob("*") if re.fullmatch("0|[1-9][0-9]*", path.name))


def _remove(path: Path) -> None:
    """Removes a folder with its content, or a file or link that lies in its place. Raises UserError if it cannot."""
    with naming(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def restore_latest(directory: Path) -> tuple[Restored | None, list[str]]:
    """Returns the newest readable checkpoint, or None if there is none, and a warning for each newer, damaged one.

    Raises UserError if there are checkpoints but all are damaged.
    """
    for path in directory.glob("*.new"):  # complete; the one that it replaces may be gone
        if not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
    warnings: list[str] = []
    for name in reversed(checkpoint_names(directory)):
        try:
            return restore(directory, name), warnings
        except UserError as error:
            warnings.append(str(error))
    if warnings:
        raise UserError(f"{'; '.join(warnings)}. No checkpoint is readable: start again in another --workdir")
    return None, []


def newest_metadata(directory: Path) -> dict[str, Any]:
    """The JSON data of the newest checkpoint, not compared with its digest; {} if there is none or it is damaged."""
    names = checkpoint_names(directory)
    try:
        return _read_metadata(directory.absolute() / str(names[-1])) if names else {}
    except Exception:  # as in `restore`
        return {}


def restore(directory: Path, examples_seen: int) -> Restored:
    """Reads one checkpoint. Raises UserError if it cannot be read or does not match its digest."""
    path = directory.absolute() / str(examples_seen)
    try:
        with _orbax() as orbax:
            metadata = _read_metadata(path)
            _check_size(path, orbax.metadata(path).item_metadata[_ITEM].tree)
            tree = orbax.restore(path, args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeRestore()}))[_ITEM]
        if digest(tree, metadata) != metadata["digest"]:
            raise ValueError("its content does not match its digest")
    except Exception as error:  # on damaged files Orbax raises KeyError, its own errors and more
        raise UserError(f"checkpoint {path} is damaged: {_reason(error)}") from error
    return Restored(examples_seen, tree, metadata)


def _check_size(path: Path, shapes: Any) -> None:
    """Raises ValueError if arrays of these shapes would need far more memory than their uncompressed files."""
    needed = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in jax.tree.leaves(shapes))
    present = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if needed > most_unpacked(present):
        raise ValueError(f"its arrays would take {needed:,} bytes, its files have {present:,}")


def _orbax() -> ocp.Checkpointer:
    """An Orbax checkpointer for this process alone; by default it would wait for the other processes of a run.

    The newer interface (orbax.checkpoint.v1) always waits for them (0.12.8). Arrays are not compressed: that would take
    most of the time and save a twelfth of the space.
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


def _in_daemon(action: Callable[[], None]) -> None:
    """Runs a function in a daemon thread, so that its threads are daemons, too, and waits for it.

    After a failed save, threads of Orbax (0.12.8) wait five minutes for its other parts, and so would the program.
    """
    done = Future[None]()

    def run() -> None:
        try:
            action()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    done.result()


def _read_metadata(path: Path) -> dict[str, Any]:
    """The JSON data saved with a checkpoint. Raises OSError or ValueError if they are missing or damaged.

    Read from Orbax's file: `Checkpointer.metadata` also asks TensorStore for the JSON of each array's spec, and each
    time that leaks some memory (tensorstore 0.1.86), 0.2 MB for the smallest network.
    """
    described = json.loads((path / "_CHECKPOINT_METADATA").read_text())
    metadata = described.get("custom_metadata") if isinstance(described, dict) else None
    if not isinstance(metadata, dict) or "digest" not in metadata:
        raise ValueError("its metadata are missing")
    return metadata


def _reason(error: Exception) -> str:
    """The message of an error, in one line; TensorStore puts it after a list of paths."""
    line = (str(error.__cause__ or error) or repr(error)).splitlines()[0]
    return line if len(line) <= 200 else failure_of_the_machine(error) or line.rpartition('": ')[2][-200:]


@functools.cache
def _silence_late_writers() -> None:
    """Silences the tracebacks of arrays that TensorStore is still writing when a save has failed."""
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others


def _layout(tree: Any) -> Any:
    """The names, types and shapes of a tree of arrays, for comparison."""
    return jax.tree.map(lambda array: (array.dtype, array.shape), tree)


def digest(tree: Any, metadata: Mapping[str, Any]) -> str:
    """SHA-256 of all arrays with their names, types and shapes, and of the metadata without its "digest"."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        whole.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        whole.update(array.data)
    described = {name: value for name, value in metadata.items() if name != "digest"}
    whole.update(json.dumps(described, sort_keys=True).encode())
    return whole.hexdigest()
