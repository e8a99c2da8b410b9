"""Runs several configs one after another, each in a run folder of its own.

Finished runs are not repeated. A run that fails does not stop the others, unless the disk is full or the like.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.errors import (
    RunInUseError,
    TrainingDivergedError,
    TrainingStuckError,
    UserError,
    failure_of_the_machine,
    reason,
)
from alexnet_jax.experiment import open_dataset
from alexnet_jax.run import run_folder
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.run.record_kinds import check_metrics
from alexnet_jax.system import console
from alexnet_jax.system.files import read_json
from alexnet_jax.system.signals import raise_on_sigterm
from alexnet_jax.train import train_and_evaluate

POLL_SECONDS = 0.5
"""Interval at which a trial that another process is running is checked."""

Name = TypeVar("Name", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run to do.

    Attributes:
      config: its config; see configs/alexnet.py.
      workdir: its folder.
      command: the command line that would do the same run; see `run_folder.training_program`.
    """

    config: ConfigDict
    workdir: Path
    command: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a trial.

    Attributes:
      trial: the trial.
      epochs: its records of kind "epoch" in metrics.jsonl, in order.
      test: its record of kind "test"; None if the run ended before the test.
      failure: why it ended before the test, in one line; None if it did not.
      cannot_train: the failure is due to the settings: the loss diverged, or stayed at chance level.
    """

    trial: Trial
    epochs: list[dict[str, Any]]
    test: dict[str, Any] | None
    failure: str | None
    cannot_train: bool = False


class TrialStoppedError(Exception):
    """Raised by an `on_epoch` callback to end a trial; the text becomes `Outcome.failure`."""


OnTrialEpoch = Callable[[Trial, dict[str, Any]], None]


def run_trials(trials: Iterable[Trial], on_epoch: OnTrialEpoch = lambda *_: None) -> Iterator[Outcome]:
    """Runs each trial that is not finished yet, and yields the outcome of every trial.

    Args:
      trials: the runs. One that another process on this machine is doing is left to the end, and is done here only if
        that process does not finish it.
      on_epoch: called with the trial and each evaluation's record; may raise `TrialStoppedError`.

    Raises:
      UserError: a run cannot be written, or too many files are open.
      SystemExit: with status 130 or 143 after SIGINT or SIGTERM, once the current run is saved.
      KeyboardInterrupt: after a signal between two runs.
    """
    elsewhere = []
    try:
        with raise_on_sigterm():
            for trial in trials:
                if (done := _attempt(trial, on_epoch)) is None:
                    elsewhere.append(trial)
                else:
                    yield done
            for trial in elsewhere:
                while (done := _attempt(trial, on_epoch)) is None:
                    time.sleep(POLL_SECONDS)
                yield done
    except (SystemExit, KeyboardInterrupt):
        console.show("stopped; the current run is saved, and the same command continues it")
        raise


def run_named_trials(trials: Mapping[Name, Trial]) -> Iterator[tuple[Name, Outcome]]:
    """`run_trials` on named trials; yields each name with its outcome."""
    names = {trial.workdir: name for name, trial in trials.items()}
    for done in run_trials(trials.values()):
        yield names[done.trial.workdir], done


def is_finished(trial: Trial) -> bool:
    """Whether the trial's folder holds a finished run with the same config and length."""
    path = trial.workdir / "config.json"
    if not path.exists() or not any(record["kind"] == "test" for record in read_metrics(trial.workdir)):
        return False
    done, config = read_json(path, dict), trial.config.to_dict()
    same_length = config_lib.length(config_lib.complete(done)) == config_lib.length(config)
    return same_length and not config_lib.differences(done, config)


def wait_for_claim(folder: Path) -> contextlib.ExitStack:
    """Waits until no other process has claimed the folder, and claims it; see `run_folder.claim`."""
    while (claim := run_folder.claim(folder)) is None:
        time.sleep(POLL_SECONDS)
    return claim


def _attempt(trial: Trial, on_epoch: OnTrialEpoch) -> Outcome | None:
    """Runs a trial unless it is finished, and returns its outcome; None if another process is running it."""
    if is_finished(trial):
        return _outcome(trial)
    try:
        with console.muted():
            dataset = _opened(FrozenConfigDict(trial.config.data))
            callback = functools.partial(on_epoch, trial)
            train_and_evaluate(trial.config, trial.workdir, trial.command, callback, dataset)
    except RunInUseError:
        return None
    except Exception as error:  # any failure ends only this trial, unless the others would fail, too
        if not failure_of_the_machine(error):
            return _outcome(trial, error)
        raise error if isinstance(error, UserError) else UserError(f"{trial.workdir}: {reason(error)}") from error
    return _outcome(trial)


@functools.lru_cache(maxsize=1)
def _opened(data: FrozenConfigDict) -> Dataset:
    """Opens the data set of `config.data`; successive trials with the same data share it."""
    return open_dataset(data)


def _outcome(trial: Trial, error: Exception | None = None) -> Outcome:
    """Reads the outcome of a trial from its folder; `error` is the exception that ended it before its test."""
    records = read_metrics(trial.workdir)
    check_metrics(trial.workdir / "metrics.jsonl", records)
    epochs, tests = ([record for record in records if record["kind"] == kind] for kind in ("epoch", "test"))
    if error is None:
        return Outcome(trial, epochs, tests[-1], None)
    cannot_train = isinstance(error, TrainingDivergedError | TrainingStuckError)
    is_worded = isinstance(error, UserError | TrialStoppedError)
    failure = str(error) if is_worded else f"{type(error).__name__}: {reason(error)}"
    return Outcome(trial, epochs, None, failure, cannot_train)
