"""What many processes know of one sweep: an Optuna study in a file or a database.

Each setting is one Optuna trial. Its user attributes are: "worker", who does it; "folder", the number under which its
runs lie, which is that of the first trial with these values if that one's worker died; "errors" and "test_errors", by
seed, in [0, 1]; "failure", in a line.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from alexnet_jax.config import default_config, flatten
from alexnet_jax.errors import UserError
from alexnet_jax.experiments.search_space import Range, Settings, Space, draw, grid

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("median", "none")

BEAT_SECONDS, SILENT_SECONDS = 15, 120
"""How often a worker says that it lives, and after what silence it is taken for dead."""

RANDOM_FIRST = 10
"""Settings that TPE draws at random before it looks at results."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the workers of a study must agree on.

    Attributes:
      space: what is varied.
      sampler: one of SAMPLERS.
      count: how many settings are tried; all of a grid.
      seed: of the random draws.
    """

    space: Space
    sampler: str
    count: int
    seed: int = 0

    @property
    def combinations(self) -> list[Settings]:
        """Of a grid."""
        return grid(self.space)


@dataclasses.dataclass(frozen=True)
class Row:
    """A setting as the leaderboard shows it.

    Attributes:
      number: of its folder.
      state: "done", "pruned", "failed" or "running".
      settings: its values.
      errors, test_errors: of the last evaluation and of the test, in [0, 1], one a seed.
      failure: in a line.
    """

    number: int
    state: str
    settings: Settings
    errors: tuple[float, ...]
    test_errors: tuple[float, ...]
    failure: str | None


class Setting:
    """A setting that this worker does."""

    def __init__(self, trial: Any, values: Settings, folder: int):
        self.values, self.folder = values, folder
        self._trial = trial
        self._errors: dict[int, float] = {}
        self._test_errors: dict[int, float] = {}
        self._reported = -1
        self.is_over = False

    def report(self, evaluation: int, error: float) -> None:
        """Tells an epoch's validation error, which may be the end of the setting: others were better by then."""
        import optuna

        if self.is_over or evaluation <= self._reported:
            return
        self._reported = evaluation
        try:
            self._trial.report(error, evaluation)
        except optuna.exceptions.UpdateFinishedTrialError:
            self.is_over = True  # this worker was silent for so long that another does its setting
        else:
            if self._trial.should_prune():
                self._end("PRUNED")

    def add(self, seed: int, error: float, test_error: float, of: int) -> None:
        """Notes the result of a seed; with that of the last `of` them the setting is done."""
        self._errors[seed], self._test_errors[seed] = error, test_error
        if len(self._errors) == of:
            self._end("COMPLETE", sum(self._errors.values()) / of)

    def fail(self, failure: str, is_its_fault: bool) -> None:
        """Ends it without a result. If that is its own fault, TPE counts it as worse than all others."""
        self._end("PRUNED" if is_its_fault else "FAIL", failure=failure)

    def _end(self, state: str, value: float | None = None, failure: str | None = None) -> None:
        import optuna

        self.is_over = True
        results = {"errors": list(self._errors.values()), "test_errors": list(self._test_errors.values())}
        # A worker that was taken for dead finds its setting ended by another.
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            for name, result in {**results, "failure": failure}.items():
                if result:
                    self._trial.set_user_attr(name, result)
            self._trial.study.tell(self._trial, value, state=_state(state))


