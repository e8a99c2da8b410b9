"""The folder of a run: its checkpoints and descriptions, whether a config may continue it, and by which commands."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.augment import Preprocessing
from alexnet_jax.checkpoint import Restored, restore_latest
from alexnet_jax.config_keys import KEYS
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.errors import RunInUseError, UserError
from alexnet_jax.optimizer import restored_state, saved_state
from alexnet_jax.run.metrics_log import find_fault, read_metrics
from alexnet_jax.schedules import LearningRates
from alexnet_jax.system import console
from alexnet_jax.system.files import acquire_lock, local_path, naming, write_json
from alexnet_jax.system.machine import compute_threads
from alexnet_jax.system.versions import PROJECT, shell_command
from alexnet_jax.train_state import TrainState

_LOCK = ".claim"
"""The file that the process of a run has locked. Its end unlocks it; that the file exists means nothing."""


@dataclasses.dataclass
class Progress:
    """The progress of a run: what a checkpoint holds of it beside the arrays.

    Attributes:
      examples_seen: the position in the stream of training examples.
      evaluated_at: the position of the last evaluation.
      totals: metric sums of the training batches since then; see `metrics.add`.
      ids_sha256: hash of the examples of these batches; see `audit.chain`.
      best_top1_error: the lowest validation error so far, in [0, 1].
      best_examples_seen: the position of that evaluation.
      evaluations_since_best: evaluations after it.
      train_top1_error: of the training batches between the last two evaluations, in [0, 1].
    """

    examples_seen: int = 0
    evaluated_at: int = 0
    totals: dict[str, Any] = dataclasses.field(default_factory=dict)
    ids_sha256: str = ""
    best_top1_error: float | None = None
    best_examples_seen: int | None = None
    evaluations_since_best: int = 0
    train_top1_error: float | None = None

    def compare(self, top1_error: float, position: int) -> None:
        """Compares the validation error of an evaluation with the best one so far."""
        self.evaluations_since_best += 1
        if self.best_top1_error is None or top1_error < self.best_top1_error:
            self.best_top1_error, self.best_examples_seen, self.evaluations_since_best = top1_error, position, 0


def checkpoint_tree(state: TrainState, learning_rates: LearningRates, preprocessing: Preprocessing) -> dict[str, Any]:
    """The arrays of a checkpoint as a nested dict; they may still be on the devices."""
    return {
        "params": state.params,
        "batch_stats": state.batch_stats,
        **saved_state(state.opt_state),
        "plateau": learning_rates.state(),
        "preprocessing": preprocessing.measured,
    }


def checkpoint_metadata(
    config: ConfigDict,
    class_names: Sequence[str],
    content: str,
    progress: Progress,
    learning_rate: float,
    versions: Mapping[str, Any],
) -> dict[str, Any]:
    """The data of a checkpoint that JSON can hold.

    Args:
      config: of the run.
      class_names: of the data set.
      content: `Dataset.content`, which tells whether the images have changed.
      progress: of the run.
      learning_rate: of kernels, in the last step.
      versions: what `describe_environment` returns.
    """
    return {
        "progress": dataclasses.asdict(progress),
        "learning_rate": learning_rate,
        "config": config.to_dict(),
        "class_names": class_names,
        "data": content,
        "versions": versions,
    }


def restored(state: TrainState, tree: Mapping[str, Any]) -> TrainState:
    """The state with its arrays replaced by those of a checkpoint of the same config."""
    opt_state = restored_state(state.opt_state, tree)
    return dataclasses.replace(state, params=tree["params"], batch_stats=tree["batch_stats"], opt_state=opt_state)


def write_description(workdir: Path, config: ConfigDict, versions: Mapping[str, Any]) -> None:
    """Writes config.json and versions.json. Raises UserError if it cannot."""
    write_json(workdir / "config.json", config.to_dict())
    write_json(workdir / "versions.json", versions)


def claim(workdir: Path) -> contextlib.ExitStack | None:
    """Locks the folder against other processes of this machine until the result is closed; None if it is locked."""
    with naming(local_path(workdir)):
        workdir.mkdir(parents=True, exist_ok=True)
    return acquire_lock(workdir / _LOCK, timeout=0.0)


def hold(workdir: Path) -> contextlib.ExitStack:
    """`claim`s the folder. Raises RunInUseError if another process has, UserError if the folder cannot be written."""
    try:
        held = claim(workdir)
    except UserError as error:
        raise UserError(f"--workdir={workdir}: {error}") from error
    if held is None:
        raise RunInUseError(f"{workdir} is in use: another process trains there; wait for it or give another --workdir")
    return held


def check_free(workdir: Path) -> None:
    """Raises RunInUseError if another process has claimed the folder; makes nothing."""
    if (local_path(workdir) / _LOCK).exists():
        hold(workdir).close()


def find(workdir: Path, config: ConfigDict, dataset: Dataset) -> tuple[Any, dict[str, Any]]:
    """Reads what a run has left in its folder. Raises UserError if that run is of another config.

    Returns:
      The arrays of the newest checkpoint, None if there is none, and a dict: "tests", the test records; "is_started",
      whether the start is recorded; and "metadata", the data of the checkpoint if there is one.
    """
    newest, warnings = restore_latest(workdir / "checkpoints")
    for warning in warnings:
        console.warn(f"{warning}; the checkpoint before it is used")
    records = read_metrics(workdir)
    recorded = {
        "tests": [record for record in records if record["kind"] == "test"],
        "is_started": any(record["kind"] == "start" for record in records),
    }
    if newest is None:
        return None, recorded
    changes = config_lib.differences(newest.metadata["config"], config.to_dict())
    class_names = newest.metadata["class_names"]
    if list(class_names) != list(dataset.class_names):
        changes.append(f"classes: {len(class_names)} -> {len(dataset.class_names)}, or other names or order")
    elif newest.metadata.get("data") != dataset.content:
        changes.append(f"the images of {config.data.name}, their labels or splits are not those of then")
    if changes:
        what = "; ".join(changes)
        raise UserError(
            f"{workdir} holds a run of another config ({what}); for a new run give another --workdir, to continue that "
            f"one its own values and --workdir={workdir}"
        )
    _check_restarts(newest, config, dataset)
    _warn_of_changes(workdir, newest.metadata, dataset)
    return newest.tree, {**recorded, "metadata": newest.metadata}


def _check_restarts(checkpoint: Restored, config: ConfigDict, dataset: Dataset) -> None:
    """Raises UserError if the schedule's restarts differ from those of a checkpoint before its last step."""
    stored = config_lib.complete(checkpoint.metadata["config"])
    before, after = list(stored["optimizer"]["restart_epochs"]), list(config.optimizer.restart_epochs)
    done = int(checkpoint.tree["plateau"].get("restarts", 0))
    last_step = (checkpoint.examples_seen - stored["batch_size"]) / len(dataset.splits["train"].labels)
    if before[:done] != after[:done] or any(epoch <= last_step for epoch in after[done:]):
        raise UserError(
            f"config.optimizer.restart_epochs={tuple(after)}: a run can start its learning rate anew in the future "
            f"alone; this one has trained to epoch {last_step:.2f}" + (f", with {before[:done]}" if done else "")
        )


