"""Runs of many configs, each in a normal run folder: finished ones are not repeated, failed ones stop nothing.

Small networks that differ in few things can train together; see `population.py`.
"""

import collections
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.errors import TrainingDivergedError, TrainingStuckError, UserError
from alexnet_jax.experiment import Experiment, open_experiment
from alexnet_jax.experiments.population import Member, make_member_step, make_population_step
from alexnet_jax.optimizer import scale_learning_rate
from alexnet_jax.parallel.devices import exhaustion_in_a_line
from alexnet_jax.run import run_folder
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.system import console
from alexnet_jax.system.signals import StopSignals
from alexnet_jax.train import Answer, Request, Run

OWN_KEYS = ("seed", "optimizer.learning_rate", "optimizer.momentum", "optimizer.weight_decay", "model.dropout_rate")
"""The settings in which runs may differ that train together in one program."""

TIMED_STEPS = 10
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


def run_trials(
    trials: Iterable[Trial], at_once: int = 1, on_epoch: OnEpoch = lambda *_: None
) -> Generator[Outcome, None, None]:
    """Does each trial that is not finished already, and yields what came of it.

    Args:
      trials: asked for one by one, when there is room. One that another process of this machine is doing comes last,
        and is done here only if it was not finished there.
      at_once: how many train together; they must not differ but in `OWN_KEYS`. One that does waits for the others' end.
      on_epoch: gets each record of an evaluation; may raise `TrialStoppedError`.

    Raises:
      SystemExit: 130 or 143 after SIGINT or SIGTERM, once all runs that are going on are saved.
    """
    with StopSignals() as stop:
        yield from _Pool(iter(trials), at_once, on_epoch, stop).work()


def is_finished(trial: Trial) -> bool:
    """Whether the trial's folder holds the end of a run of its config."""
    path = trial.workdir / "config.json"
    if not path.exists() or not any(record["kind"] == "test" for record in read_metrics(trial.workdir)):
        return False
    done, config = json.loads(path.read_text()), trial.config.to_dict()
    same_length = all(done[key] == config[key] for key in config_lib.LENGTH_KEYS)
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


@dataclasses.dataclass
class _Going:
    """A run that has asked for its next step."""

    trial: Trial
    run: Run
    steps: Generator[Request, Answer, dict[str, Any]]
    request: Request
    claim: TextIO


class _Pool:
    """The runs that are going on, as many as there is room for."""

    def __init__(self, waiting: Iterator[Trial], at_once: int, on_epoch: OnEpoch, stop: StopSignals):
        self._waiting, self._at_once, self._on_epoch, self._stop = waiting, at_once, on_epoch, stop
        self._held: Trial | None = None
        self._elsewhere: collections.deque[Trial] = collections.deque()
        self._going: list[_Going] = []
        self._experiment: tuple[Mapping[str, Any], Experiment] | None = None
        self._population: _Population | None = None

    def work(self) -> Generator[Outcome, None, None]:
        """See run_trials."""
        while True:
            yield from self._fill()
            if not self._going:
                break
            yield from self._step()
        if self._stop.received is not None:
            console.show("stopped; what was going on is saved, and the same command goes on with it")
            raise SystemExit(128 + self._stop.received)

    def _fill(self) -> Generator[Outcome, None, None]:
        """Begins trials while there is room for them."""
        while len(self._going) < self._at_once and self._stop.received is None:
            trial = self._held or next(self._waiting, None)
            self._held = None
            if trial is None and self._elsewhere and not self._going:
                trial = self._elsewhere.popleft()
            if trial is None:
                return
            if is_finished(trial):
                yield outcome(trial)
            elif self._going and _common(trial.config) != _common(self._going[0].trial.config):
                self._held = trial
                return
            else:
                yield from self._attempt(trial, functools.partial(self._begin, trial))

    def _begin(self, trial: Trial) -> None:
        claim = run_folder.claim(trial.workdir)
        if claim is None:
            self._elsewhere.append(trial)
            if not self._going:
                time.sleep(POLL_SECONDS)
            return
        try:
            experiment = self._experiment_of(trial.config)
            heard = functools.partial(self._on_epoch, trial)
            run = Run(trial.config, trial.workdir, experiment, trial.command, heard)
            steps = run.execute(self._stop)
            self._going.append(_Going(trial, run, steps, next(steps), claim))
        except BaseException:
            claim.close()
            raise

    def _experiment_of(self, config: ConfigDict) -> Experiment:
        """What the trial shares with the one before, if they are alike; evaluation depends on dropout too."""
        key = {**_common(config), "dropout": config.model.dropout_rate}
        if self._experiment is None or self._experiment[0] != key:
            self._experiment = key, open_experiment(config)
        return self._experiment[1]

    def _step(self) -> Generator[Outcome, None, None]:
        """One step of every run that is going on."""
        going, self._going = self._going, []
        try:
            with exhaustion_in_a_line():
                answers = self._answers(going)
        except Exception as error:
            for one in going:
                one.claim.close()
                yield outcome(one.trial, error)
            return
        for one, answer in zip(going, answers, strict=True):
            yield from self._attempt(one.trial, functools.partial(self._send, one, answer))

    def _answers(self, going: list[_Going]) -> list[Answer]:
        if self._at_once == 1:
            return [one.run.train_step(*one.request) for one in going]
        if self._population is None or self._population.common != _common(going[0].trial.config):
            self._population = _Population(going[0], self._at_once)
        return self._population.step(going)

    def _send(self, one: _Going, answer: Answer) -> None:
        try:
            one.request = one.steps.send(answer)
            self._going.append(one)
        except BaseException:
            one.claim.close()
            raise

    def _attempt(self, trial: Trial, act: Callable[[], None]) -> Generator[Outcome, None, None]:
        """Goes on with a trial, and yields what came of it if that was its end."""
        try:
            with console.muted(), exhaustion_in_a_line():
                act()
        except StopIteration:
            yield outcome(trial)
        except SystemExit:
            return  # saved after a signal, which the others will notice too
        except Exception as error:  # whatever it was, the next trial may do better
            yield outcome(trial, error)


