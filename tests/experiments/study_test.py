"""What many workers know of one sweep."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.experiments import study as study_lib
from alexnet_jax.experiments.search_space import Range
from alexnet_jax.experiments.study import Plan, Setting, Study, open_study

RATES = {"rate": Range("values", (0.1, 0.2, 0.3)), "kind": Range("values", ((1.0, 2.0), (3.0,)))}
RANGES = {"rate": Range("log_uniform", (0.01, 1.0)), "units": Range("int", (1, 64))}
GRID = Plan(RATES, "grid", 6)


@contextlib.contextmanager
def opened(path: Path, plan: Plan = GRID, pruner: str = "none", **about: object) -> Iterator[Study]:
    with open_study(str(path / "study.log"), "name", plan, about, pruner, warmup=0) as study:
        yield study


def finish(setting: Setting, error: float = 0.5) -> None:
    setting.add(0, error, error + 0.1, of=1)


@contextlib.contextmanager
def as_worker(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(study_lib, "_identity", lambda: name)
        yield


def test_each_setting_of_a_grid_is_done_once_whoever_asks(tmp_path: Path) -> None:
    with opened(tmp_path) as first, opened(tmp_path) as second:
        settings = []
        while (setting := (first, second)[len(settings) % 2].ask()) is not None:
            settings.append(setting)
        assert first.ask() is None and second.ask() is None
        assert [setting.folder for setting in settings] == [0, 1, 2, 3, 4, 5]
        assert [setting.values for setting in settings] == GRID.combinations
        for error, setting in zip((0.3, 0.1, 0.2), settings, strict=False):
            finish(setting, error)
        rows = second.rows()
    assert [(row.number, row.state) for row in rows[:3]] == [(1, "done"), (2, "done"), (0, "done")]
    assert rows[0].errors == (0.1,) and rows[0].test_errors == (pytest.approx(0.2),)
    assert rows[0].settings == {"rate": 0.1, "kind": (3.0,)}
    assert {row.state for row in rows[3:]} == {"running"}


def test_a_larger_count_goes_on_where_a_smaller_ended(tmp_path: Path) -> None:
    values = []
    for count in (2, 5):
        with opened(tmp_path, Plan(RANGES, "random", count)) as study:
            while (setting := study.ask()) is not None:
                values.append(setting.values)
                finish(setting)
    assert values == [study_lib.draw(RANGES, 0, number) for number in range(5)]


def test_seeds_are_averaged_and_the_last_one_ends_the_setting(tmp_path: Path) -> None:
    with opened(tmp_path) as study:
        setting = study.ask()
        assert setting is not None
        setting.add(0, 0.2, 0.3, of=2)
        assert not setting.is_over and study.rows()[0].state == "running"
        setting.add(1, 0.4, 0.5, of=2)
        assert setting.is_over and study.rows()[0].errors == (0.2, 0.4)


def test_failures_are_recorded_and_come_last(tmp_path: Path) -> None:
    with opened(tmp_path) as study:
        for is_its_fault in (True, False):
            setting = study.ask()
            assert setting is not None
            setting.report(1, 0.01)
            setting.fail("the loss is nan", is_its_fault)
        finished = study.ask()
        assert finished is not None
        finish(finished, 0.9)
        rows = study.rows()
    assert [(row.number, row.state, row.failure) for row in rows] == [
        (2, "done", None),
        (0, "failed", "the loss is nan"),
        (1, "failed", "the loss is nan"),
    ]


def test_what_is_worse_than_the_median_is_pruned(tmp_path: Path) -> None:
    with opened(tmp_path, pruner="median") as study:
        for error in (0.1, 0.2, 0.3, 0.4, 0.5):
            setting = study.ask()
            assert setting is not None
            setting.report(1, error)
            assert not setting.is_over
            finish(setting, error)
        setting = study.ask()
        assert setting is not None
        setting.report(1, 0.31)
        assert setting.is_over
        row = study.rows()[-1]
    assert (row.state, row.errors) == ("pruned", (0.31,))


@pytest.mark.parametrize(
    "name", ["elsewhere/1@0", f"{study_lib._host()}/{os.getppid()}@0.5"], ids=["elsewhere", "here"]
)
def test_a_dead_workers_setting_is_done_again_by_the_next_in_the_same_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with as_worker(name, monkeypatch), opened(tmp_path) as dying:
        lost = dying.ask()
        done = dying.ask()
        assert lost is not None and done is not None
        finish(done)
    monkeypatch.setattr(study_lib, "SILENT_SECONDS", -1)
    with opened(tmp_path) as study:
        again = study.ask()
        assert again is not None
        assert (again.folder, again.values) == (lost.folder, lost.values)
        later = study.ask()
        assert later is not None and later.folder == 2 and later.values == GRID.combinations[2]
        finish(again, 0.25)
        finish(lost, 0.99)  # it was not dead
        lost.report(9, 0.5)
        assert lost.is_over
        rows = {row.number: row for row in study.rows()}
    assert rows[0].errors == (0.25,) and len(rows) == 3


def test_a_live_worker_keeps_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    sleeper.start()
    try:
        alive = f"{study_lib._host()}/{sleeper.pid}@{psutil.Process(sleeper.pid).create_time()}"
        for number, name in enumerate(["elsewhere/1@0", alive]):
            with as_worker(name, monkeypatch), opened(tmp_path) as other:
                assert other.ask() is not None
            with opened(tmp_path) as study:
                setting = study.ask()
                assert setting is not None and setting.folder == 2 * number + 1
    finally:
        sleeper.kill()
        sleeper.join()
    with opened(tmp_path) as study:
        setting = study.ask()
        assert setting is not None and setting.folder == 2


def test_a_line_that_was_being_written_is_dropped(tmp_path: Path) -> None:
    with opened(tmp_path) as study:
        setting = study.ask()
        assert setting is not None
        finish(setting)
    with (tmp_path / "study.log").open("a") as file:
        file.write('{"op_code": 4, "work')
    with opened(tmp_path) as study:
        setting = study.ask()
        assert setting is not None and setting.folder == 1
        assert len(study.rows()) == 2


@pytest.mark.parametrize(
    ("plan", "about", "what"),
    [
        (Plan(RANGES, "random", 6), {}, "space"),
        (Plan(RATES, "random", 6), {}, "sampler"),
        (GRID, {"config.epochs": 3.0}, "config.epochs"),
    ],
)
def test_a_study_of_something_else_is_refused(plan: Plan, about: dict[str, object], what: str, tmp_path: Path) -> None:
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
        pytest.raises(UserError, match=r"has another config\.optimizer\.ema_decay \(0\.0\)"),
        opened(tmp_path, **{"config.epochs": 2.0, "config.optimizer.ema_decay": 0.5}),
    ):
        pass


def test_tpe_looks_at_results_after_its_first_random_settings(tmp_path: Path) -> None:
    proposals = []
    for sign, folder in enumerate(("up", "down")):
        with opened(tmp_path / folder, Plan(RANGES, "tpe", 30)) as study:
            for _ in range(30):
                setting = study.ask()
                assert setting is not None
                finish(setting, abs(sign - setting.values["units"] / 64))
            proposals.append([row.settings["units"] for row in sorted(study.rows(), key=lambda row: row.number)])
    low, high = proposals
    assert low[:10] == high[:10]
    assert sum(low[10:]) / 20 < 20 < 40 < sum(high[10:]) / 20


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("postgresql://me:secret@127.0.0.1:1/x", "refused"),
        ("nosuch://me:secret@127.0.0.1/x", "nosuch"),
        ("/proc/none/study.log", "/proc/none"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_the_password(
    storage: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(UserError) as caught, open_study(storage, "name", GRID, {}, "none", 0):
        pass
    assert reason in str(caught.value) and "secret" not in str(caught.value) and "\n" not in str(caught.value)
