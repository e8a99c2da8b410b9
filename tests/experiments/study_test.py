"""The study that several workers of a sweep share."""

import contextlib
import dataclasses
import errno
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from alexnet_jax.config_keys import RENAMED
from alexnet_jax.errors import UserError
from alexnet_jax.experiments import study as study_lib
from alexnet_jax.experiments import trials
from alexnet_jax.experiments.search_space import Range, Settings, grid
from alexnet_jax.experiments.study import Setting, Study, SweepPlan, open_study
from alexnet_jax.experiments.trials import Outcome, Trial, TrialStoppedError, wait_for_claim
from alexnet_jax.run import run_folder
from tests.conftest import REPOSITORY, full_disk

RATES = {"rate": Range("values", (0.1, 0.2, 0.3)), "kind": Range("values", ((1.0, 2.0), (3.0,)))}
RANGES = {"rate": Range("log_uniform", (0.01, 1.0)), "units": Range("int", (1, 64))}
GRID = SweepPlan(RATES, "grid", 6)


@contextlib.contextmanager
def opened(path: Path, plan: SweepPlan = GRID, storage: str = "", **about: object) -> Iterator[Study]:
    plan = dataclasses.replace(plan, about=about)
    with open_study(storage or str(path / "study.log"), "name", plan, path) as study:
        yield study


def finish(setting: Setting, error: float = 0.5) -> None:
    setting.add(error, error + 0.1)


def failed(failure: str, cannot_train: bool) -> Outcome:
    return Outcome(Trial(ConfigDict(), Path("run"), []), [], None, failure, cannot_train)


def die(study: Study, done_before: int = 0) -> Setting:
    """A worker finishes some settings and is then killed; returns the setting that it was trying."""
    begun = []

    def train(setting: Setting) -> None:
        begun.append(setting)
        if len(begun) > done_before:
            raise SystemExit
        finish(setting)

    with pytest.raises(SystemExit):
        study.optimize(train)
    return begun[-1]


def values_done(study: Study) -> list[Settings]:
    """Tries all settings that are left, and returns their values in order."""
    values = []

    def train(setting: Setting) -> None:
        values.append(setting.values)
        finish(setting)

    study.optimize(train)
    return values


def test_each_setting_of_a_grid_is_done_once_whoever_asks(tmp_path: Path) -> None:
    begun: list[Setting] = []
    results = [0.3, 0.1, 0.2, 0.9, 0.9, 0.9]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(opened(tmp_path)) for _ in range(8)]  # the last two find nothing to do

        def train(setting: Setting) -> None:
            begun.append(setting)
            workers[len(begun)].optimize(train)
            if setting.folder == 3:
                states = {standing.number: standing.state for standing in workers[-1].standings()}
                assert states == {0: "running", 1: "running", 2: "running", 3: "running", 4: "done", 5: "done"}
            finish(setting, results[setting.folder])

        workers[0].optimize(train)
        standings = workers[-1].standings()
    assert [setting.folder for setting in begun] == [0, 1, 2, 3, 4, 5]
    assert [setting.values for setting in begun] == grid(RATES)
    assert [(one.number, one.state) for one in standings[:3]] == [(1, "done"), (2, "done"), (0, "done")]
    assert standings[0].errors == (0.1,) and standings[0].test_errors == (pytest.approx(0.2),)
    assert standings[0].settings == {"rate": 0.1, "kind": (3.0,)}


def test_random_settings_do_not_depend_on_who_draws_them_and_a_larger_count_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path / "whole", SweepPlan(RANGES, "random", 5)) as study:
        whole = values_done(study)
    parts = []
    for count in (2, 5):
        with opened(tmp_path / "parts", SweepPlan(RANGES, "random", count)) as study:
            parts.append(values_done(study))
    assert [len(part) for part in parts] == [2, 3] and [*parts[0], *parts[1]] == whole
    assert len({settings["rate"] for settings in whole}) == 5


@pytest.mark.parametrize(
    ("range_", "middle"),
    [
        (Range("uniform", (0.5, 0.9)), 0.7),
        (Range("log_uniform", (1e-4, 1.0)), 1e-2),
        (Range("int", (1, 9)), 5),
        (Range("values", (1, 2, 3)), 2),
    ],
)
def test_draws_lie_in_the_range_on_both_sides_of_its_middle(range_: Range, middle: float, tmp_path: Path) -> None:
    with opened(tmp_path, SweepPlan({"key": range_}, "random", 60)) as study:
        drawn = [settings["key"] for settings in values_done(study)]
    assert range_.values[0] <= min(drawn) < middle < max(drawn) <= range_.values[-1]
    assert {type(value) for value in drawn} == {type(range_.values[0])}
    assert 0.2 < sum(value < middle for value in drawn) / len(drawn) < 0.65
    if range_.kind == "int":
        assert {1, 9} <= set(drawn)


