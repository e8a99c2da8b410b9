"""The Optuna study that the workers of a sweep share, in a journal file or a database.

Each setting is an Optuna trial; a setting repeated because its worker died is another trial. The user attributes of a
trial are "folder", the number of the setting and of its run folder; "errors" and "test_errors", in [0, 1], one per
seed; "failure", one line; and "surplus" if it was started when all settings had been.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import statistics
import time
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from alexnet_jax.config import default_config, flatten, renamed
from alexnet_jax.config_keys import RENAMED
from alexnet_jax.errors import UserError, reason
from alexnet_jax.experiments.search_space import Settings, Space, grid, storable
from alexnet_jax.experiments.trials import Outcome, TrialStoppedError, wait_for_claim
from alexnet_jax.run import run_folder
from alexnet_jax.system.files import naming
from alexnet_jax.system.versions import require

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("median", "none")

BEAT_SECONDS, SILENT_SECONDS = 15, 120
"""Interval of a worker's heartbeat in a database, and the silence after which the worker counts as dead."""

STATES = {"COMPLETE": "done", "RUNNING": "running", "PRUNED": "pruned", "FAIL": "failed"}
"""Optuna's trial states and their names on the leaderboard, in its order."""


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """The plan of a sweep, the same for all its workers.

    Attributes:
      space: the search space.
      sampler: one of SAMPLERS.
      count: number of settings to try; for a grid, all of them.
      pruner: one of PRUNERS.
      warmup: number of evaluations before a setting may be pruned.
      about: other values that must be the same for all workers.
    """

    space: Space
    sampler: str
    count: int
    pruner: str = "none"
    warmup: int = 0
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Standing:
    """A row of the leaderboard: one setting.

    Attributes:
      number: number of its run folder.
      state: "done", "running", "pruned" or "failed".
      settings: its config values by key.
      errors, test_errors: errors of the last evaluation and of the test, in [0, 1], one per seed.
      failure: why it failed, in one line; None if it did not.
    """

    number: int
    state: str
    settings: Settings
    errors: tuple[float, ...]
    test_errors: tuple[float, ...]
    failure: str | None


class Setting:
    """A setting that this worker is trying.

    Attributes:
      values: its config values by key.
      folder: number of its run folder.
      is_pruned: whether it was pruned because other settings were better.
      errors, test_errors: errors in [0, 1] of the seeds finished so far.
    """

    def __init__(self, trial: Any, values: Settings, folder: int):
        self.values, self.folder, self.is_pruned = values, folder, False
        self.errors: list[float] = []
        self.test_errors: list[float] = []
        self._trial = trial
        self._reported = -1

    def report(self, evaluation: int, error: float) -> None:
        """Reports the validation error of an evaluation. Raises TrialStoppedError if the setting is pruned."""
        if evaluation <= self._reported:
            return
        self._reported = evaluation
        self._trial.report(error, evaluation)
        self.is_pruned = self._trial.should_prune()
        if self.is_pruned:
            raise TrialStoppedError("pruned")

    def add(self, error: float, test_error: float) -> None:
        """Stores the final validation error and the test error of a seed."""
        self.errors.append(error)
        self.test_errors.append(test_error)
        self._trial.set_user_attr("errors", self.errors)
        self._trial.set_user_attr("test_errors", self.test_errors)


class _LeftOpen(BaseException):
    """Wraps an error after which the trial stays open, so that another worker repeats the setting.

    That is a signal, a lost database, a full disk, or that the trial was already handed to another worker because this
    one had been silent for too long. After any other error, Optuna counts the trial as failed.
    """


Train = Callable[[Setting], Outcome | None]
"""Trains a setting with all seeds, or until one fails; returns the outcome that failed, or None."""