class Study:
    """A worker's view of the study: it asks for settings, and tells that it lives, until it is closed."""

    def __init__(self, study: Any, plan: Plan):
        self._study, self._plan = study, plan
        self._worker = _identity()
        self._closed = threading.Event()
        self._beat()
        threading.Thread(target=self._keep_beating, daemon=True).start()

    def close(self) -> None:
        """Says no more."""
        self._closed.set()

    def ask(self) -> Setting | None:
        """The next setting to be done: one of a dead worker, or a new one; None if all are done or being done."""
        self._take_over()
        if self._enqueued() == 0 and self._settings() >= self._plan.count:
            return None
        trial = self._study.ask()
        again = trial.user_attrs.get("folder")
        folder = self._settings(trial.number) if again is None else again
        if folder >= self._plan.count:  # another worker was faster
            trial.set_user_attr("surplus", True)
            self._study.tell(trial, state=_state("FAIL"))
            return None
        trial.set_user_attr("worker", self._worker)
        trial.set_user_attr("folder", folder)
        self._study.sampler = _make_sampler(self._plan, folder)
        return Setting(trial, {key: _suggest(trial, key, range_) for key, range_ in self._plan.space.items()}, folder)

    def rows(self) -> list[Row]:
        """All settings that were begun, the best first, those without a result last."""
        rows = {}
        for trial in self._trials():
            if trial.state != _state("WAITING") and "folder" in trial.user_attrs:
                row = _row(trial, self._plan.space)
                rows[row.number] = row  # of those with the same folder, the last
        order = {"done": 0, "running": 1, "pruned": 2, "failed": 3}
        return sorted(rows.values(), key=lambda row: (order[row.state], _mean(row.errors), row.number))

    def _trials(self, before: int | None = None) -> list[Any]:
        trials = self._study.get_trials(deepcopy=False)[:before]
        return [trial for trial in trials if "surplus" not in trial.user_attrs]

    def _settings(self, before: int | None = None) -> int:
        """How many trials, or of those before one, are settings of their own: neither surplus nor done again."""
        return sum(1 for trial in self._trials(before) if not _is_repeat(trial))

    def _enqueued(self) -> int:
        return sum(1 for trial in self._trials() if trial.state == _state("WAITING"))

    def _take_over(self) -> None:
        """Puts what dead workers were doing back into the queue; of many workers that notice, one does."""
        import optuna

        for trial in self._trials():
            if trial.state == _state("RUNNING") and self._is_dead(trial):
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
                    self._study.tell(trial.number, state=_state("FAIL"))
                    folder = trial.user_attrs.get("folder", self._settings(trial.number))
                    self._study.enqueue_trial(trial.params, user_attrs={"folder": folder})

    def _is_dead(self, trial: Any) -> bool:
        worker = trial.user_attrs.get("worker")
        if worker is None:  # it died, or is, between asking and saying so
            begun = trial.datetime_start
            return begun is None or time.time() - begun.timestamp() > SILENT_SECONDS
        if worker == self._worker:
            return False
        host, _, process = worker.rpartition("/")
        if host == _host():
            return not _lives(process)
        return time.time() - self._study.user_attrs.get(f"alive {worker}", 0.0) > SILENT_SECONDS

    def _beat(self) -> None:
        self._study.set_user_attr(f"alive {self._worker}", time.time())

    def _keep_beating(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # the worker itself will notice a lost database
                self._beat()


@contextlib.contextmanager
def open_study(
    storage: str, name: str, plan: Plan, about: Mapping[str, Any], pruner: str, warmup: int
) -> Iterator[Study]:
    """Opens a study, or begins it.

    Args:
      storage: the path of a journal file, or the URL of a database.
      name: of the study.
      plan: what it does.
      about: what else its workers must agree on.
      pruner: one of PRUNERS.
      warmup: evaluations before which a setting is not given up.

    Raises UserError if it cannot be opened, or is a study of something else.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruners = {"median": lambda: optuna.pruners.MedianPruner(n_warmup_steps=warmup), "none": optuna.pruners.NopPruner}
    agreed = {
        "space": {key: [range_.kind, list(range_.values)] for key, range_ in plan.space.items()},
        "sampler": plan.sampler,
        "seed": plan.seed,
        **about,
    }
    study = _persistently(storage, lambda: _create(storage, name, pruners[pruner]()))
    theirs = _agree(study, agreed)
    if differing := [key for key in agreed if json.dumps(agreed[key]) != json.dumps(theirs.get(key))]:
        raise UserError(
            f"the study {name} in {storage} has another {differing[0]} ({theirs.get(differing[0])!r}); "
            "for a new one give another --workdir or --study"
        )
    opened = Study(study, plan)
    try:
        yield opened
    except optuna.exceptions.StorageInternalError as error:
        raise UserError(f"--storage={_without_password(storage)} is lost; start the same command again") from error
    finally:
        opened.close()


def _create(storage: str, name: str, pruner: Any) -> Any:
    import optuna

    if "://" in storage:
        arguments = {"pool_pre_ping": True}
        opened: Any = optuna.storages.RDBStorage(storage, engine_kwargs=arguments)
    else:
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileOpenLock(storage)
        _drop_torn_line(Path(storage), lock)
        opened = optuna.storages.JournalStorage(JournalFileBackend(storage, lock_obj=lock))
    return optuna.create_study(storage=opened, study_name=name, pruner=pruner, load_if_exists=True)


def _drop_torn_line(path: Path, lock: Any) -> None:
    """A process that is killed while it writes leaves a line without an end, after which nothing could be read."""
    lock.acquire()
    try:
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _persistently(storage: str, open_: Callable[[], Any], attempts: int = 5) -> Any:
    """Tries again for a while: workers that make the tables of an empty database at the same time get in the way."""
    for attempt in itertools.count(1):
        try:
            return open_()
        except Exception as error:
            if attempt == attempts:
                reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
                raise UserError(f"--storage={_without_password(storage)}: {reason}") from error
            time.sleep(attempt * 0.5)


def _agree(study: Any, agreed: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the study was begun with, `agreed` if this worker is the first; a key added since has its default."""
    if "agreed" not in study.user_attrs:
        study.set_user_attr("agreed", dict(agreed))
    defaults = {f"config.{key}": value for key, value in flatten(default_config())}
    return {**defaults, **study.user_attrs["agreed"]}


def _make_sampler(plan: Plan, number: int) -> Any:
    """What chooses the values of setting `number`; whichever worker does it, so that no two choose the same."""
    import optuna

    if plan.sampler == "tpe" and number >= RANDOM_FIRST:
        seed = zlib.crc32(f"{plan.seed} {number}".encode())
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0)
    values = plan.combinations[number] if plan.sampler == "grid" else draw(plan.space, plan.seed, number)

    class Chosen(optuna.samplers.BaseSampler):
        """Has chosen already."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return _choice(values[param_name])

    return Chosen()


def _suggest(trial: Any, key: str, range_: Range) -> Any:
    if range_.kind == "values":
        values = {_choice(value): value for value in range_.values}
        return values[trial.suggest_categorical(key, list(values))]
    if range_.kind == "int":
        return trial.suggest_int(key, *range_.values)
    return trial.suggest_float(key, *range_.values, log=range_.kind == "log_uniform")


def _choice(value: Any) -> Any:
    """A value as Optuna can keep it."""
    return value if isinstance(value, bool | int | float | str) else repr(value)


def _row(trial: Any, space: Space) -> Row:
    names = {"COMPLETE": "done", "PRUNED": "pruned", "RUNNING": "running", "FAIL": "failed"}
    attributes, failure = trial.user_attrs, trial.user_attrs.get("failure")
    values = {
        key: next((value for value in space[key].values if _choice(value) == chosen), chosen)
        for key, chosen in trial.params.items()
    }
    errors = attributes.get("errors", ())
    if not errors and trial.intermediate_values:
        errors = (trial.intermediate_values[max(trial.intermediate_values)],)
    state = "failed" if failure else names[trial.state.name]
    return Row(attributes["folder"], state, values, tuple(errors), tuple(attributes.get("test_errors", ())), failure)


def _is_repeat(trial: Any) -> bool:
    return "fixed_params" in trial.system_attrs


def _state(name: str) -> Any:
    import optuna

    return optuna.trial.TrialState[name]


def _mean(errors: tuple[float, ...]) -> float:
    return sum(errors) / len(errors) if errors else 2.0


def _host() -> str:
    """Tells apart machines, and containers of one machine that may have the same name."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}:{namespace.readlink() if namespace.exists() else ''}"


def _identity() -> str:
    return f"{_host()}/{os.getpid()}@{psutil.Process().create_time()}"


def _lives(process: str) -> bool:
    pid, _, began = process.partition("@")
    try:
        other = psutil.Process(int(pid))
        return str(other.create_time()) == began and other.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _without_password(url: str) -> str:
    head, separator, tail = url.rpartition("@")
    user = head.rsplit(":", 1)[0] if head.count(":") > 1 else head
    return f"{user}{separator}{tail}"