def test_seeds_are_averaged(tmp_path: Path) -> None:
    def train(setting: Setting) -> None:
        setting.add(0.2, 0.3)
        assert study.standings()[0].state == "running"
        setting.add(0.4, 0.5)

    with opened(tmp_path, SweepPlan(RANGES, "random", 1)) as study:
        study.optimize(train)
        (standing,) = study.standings()
        (trial,) = study._study.trials
    assert (standing.state, standing.errors, standing.test_errors) == ("done", (0.2, 0.4), (0.3, 0.5))
    assert trial.value == pytest.approx(0.3)


def test_failures_are_recorded_and_come_last(tmp_path: Path) -> None:
    def train(setting: Setting) -> Outcome | None:
        if setting.folder > 1:
            return finish(setting, 0.9)
        setting.report(1, 0.01)
        return failed("the loss is nan", cannot_train=setting.folder == 0)

    with opened(tmp_path, SweepPlan(RANGES, "random", 3)) as study:
        study.optimize(train)
        standings = study.standings()
        states = [trial.state.name for trial in study._study.trials]
    assert [(one.number, one.state, one.failure) for one in standings] == [
        (2, "done", None),
        (0, "failed", "the loss is nan"),
        (1, "failed", "the loss is nan"),
    ]
    assert states == ["PRUNED", "FAIL", "COMPLETE"]  # TPE counts the first as worse than all others


def test_what_is_worse_than_the_median_is_pruned(tmp_path: Path) -> None:
    errors = (0.1, 0.2, 0.3, 0.4, 0.5, 0.31)

    def train(setting: Setting) -> Outcome | None:
        error = errors[setting.folder]
        try:
            setting.report(1, error)
        except TrialStoppedError as stopped:
            assert setting.folder == 5
            return failed(str(stopped), cannot_train=False)
        return finish(setting, error)

    with opened(tmp_path, dataclasses.replace(GRID, pruner="median")) as study:
        study.optimize(train)
        worst = study.standings()[-1]
    assert (worst.number, worst.state, worst.errors, worst.failure) == (5, "pruned", (0.31,), None)


def test_a_dead_workers_setting_is_done_again_by_the_next_in_the_same_folder(tmp_path: Path) -> None:
    with opened(tmp_path) as dying:
        lost = die(dying, done_before=1)
    begun: list[Setting] = []

    def train(setting: Setting) -> None:
        begun.append(setting)
        finish(setting, 0.25)

    with opened(tmp_path) as study:
        study.optimize(train)
        standings = {one.number: one for one in study.standings()}
    assert (begun[0].folder, begun[0].values) == (lost.folder, lost.values) == (1, grid(RATES)[1])
    assert [setting.folder for setting in begun] == [1, 2, 3, 4, 5] and len(standings) == 6
    assert standings[1].errors == (0.25,) and {one.state for one in standings.values()} == {"done"}


def test_a_setting_of_a_worker_on_another_machine_is_done_again_once_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    here, there = tmp_path / "here", tmp_path / "there"
    monkeypatch.setattr(study_lib, "SILENT_SECONDS", 1)
    plan = SweepPlan(RATES, "grid", 2)
    with opened(there, plan, storage) as dying:
        lost = die(dying)
    with opened(here, plan, storage) as study:
        assert values_done(study) == [grid(RATES)[1]]
        assert {one.number: one.state for one in study.standings()} == {0: "running", 1: "done"}
        time.sleep(2.5)
        assert values_done(study) == [lost.values]
        assert {one.number: one.state for one in study.standings()} == {0: "done", 1: "done"}


