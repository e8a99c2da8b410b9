"""Runs of many configs, each in a normal run folder: finished ones are not repeated, failed ones stop nothing."""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.errors import TrainingDivergedError, TrainingStuckError, UserError, reason
from alexnet_jax.experiment import open_dataset
from alexnet_jax.run import run_folder
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.system import console
from alexnet_jax.system.signals import raise_on_sigterm
from alexnet_jax.train import train_and_evaluate

POLL_SECONDS = 0.5
"""How often a trial of another process is looked at."""

Name = TypeVar("Name", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run to be done.

    Attributes:
      config: see configs/alexnet.py.
      workdir: the folder of the run.
      command: the words that would do the same; see `run_folder.training_program`.
    """

    config: ConfigDict
    workdir: Path
    command: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a trial.

    Attributes:
      trial: the trial.
      epochs: the records of its evaluations, in order; see metrics.jsonl.
      test: the record of its test; None if the run ended before it.
      failure: why it ended before its test, in one line; None if it did not.
      is_its_fault: whether the settings are to blame: the loss became infinite, or stayed at that of guessing.
    """

    trial: Trial
    epochs: list[dict[str, Any]]
    test: dict[str, Any] | None
    failure: str | None
    is_its_fault: bool = False


class TrialStoppedError(Exception):
    """Raised by an `on_epoch` to end a trial; the text becomes its `failure`."""


OnTrialEpoch = Callable[[Trial, dict[str, Any]], None]


def run_trials(trials: Iterable[Trial], on_epoch: OnTrialEpoch = lambda *_: None) -> Iterator[Outcome]:
    """Does each trial that is not finished already, and yields its outcome.

    Args:
      trials: the runs. One that another process of this machine is doing comes last, and is done here only if it was
        not finished there.
      on_epoch: gets each record of an evaluation; may raise `TrialStoppedError`.

    Raises:
      SystemExit: 130 or 143 after SIGINT or SIGTERM, once the run is saved.
      KeyboardInterrupt: the same between two runs.
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
        console.show("stopped; what was going on is saved, and the same command goes on with it")
        raise


def run_named_trials(trials: Mapping[Name, Trial]) -> Iterator[tuple[Name, Outcome]]:
    """`run_trials`, yielding the name of each trial with its outcome."""
    names = {trial.workdir: name for name, trial in trials.items()}
    for done in run_trials(trials.values()):
        yield names[done.trial.workdir], done


def is_finished(trial: Trial) -> bool:
    """Whether the trial's folder holds the end of a run of its config."""
    path = trial.workdir / "config.json"
    if not path.exists() or not any(record["kind"] == "test" for record in read_metrics(trial.workdir)):
        return False
    done, config = json.loads(path.read_text()), trial.config.to_dict()
    same_length = config_lib.length(config_lib.complete(done)) == config_lib.length(config)
    return same_length and not config_lib.differences(done, config)


def wait_for_claim(folder: Path) -> contextlib.ExitStack:
    """`run_folder.claim`, once no other process has one."""
    while (claim := run_folder.claim(folder)) is None:
        time.sleep(POLL_SECONDS)
    return claim


def _attempt(trial: Trial, on_epoch: OnTrialEpoch) -> Outcome | None:
    """Does a trial, if it is not finished; None if another process is doing it."""
    if is_finished(trial):
        return _outcome(trial)
    try:
        claim = run_folder.claim(trial.workdir)
        if claim is None:
            return None
        with claim, console.muted():
            dataset = _opened(FrozenConfigDict(trial.config.data))
            of_trial = functools.partial(on_epoch, trial)
            train_and_evaluate(trial.config, trial.workdir, trial.command, of_trial, dataset)
    except Exception as error:  # whatever it was, the next trial may do better
        return _outcome(trial, error)
    return _outcome(trial)


@functools.lru_cache(maxsize=1)
def _opened(data: FrozenConfigDict) -> Dataset:
    """The data set of `config.data`; for trials in a row with the same one, it is opened once."""
    return open_dataset(data)


def _outcome(trial: Trial, error: Exception | None = None) -> Outcome:
    """What the folder of a trial holds, and what ended the run before its test."""
    records = read_metrics(trial.workdir)
    epochs, tests = ([record for record in records if record["kind"] == kind] for kind in ("epoch", "test"))
    if error is None:
        return Outcome(trial, epochs, tests[-1], None)
    is_its_fault = isinstance(error, TrainingDivergedError | TrainingStuckError)
    has_a_line = isinstance(error, UserError | TrialStoppedError)
    failure = str(error) if has_a_line else f"{type(error).__name__}: {reason(error)}"
    return Outcome(trial, epochs, None, failure, is_its_fault)