def _warn_of_changes(workdir: Path, metadata: Mapping[str, Any], dataset: Dataset) -> None:
    """Warns of what differs from when a checkpoint was saved without stopping the run: records, images, threads."""
    if fault := find_fault(workdir, metadata.get("records", "")):
        console.warn(f"{fault}. The run goes on from its checkpoint, which is sound")
    if metadata.get("prepared", "") not in ("", dataset.prepared):
        console.warn(f"the files of {dataset.directory} are not those of the run so far, which may change its results")
    before, now = metadata.get("versions", {}).get("cpu_threads"), compute_threads()
    if before not in (None, now) and jax.default_backend() == "cpu":
        console.warn(f"CPU threads: {before} -> {now}, which changes the last bits of all results from here on")


def training_program() -> list[str]:
    """The words that start training from the current folder: main.py in a checkout, `alexnet train` anywhere else."""
    return ["main.py"] if Path("main.py").is_file() and Path.cwd() == PROJECT else ["alexnet", "train"]


def command_line(command: Sequence[str], *changes: str) -> str:
    """The command line of a run with flags changed or added."""
    flags = {change.split("=")[0] for change in changes}
    kept = [word for word in command if word.split("=")[0] not in flags]
    return shell_command([*(kept or training_program()), *changes])


def next_commands(
    command: Sequence[str], config: ConfigDict, workdir: Path, ended_by: str = "epochs", restarts: bool = False
) -> dict[str, str]:
    """Commands that continue, evaluate or vary a run, by what they do, for the program that trained it.

    Args:
      command: the command line of the run.
      config: its config.
      workdir: its folder.
      ended_by: the key that ended it; to continue, a length is doubled, another limit lifted.
      restarts: to continue, the learning rate should start anew where the epochs have ended.
    """
    longer = {"epochs": f"{2 * config.epochs:g}", "max_steps": str(2 * config.max_steps)}
    changes = {ended_by: longer.get(ended_by, "0")}
    if restarts:
        changes["optimizer.restart_epochs"] = str((*config.optimizer.restart_epochs, config.epochs)).replace(" ", "")
    program = ["alexnet"] if list(command[:1]) == ["alexnet"] else ["-m", "alexnet_jax"]
    prepared = config.data.prepared_dir  # a loaded run tells no place
    place = [] if prepared == KEYS["data.prepared_dir"].default else [f"--prepared-dir={prepared}"]
    return {
        "continue": command_line(command, *(f"--config.{key}={value}" for key, value in changes.items())),
        "evaluate": shell_command([*program, "evaluate", str(workdir), *place]),
        "override": command_line(command, "--config.optimizer.learning_rate=0.005", "--workdir=runs/another"),
    }