class Study:
    """One worker's access to the shared study.

    A worker holds a file lock for each setting that it tries, and until it has that, one that lets workers begin
    settings one after another, so that others on the same machine notice at once if it dies. Workers on other machines
    rely on Optuna's heartbeat, which only databases support.
    """

    def __init__(self, study: Any, plan: SweepPlan, workdir: Path, is_local: bool):
        self._study, self._plan, self._is_local = study, plan, is_local
        self._locks = workdir / ".workers"
        self._beginning = self._locks / "beginning"

    def optimize(self, train: Train, on_end: Callable[[], None] = lambda: None) -> None:
        """Trains settings, those of dead workers first, until all are done or in the hands of other workers.

        Args:
          train: trains one setting.
          on_end: called after each setting.
        """
        import optuna

        while self._is_any_left():
            # The lock of a setting is held until Optuna has stored the result.
            with contextlib.ExitStack() as lock, wait_for_claim(self._beginning) as beginning:
                try:
                    self._study.optimize(functools.partial(self._objective, train, lock, beginning), n_trials=1)
                except _LeftOpen as left:
                    if not isinstance(left.args[0], optuna.exceptions.UpdateFinishedTrialError):
                        raise left.args[0] from None
                except (AssertionError, UnboundLocalError) as error:  # Optuna's own if the result could not be stored
                    if isinstance(error.__context__, UserError | optuna.exceptions.StorageInternalError):
                        raise error.__context__ from None
                    raise
            on_end()

    def standings(self) -> list[Standing]:
        """All settings that were started, the lowest error first, those without a result last."""
        begun = [trial for trial in _trials(self._study) if "folder" in trial.user_attrs and trial.state.name in STATES]
        last = {trial.user_attrs["folder"]: _standing(trial, self._plan.space) for trial in begun}
        order = list(STATES.values())  # within a state by error, unknown errors last
        return sorted(
            last.values(), key=lambda one: (order.index(one.state), statistics.mean(one.errors or (2.0,)), one.number)
        )

    def _objective(
        self, train: Train, lock: contextlib.ExitStack, beginning: contextlib.ExitStack, trial: Any
    ) -> float | None:
        """Trains a setting and returns its mean validation error; None, a failure to Optuna, if there is none."""
        from optuna.exceptions import StorageInternalError, TrialPruned, UpdateFinishedTrialError

        folder = _folder(self._study, trial)
        if folder >= self._plan.count:  # other workers have started all settings meanwhile
            trial.set_user_attr("surplus", True)
            return None
        try:
            lock.enter_context(wait_for_claim(self._locks / str(trial.number)))
            beginning.close()
            trial.set_user_attr("folder", folder)
            self._study.sampler = _make_sampler(self._plan, folder)
            values = {key: range_.suggest(trial, key) for key, range_ in self._plan.space.items()}
            setting = Setting(trial, values, folder)
            failed = train(setting)
            if failed and not setting.is_pruned:
                trial.set_user_attr("failure", failed.failure)
        except (KeyboardInterrupt, StorageInternalError, UpdateFinishedTrialError, UserError) as error:
            raise _LeftOpen(error) from error
        if setting.is_pruned or (failed and failed.cannot_train):
            raise TrialPruned
        return None if failed else statistics.mean(setting.errors)

    def _is_any_left(self) -> bool:
        """Whether settings remain to be tried; puts those of dead workers back into the queue first."""
        import optuna

        optuna.storages.fail_stale_trials(self._study)
        for trial in _trials(self._study):
            if trial.state.name == "RUNNING" and self._is_dead(trial):
                # Several workers may notice; for all but the first, the trial has already ended.
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
                    self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                    _put_back(self._study, trial)
        trials = _trials(self._study)
        return any(trial.state.name == "WAITING" for trial in trials) or _count(trials) < self._plan.count

    def _is_dead(self, trial: Any) -> bool:
        """Whether the worker of a running trial was on this machine and is dead."""
        lock = self._locks / str(trial.number)
        if self._is_local and not lock.exists():
            wait_for_claim(self._beginning).close()  # by then a living worker has made its lock
        if lock.exists():
            with run_folder.claim(lock) or contextlib.nullcontext() as claim:
                return claim is not None
        # With a journal, all workers are on this machine: this one died before it made its lock. With a database it may
        # be on another machine, of which only silence tells.
        is_overdue = time.time() - trial.datetime_start.timestamp() > SILENT_SECONDS
        return self._is_local or (is_overdue and "worker" in trial.user_attrs)


@contextlib.contextmanager
def open_study(storage: str, name: str, plan: SweepPlan, workdir: Path) -> Iterator[Study]:
    """Opens the study, creating it if it does not exist.

    Args:
      storage: the path of a journal file, or the URL of a database.
      name: the name of the study.
      plan: the plan of the sweep.
      workdir: the folder of the runs.

    Raises UserError if it cannot be opened, or was created with another plan.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    shown = re.sub("(://[^:/@]*):.*@", r"\1@", storage)  # without the password
    is_local = "://" not in storage
    if storage.startswith("postgresql"):
        require("database", "psycopg")
    median = optuna.pruners.MedianPruner(n_warmup_steps=plan.warmup)
    pruner = median if plan.pruner == "median" else optuna.pruners.NopPruner()
    for attempt in range(1, 6):  # workers that create the tables of an empty database at the same time fail
        try:
            opened = _open_journal(Path(storage)) if is_local else _open_database(storage)
            study = optuna.create_study(storage=opened, study_name=name, pruner=pruner, load_if_exists=True)
            break
        except UserError:
            raise
        except Exception as error:
            if attempt == 5:
                raise UserError(f"--storage={shown}: {reason(error)}") from error
            time.sleep(attempt * 0.5)
    try:
        _check_agreement(study, plan, f"the study {name} in {shown}")
        yield Study(study, plan, workdir, is_local)
    except optuna.exceptions.StorageInternalError as error:
        raise UserError(f"--storage={shown}: the connection is lost; start the same command again") from error


def _open_journal(path: Path) -> Any:
    """Opens a journal file, after removing an incomplete last line left by a process that was killed."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class Journal(JournalFileBackend):
        def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
            """Raises UserError if the file cannot be read, which is no result of a setting either."""
            with naming(path):
                yield from super().read_logs(log_number_from)

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            """Appends all or nothing. Raises UserError if the file cannot be written, as on a full disk."""
            with naming(path):
                try:
                    super().append_logs(logs)
                except OSError:
                    _cut_incomplete_line(path, lock)
                    raise

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path))
    _cut_incomplete_line(path, lock)
    return optuna.storages.JournalStorage(Journal(str(path), lock_obj=lock))