@pytest.mark.parametrize("ends", [finish, lambda setting: failed("x", True), lambda setting: setting.report(9, 0.5)])
def test_a_worker_that_was_taken_for_dead_leaves_its_setting_to_the_other(
    ends: Callable[[Setting], Outcome | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def train(setting: Setting) -> Outcome | None:
        begun.append(setting.folder)
        if len(begun) > 1:
            return finish(setting, 0.9)
        with monkeypatch.context() as patch, opened(tmp_path, plan) as other:
            patch.setattr(other, "_is_dead", lambda trial: trial.number == 0)
            assert len(values_done(other)) == 2
        return ends(setting)

    plan = SweepPlan(RATES, "grid", 2)
    with opened(tmp_path, plan) as silent:
        silent.optimize(train)
        standings = silent.standings()
    assert begun == [0]
    assert [(one.number, one.state, one.errors) for one in standings] == [(0, "done", (0.5,)), (1, "done", (0.5,))]


def test_errors_of_training_itself_are_not_taken_for_those_of_a_lost_setting(tmp_path: Path) -> None:
    def train(setting: Setting) -> None:
        raise ValueError("a mistake in the code")

    with opened(tmp_path) as study, pytest.raises(ValueError, match="a mistake in the code"):
        study.optimize(train)


def test_after_an_interrupt_the_setting_is_done_by_the_next(tmp_path: Path) -> None:
    def train(setting: Setting) -> None:
        raise KeyboardInterrupt

    with opened(tmp_path) as study, pytest.raises(KeyboardInterrupt):
        study.optimize(train)
    with opened(tmp_path) as study:
        assert values_done(study) == grid(RATES)


def test_a_live_worker_keeps_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_lib, "SILENT_SECONDS", -1)
    with opened(tmp_path) as dying:
        die(dying)
    with contextlib.ExitStack() as stack:
        claim = run_folder.claim(tmp_path / ".workers" / "0")  # it is not dead
        assert claim is not None
        stack.enter_context(claim)
        study = stack.enter_context(opened(tmp_path))
        assert values_done(study) == grid(RATES)[1:]
    with opened(tmp_path) as study:
        assert values_done(study) == grid(RATES)[:1]


def test_a_setting_is_locked_until_its_result_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SweepPlan(RATES, "grid", 1)
    with opened(tmp_path, plan) as study, opened(tmp_path, plan) as other:

        def after_trial(*_: object) -> None:
            """Called by Optuna once it has the result, before other workers can see it."""
            assert not other._is_any_left() and other.standings()[0].state == "running"
            seen.append(True)

        seen: list[bool] = []
        monkeypatch.setattr("optuna.samplers.PartialFixedSampler.after_trial", after_trial)
        study.optimize(finish)
        assert seen and study.standings()[0].state == "done"


def test_a_worker_that_died_before_it_said_what_it_does(tmp_path: Path) -> None:
    with opened(tmp_path) as dying:
        dying._study.ask()
    with opened(tmp_path) as study:
        assert values_done(study) == grid(RATES)


def test_a_worker_that_begins_a_setting_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def claim(folder: Path) -> contextlib.ExitStack:
        """While the first worker has a setting but no lock of it, another one starts and waits."""
        if folder.name == "0":
            waiting.append(pool.submit(other._is_any_left))
            with pytest.raises(TimeoutError):
                waiting[0].result(0.05)
        return wait_for_claim(folder)

    waiting: list[Future[bool]] = []
    plan = SweepPlan(RATES, "grid", 1)
    with ThreadPoolExecutor() as pool, opened(tmp_path, plan) as study, opened(tmp_path, plan) as other:

        def train(setting: Setting) -> None:
            assert waiting[0].result() is False
            finish(setting)

        monkeypatch.setattr(study_lib, "wait_for_claim", claim)
        monkeypatch.setattr(trials, "POLL_SECONDS", 0.01)
        study.optimize(train)


@pytest.mark.parametrize("at", [1, 3, 7])
@pytest.mark.parametrize("operation", ["read_logs", "append_logs"])
def test_a_journal_that_cannot_be_used_any_more_costs_no_setting(
    operation: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.storages.journal import JournalFileBackend

    def act(backend: JournalFileBackend, argument: Any) -> Any:
        if next(calls) >= at:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return plain(backend, argument)

    plain, calls = getattr(JournalFileBackend, operation), itertools.count(1)
    with opened(tmp_path) as study, monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, operation, act)
        with pytest.raises(UserError, match=r"study\.log"):
            study.optimize(finish)
    with opened(tmp_path) as study:
        assert values_done(study) == grid(RATES)


def test_a_line_that_was_being_written_is_dropped(tmp_path: Path) -> None:
    with opened(tmp_path, SweepPlan(RANGES, "random", 1)) as study:
        values_done(study)
    with (tmp_path / "study.log").open("a") as file:
        file.write('{"op_code": 4, "work')
    with opened(tmp_path, SweepPlan(RANGES, "random", 2)) as study:
        assert len(values_done(study)) == 1 and len(study.standings()) == 2


@pytest.mark.parametrize(
    ("plan", "about", "what"),
    [
        (SweepPlan(RANGES, "random", 6), {}, "space"),
        (SweepPlan(RATES, "random", 6), {}, "sampler"),
        (GRID, {"config.epochs": 3.0}, "config.epochs"),
    ],
)
def test_a_study_of_something_else_is_refused(
    plan: SweepPlan, about: dict[str, object], what: str, tmp_path: Path
) -> None:
    with opened(tmp_path, **{"config.epochs": 2.0}):
        pass
    with (
        pytest.raises(UserError, match=f"has another {what} "),
        opened(tmp_path, plan, **{"config.epochs": 2.0, **about}),
    ):
        pass


def test_a_study_begun_before_a_key_was_added_goes_on_with_its_default(tmp_path: Path) -> None:
    with opened(tmp_path, **{"config.epochs": 2.0}):
        pass
    with opened(tmp_path, **{"config.epochs": 2.0, "config.optimizer.ema_decay": 0.0, "config.data.std": [1.0] * 3}):
        pass
    with (
        pytest.raises(UserError, match=r"config\.optimizer\.ema_decay .*0\.0"),
        opened(tmp_path, **{"config.epochs": 2.0, "config.optimizer.ema_decay": 0.5}),
    ):
        pass


def test_a_study_begun_before_a_key_was_renamed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SweepPlan({"optimizer.kind": RATES["rate"]}, "grid", 3)
    with opened(tmp_path, plan, **{"config.optimizer.pace": 2}) as study:
        given_up = die(study, done_before=1)
    names = {"optimizer.kind": "optimizer.sort", "optimizer.pace": "optimizer.speed"}
    for old, new in names.items():
        monkeypatch.setitem(RENAMED, old, new)
    plan = SweepPlan({"optimizer.sort": RATES["rate"]}, "grid", 3)
    with opened(tmp_path, plan, **{"config.optimizer.speed": 2}) as study:
        assert values_done(study) == [{"optimizer.sort": given_up.values["optimizer.kind"]}, {"optimizer.sort": 0.3}]
        assert sorted(one.settings["optimizer.sort"] for one in study.standings()) == [0.1, 0.2, 0.3]
    with (
        pytest.raises(UserError, match=r"another config\.optimizer\.speed .*2"),
        opened(tmp_path, plan, **{"config.optimizer.speed": 3}),
    ):
        pass


def test_tpe_looks_at_results_after_its_first_random_settings(tmp_path: Path) -> None:
    proposals = []
    for sign, folder in enumerate(("up", "down")):

        def train(setting: Setting, sign: int = sign) -> None:
            finish(setting, abs(sign - setting.values["units"] / 64))

        with opened(tmp_path / folder, SweepPlan(RANGES, "tpe", 30)) as study:
            study.optimize(train)
            standings = sorted(study.standings(), key=lambda one: one.number)
            proposals.append([one.settings["units"] for one in standings])
    low, high = proposals
    assert low[:10] == high[:10]
    assert sum(low[10:]) / 20 < 20 < 40 < sum(high[10:]) / 20


def test_a_full_disk_is_one_line_and_what_was_begun_is_repeated(tmp_path: Path) -> None:
    log = tmp_path / "study.log"

    def train(setting: Setting) -> None:
        with full_disk(log.stat().st_size + 10):  # ten bytes of the next line are written
            finish(setting)

    with pytest.raises(UserError, match=r"study\.log.*is the disk full\?"), opened(tmp_path) as study:
        study.optimize(train)
    assert log.read_text().endswith("}\n")
    with opened(tmp_path) as study:
        assert len(values_done(study)) == 6


def test_without_the_driver_of_a_database_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with (
        pytest.raises(UserError, match=r"psycopg.*requirements-database\.txt"),
        opened(tmp_path, storage="postgresql://me:secret@127.0.0.1:1/x"),
    ):
        pass
    assert "psycopg" in (REPOSITORY / "requirements-database.txt").read_text()


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("postgresql://me:secret@127.0.0.1:1/x", "refused"),
        ("nosuch://me:secret@127.0.0.1/x", "nosuch"),
        ("/proc/none/study.log", "--storage=/proc/none"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_the_password(
    storage: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(UserError) as caught, open_study(storage, "name", GRID, tmp_path):
        pass
    assert reason in str(caught.value) and "secret" not in str(caught.value) and "\n" not in str(caught.value)