class _Population:
    """The step of many runs in one program; places without a run are filled by copies of one."""

    def __init__(self, first: _Going, size: int):
        run, config = first.run, first.trial.config
        self.common = _common(config)
        self._devices, self._size = run.devices, size
        step = make_member_step(
            config.optimizer, run.model, run.experiment.preprocessing, run.devices.axes, config.label_smoothing
        )
        resident = run.experiment.source.resident
        self._program = run.devices.compile_train_step(step, resident, of_many=make_population_step)
        self._own: dict[Path, tuple[Any, Any, Any]] = {}
        self._fillers: list[Member] = []
        self._steps, self._seconds = 0, 0.0

    def step(self, going: Sequence[_Going]) -> list[Answer]:
        """The answers to all requests."""
        members = [Member(one.request[0], *self._own_values(one)) for one in going]
        while len(members) + len(self._fillers) < self._size:
            self._fillers.append(jax.tree.map(jnp.copy, members[0]))
        self._fillers = self._fillers[: self._size - len(members)]
        batches = [one.request[1] for one in going] + [going[0].request[1]] * len(self._fillers)
        began = time.monotonic()
        after, sums = self._program((*members, *self._fillers), tuple(batches))
        self._steps += 1
        if 1 < self._steps <= TIMED_STEPS + 1:
            jax.block_until_ready(after)
            self._seconds += time.monotonic() - began
        if self._steps == TIMED_STEPS + 1:
            self._show_speed(going[0], after[0], batches[0])
        for one, member in zip(going, after, strict=False):
            self._own[one.trial.workdir] = (member.momentum, member.weight_decay, member.dropout_rate)
        self._fillers = list(after[len(members) :])
        return [(member.state, of_one) for member, of_one, _ in zip(after, sums, going, strict=False)]

    def _own_values(self, one: _Going) -> tuple[Any, Any, Any]:
        """Momentum, decay and dropout of a run, on the devices; the step consumes them and gives them back."""
        if one.trial.workdir not in self._own:
            rule = scale_learning_rate(one.trial.config.optimizer, one.trial.config.batch_size)
            values = (rule.momentum, rule.weight_decay, one.run.model.dropout_rate)
            self._own[one.trial.workdir] = self._devices.place(tuple(map(np.float32, values)))
        return self._own.pop(one.trial.workdir)

    def _show_speed(self, one: _Going, member: Member, batch: Any) -> None:
        """Says what training together brings: the same step of one network alone is timed on a copy."""
        state = jax.tree.map(jnp.copy, member.state)
        state, sums = one.run.train_step(state, batch)
        jax.block_until_ready(sums)
        began = time.monotonic()
        for _ in range(TIMED_STEPS):
            state, sums = one.run.train_step(state, batch)
        jax.block_until_ready((state, sums))
        images = TIMED_STEPS * one.run.plan.batch_size
        together, alone = self._size * images / self._seconds, images / (time.monotonic() - began)
        console.show(
            f"{self._size} networks together: {together:,.0f} images/s; one alone {alone:,.0f}: "
            f"{together / alone:.2f} times as fast"
        )


def _common(config: ConfigDict) -> dict[str, Any]:
    """The settings that runs which train together share."""
    return {key: value for key, value in config_lib.flatten(config.to_dict()) if key not in OWN_KEYS}


def _in_a_line(error: Exception) -> str:
    if isinstance(error, UserError | TrialStoppedError):
        return str(error)
    return f"{type(error).__name__}: {error}".partition("\n")[0]
