"""Checkpoints by Orbax: asynchronous, the latest few and the best, verified by a digest, never silently lost."""

import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from alexnet_jax.errors import UserError

_ITEM = "run"


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: nested dicts of NumPy arrays, and the plain data that was saved beside them."""

    examples_seen: int
    tree: Any
    metadata: dict[str, Any]


@dataclasses.dataclass
class _LatestAndBest:
    """Orbax preservation policy: the latest `keep` checkpoints and the one marked best.

    Orbax's own BestN reads a metrics file whose damage makes the whole folder unreadable.
    """

    keep: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        latest = {info.step for info in list(checkpoints)[-self.keep :]}
        return [info.step in latest or info.step == self.best for info in checkpoints]


class Checkpoints:
    """The checkpoints of one run, each a folder named by the number of examples seen.

    What is saved is copied first, so training may go on (and donate its buffers) while the copy is written.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory = directory.absolute()
        self._policy = _LatestAndBest(keep)
        self._orbax = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._orbax.close()

    def save(self, examples_seen: int, tree: Any, metadata: dict[str, Any], best: int | None) -> None:
        """Starts saving a tree of arrays and JSON data; waits for the save before it, and raises what went wrong there.

        Args:
          examples_seen: the checkpoint's name; one of the same name is replaced.
          tree: nested dicts of arrays on the host or on devices.
          metadata: plain data that JSON can hold.
          best: the checkpoint to keep whatever its age.
        """
        copy = jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)
        self.wait()  # Orbax garbles a save that replaces one still under way.
        self._policy.best = best
        self._orbax.save_checkpointables_async(
            examples_seen,
            {_ITEM: copy},
            overwrite=True,
            custom_metadata={**metadata, "digest": _digest(copy)},
        )

    def wait(self) -> None:
        """Blocks until everything is on disk. Raises UserError if that failed."""
        try:
            self._orbax.wait()
        except Exception as error:  # Orbax passes on whatever its writers raised.
            reason = str(error).splitlines()[0][:100]
            raise UserError(
                f"saving to {self.directory} failed ({reason}); is the disk full? The checkpoints before it are intact"
            ) from error

    def set_aside_after(self, examples_seen: int) -> None:
        """Moves newer checkpoints, which are damaged or abandoned, to `damaged/` beside the folder."""
        newer = [name for name in checkpoint_names(self.directory) if name > examples_seen]
        for name in newer:
            target = self.directory.parent / "damaged" / str(name)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (self.directory / str(name)).rename(target)
        if newer:
            self._orbax.reload()


def checkpoint_names(directory: Path) -> list[int]:
    """The checkpoints in a folder, as examples seen, oldest first."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def restore_latest(directory: Path) -> tuple[Restored | None, list[str]]:
    """The newest readable checkpoint, None if there are none yet; and a warning for each damaged one that it skipped.

    Raises UserError if there are checkpoints but none can be read.
    """
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
        metadata = _read_metadata(directory, examples_seen)
        tree = ocp.load_checkpointables(path)[_ITEM]
        if _digest(tree) != metadata["digest"]:
            raise ValueError("its content does not match its digest")
    except Exception as error:  # Orbax raises anything from KeyError to its own errors on damaged files.
        raise UserError(
            f"checkpoint {path} is damaged: {str(error.__cause__ or error).splitlines()[0][:200]}"
        ) from error
    return Restored(examples_seen, tree, metadata)


def _read_metadata(directory: Path, examples_seen: int) -> dict[str, Any]:
    """The plain data saved beside a checkpoint. Raises ValueError or an error of Orbax if they are damaged."""
    metadata = ocp.checkpointables_metadata(directory.absolute() / str(examples_seen)).custom_metadata
    if not isinstance(metadata, dict) or "digest" not in metadata:
        raise ValueError("its metadata are missing")
    return metadata


def _digest(tree: Any) -> str:
    """SHA-256 over every array with its name, type and shape."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