def _cut_incomplete_line(path: Path, lock: Any) -> None:
    """Removes the last line of a journal file if it is incomplete, with the lock of the journal held."""
    lock.acquire()
    try:
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _open_database(url: str) -> Any:
    import optuna

    class Database(optuna.storages.RDBStorage):
        def record_heartbeat(self, trial_id: int) -> None:
            """Tolerates a database that is unavailable for a while; training reports one that is lost."""
            with contextlib.suppress(optuna.exceptions.StorageInternalError):
                super().record_heartbeat(trial_id)

    heartbeat: Any = {"heartbeat_interval": BEAT_SECONDS, "grace_period": SILENT_SECONDS}
    engine = {"pool_pre_ping": True}
    return Database(url, engine, **heartbeat, heartbeat_stale_trial_callback=_put_back)


def _check_agreement(study: Any, plan: SweepPlan, what: str) -> None:
    """Raises UserError if the study was created with another plan; only the number of settings may differ."""
    space = {key: [range_.kind, list(range_.values)] for key, range_ in plan.space.items()}
    agreed = {"space": space, "sampler": plan.sampler, **plan.about}
    if "agreed" not in study.user_attrs:
        study.set_user_attr("agreed", agreed)
    defaults = {f"config.{key}": value for key, value in flatten(default_config())}  # of keys added later
    theirs = {**defaults, **_with_current_names(study.user_attrs["agreed"])}
    if differing := [key for key in agreed if json.dumps(agreed[key]) != json.dumps(theirs.get(key))]:
        raise UserError(
            f"{what} has another {differing[0]} ({theirs.get(differing[0])!r}) than this command; "
            "give another --workdir or --study to start a new study"
        )


def _with_current_names(agreed: Mapping[str, Any]) -> dict[str, Any]:
    """What a study of an earlier version agreed on, with the current names of config keys."""
    names = {f"config.{old}": f"config.{new}" for old, new in RENAMED.items()}
    return {names.get(key, key): value for key, value in agreed.items()} | {"space": renamed(agreed["space"])}


def _make_sampler(plan: SweepPlan, folder: int) -> Any:
    """The sampler of one setting, seeded by its number, so that every worker would choose the same values for it.

    Optuna's GridSampler is not used: it may choose a combination twice if settings are started at the same time.
    """
    from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler

    seed = zlib.crc32(str(folder).encode())
    if plan.sampler == "tpe":
        return TPESampler(seed=seed)
    chosen = grid(plan.space)[folder] if plan.sampler == "grid" else {}
    return PartialFixedSampler({key: storable(value) for key, value in chosen.items()}, RandomSampler(seed=seed))


def _trials(study: Any) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if "surplus" not in trial.user_attrs]


def _count(trials: list[Any]) -> int:
    """The number of settings among the trials; a repeated setting counts once."""
    return sum("fixed_params" not in trial.system_attrs for trial in trials)


def _folder(study: Any, trial: Any) -> int:
    """The number of a trial's setting: how many settings were started before it."""
    before = [other for other in _trials(study) if other.number < trial.number]
    return trial.user_attrs.get("folder", _count(before))


def _put_back(study: Any, trial: Any) -> None:
    """Puts the setting of a dead worker back into the queue."""
    study.enqueue_trial(renamed(trial.params), user_attrs={"folder": _folder(study, trial)})


def _standing(trial: Any, space: Space) -> Standing:
    results, last = trial.user_attrs, trial.last_step
    failure = results.get("failure")
    state = "failed" if failure else STATES[trial.state.name]
    settings = {key: space[key].choices.get(value, value) for key, value in renamed(trial.params).items()}
    errors = results.get("errors", () if last is None else (trial.intermediate_values[last],))
    return Standing(results["folder"], state, settings, tuple(errors), tuple(results.get("test_errors", ())), failure)
