"""Runs of many configs, each in a normal run folder: finished ones are not repeated, failed ones stop nothing."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.metric_writer import read_metrics
from alexnet_jax.train import train_and_evaluate


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run to be done.

    Attributes:
      config: see configs/alexnet.py.
      workdir: the folder of the run.
      command: the words after "python" that would do the same, from "main.py" on.
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
    """

    trial: Trial
    epochs: list[dict[str, Any]]
    test: dict[str, Any] | None
    failure: str | None


def run_trials(trials: Iterable[Trial]) -> Iterator[Outcome]:
    """Does each trial that is not finished already, and yields what came of it."""
    for trial in trials:
        failure = None
        if not is_finished(trial):
            try:
                train_and_evaluate(trial.config, trial.workdir, trial.command)
            except UserError as error:
                failure = str(error)
            except Exception as error:  # whatever it was, the next trial may do better
                failure = f"{type(error).__name__}: {error}".partition("\n")[0]
        yield outcome(trial, failure)


def is_finished(trial: Trial) -> bool:
    """Whether the trial's folder holds the end of a run of its config."""
    path = trial.workdir / "config.json"
    if not path.exists() or not any(record["kind"] == "test" for record in read_metrics(trial.workdir)):
        return False
    done, config = json.loads(path.read_text()), trial.config.to_dict()
    same_length = all(done[key] == config[key] for key in ("batch_size", "epochs", "max_steps"))
    return same_length and not config_lib.differences(done, config)


def outcome(trial: Trial, failure: str | None) -> Outcome:
    """What the folder of a trial tells."""
    records = read_metrics(trial.workdir)
    epochs = [record for record in records if record["kind"] == "epoch"]
    tests = [record for record in records if record["kind"] == "test"]
    return Outcome(trial, epochs, tests[-1] if tests and failure is None else None, failure)
