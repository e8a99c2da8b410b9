"""Runs of many configs, each in a normal run folder: finished ones are not repeated, failed ones stop nothing."""

import dataclasses
import json
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.errors import TrainingDivergedError, TrainingStuckError, UserError
from alexnet_jax.experiment import open_dataset
from alexnet_jax.run import run_folder
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.system import console
from alexnet_jax.train import train_and_evaluate

POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run to be done.

    Attributes:
      config: see configs/alexnet.py.
      workdir: the folder of the run.
      command: the words that would do the same, from "main.py" or "alexnet", "train" on.
    """

    config: ConfigDict
    workdir: Path
    command: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
      trial: the trial.
      epochs: the records of its evaluations, in order; see metrics.jsonl.
      test: the record of its test; None if it did not come so far.
      failure: in a line, why not; None if it did.
      is_its_fault: whether the settings are to blame: the loss became infinite, or stayed at that of guessing.
    """

    trial: Trial
    epochs: list[dict[str, Any]]
    test: dict[str, Any] | None
    failure: str | None
    is_its_fault: bool = False


class TrialStoppedError(Exception):
    """Raised by an `on_epoch` that wants no more of a trial; the text becomes its `failure`."""


OnEpoch = Callable[[Trial, dict[str, Any]], None]


def run_trials(trials: Iterable[Trial], on_epoch: OnEpoch = lambda *_: None) -> Generator[Outcome]:
    """Does each trial that is not finished already, and yields what came of it.

    Args:
      trials: asked for one by one. One that another process of this machine is doing comes last, and is done here only
        if it was not finished there.
      on_epoch: gets each record of an evaluation; may raise `TrialStoppedError`.

    Raises:
      SystemExit: 130 or 143 after SIGINT or SIGTERM, once the run that is going on is saved.
    """
    data_sets = _DataSets()
    elsewhere: list[Trial] = []
    for trial in trials:
        done = _do(trial, on_epoch, data_sets)
        if done is None:
            elsewhere.append(trial)
        else:
            yield done
    for trial in elsewhere:
        while (done := _do(trial, on_epoch, data_sets)) is None:
            time.sleep(POLL_SECONDS)
        yield done


def _do(trial: Trial, on_epoch: OnEpoch, data_sets: "_DataSets") -> Outcome | None:
    """What came of a trial, which is done unless it is finished already; None if another process is doing it."""
    if is_finished(trial):
        return outcome(trial)
    claim = run_folder.claim(trial.workdir)
    if claim is None:
        return None
    with claim:
        return _attempt(trial, on_epoch, data_sets)


class _DataSets:
    """Keeps the data set that was opened last: trials after each other mostly have the same."""

    def __init__(self) -> None:
        self._last: tuple[dict[str, Any], Dataset] | None = None

    def open(self, data: ConfigDict) -> Dataset:
        key = data.to_dict()
        if self._last is None or self._last[0] != key:
            self._last = key, open_dataset(data)
        return self._last[1]


def _attempt(trial: Trial, on_epoch: OnEpoch, data_sets: _DataSets) -> Outcome:
    """Trains a trial to its end, or to what ends it too soon."""
    try:
        with console.muted():
            config_lib.check(trial.config.to_dict())
            dataset = data_sets.open(trial.config.data)
            listen = lambda record: on_epoch(trial, record)  # noqa: E731
            train_and_evaluate(trial.config, trial.workdir, trial.command, listen, dataset)
    except SystemExit:
        console.show("stopped; what was going on is saved, and the same command goes on with it")
        raise
    except Exception as error:  # whatever it was, the next trial may do better
        return outcome(trial, error)
    return outcome(trial)


def is_finished(trial: Trial) -> bool:
    """Whether the trial's folder holds the end of a run of its config."""
    path = trial.workdir / "config.json"
    if not path.exists() or not any(record["kind"] == "test" for record in read_metrics(trial.workdir)):
        return False
    done, config = json.loads(path.read_text()), trial.config.to_dict()
    same_length = config_lib.length(config_lib.complete(done)) == config_lib.length(config)
    return same_length and not config_lib.differences(done, config)


def outcome(trial: Trial, error: Exception | None = None) -> Outcome:
    """What the folder of a trial tells, and what ended it too soon."""
    records = read_metrics(trial.workdir)
    epochs = [record for record in records if record["kind"] == "epoch"]
    tests = [record for record in records if record["kind"] == "test"]
    if error is None:
        return Outcome(trial, epochs, tests[-1] if tests else None, None)
    return Outcome(
        trial, epochs, None, _in_a_line(error), isinstance(error, TrainingDivergedError | TrainingStuckError)
    )


def _in_a_line(error: Exception) -> str:
    if isinstance(error, UserError | TrialStoppedError):
        return str(error)
    return f"{type(error).__name__}: {error}".partition("\n")[0]
