"""Whole sweeps: in this process, and in several processes of which two are killed."""

import csv
import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alexnet_jax.cli import sweep
from alexnet_jax.errors import UserError
from alexnet_jax.run.metrics_log import read_metrics
from tests.conftest import REPOSITORY
from tests.helpers.processes import free_port


def arguments(tmp_path: Path, prepared_dir: str, space: str, *words: str) -> list[str]:
    (tmp_path / "space.py").write_text(f"def get_space():\n    return {space}\n")
    common = ["--config=configs/alexnet.py:digits,lenet,smoke", "--config.max_steps=0", "--config.epochs=0.2"]
    folders = [f"--config.data.prepared_dir={prepared_dir}", f"--workdir={tmp_path / 'sweep'}"]
    return [*common, "--config.eval_every_epochs=0.1", *folders, f"--space={tmp_path / 'space.py'}", *words]


def leaderboard(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder) if record["kind"] == "epoch"]


GRID = "{'optimizer.learning_rate': {'values': [0.002, 1e20]}, 'optimizer.momentum': {'values': [0.5, 0.9]}}"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_sweep_ends_with_a_leaderboard_of_runs_that_main_continues(
    processes: int,
    tmp_path: Path,
    prepared_dir: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = arguments(tmp_path, prepared_dir, GRID, "--sampler=grid", "--seeds=0,1", f"--processes={processes}")
    sweep.main(words)
    printed = capfd.readouterr().out
    rows = leaderboard(tmp_path / "sweep")
    assert [row["state"] for row in rows] == ["done", "done", "failed", "failed"]
    assert {row["trial"] for row in rows[:2]} == {"0", "1"} and all(
        "training loss" in row["failure"] for row in rows[2:]
    )
    assert float(rows[0]["validation_error_mean"]) <= float(rows[1]["validation_error_mean"]) <= 1
    folders = [tmp_path / "sweep" / "trial-0000" / f"seed-{seed}" for seed in (0, 1)]
    errors = [epochs_of(folder)[-1]["validation_top1_error"] for folder in folders]
    first = next(row for row in rows if row["trial"] == "0")
    assert float(first["validation_error_mean"]) == pytest.approx(sum(errors) / 2)
    for text in ("4 settings of optimizer.learning_rate, optimizer.momentum", "4 of 4 settings are done", "trial    2"):
        assert text in printed


@pytest.mark.slow
def test_the_command_of_a_trial_continues_it(tmp_path: Path, prepared_dir: str) -> None:
    space = "{'optimizer.momentum': {'uniform': (0.4, 0.6)}}"
    sweep.main(arguments(tmp_path, prepared_dir, space, "--sampler=random", "--trials=1", "--processes=1"))
    folder = tmp_path / "sweep" / "trial-0000" / "seed-0"
    words = json.loads((folder / "versions.json").read_text())["command"]
    assert words[0] == "main.py"
    longer = [sys.executable, *words, "--config.epochs=0.3"]
    done = subprocess.run(longer, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(epochs_of(folder)) == 3


def test_a_finished_sweep_does_nothing_again_and_a_longer_one_goes_on(
    tmp_path: Path, prepared_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    space = "{'optimizer.learning_rate': {'log_uniform': (1e-4, 1e-2)}}"
    words = arguments(tmp_path, prepared_dir, space, "--sampler=random", "--processes=1")
    for count in (1, 1, 2):
        sweep.main([*words, f"--trials={count}"])
        times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "sweep").glob("*/*/timing.jsonl"))]
        if count == 1:
            first = times
    assert times[:1] == first and len(times) == 2
    assert sorted(row["trial"] for row in leaderboard(tmp_path / "sweep")) == ["0", "1"]


@pytest.mark.slow
def test_a_setting_that_is_worse_than_the_median_is_given_up(
    tmp_path: Path, prepared_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    rates = [0.002, 0.0021, 0.0022, 0.0023, 0.0024, 1e-9]
    space = f"{{'optimizer.learning_rate': {{'values': {rates}}}}}"
    words = arguments(tmp_path, prepared_dir, space, "--sampler=grid", "--seeds=3,4", "--config.epochs=0.6")
    sweep.main([*words, "--processes=1"])
    worst = leaderboard(tmp_path / "sweep")[-1]
    assert (worst["trial"], worst["state"], worst["test_error_mean"]) == ("5", "pruned", "")
    assert not (tmp_path / "sweep" / "trial-0005" / "seed-4").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--sampler=grid", "--trials=3"], "a grid has all its 4 settings"),
        (["--trials=0"], "at least 1"),
        (["--config.optimizer.lr=1"], "did you mean config.optimizer.learning_rate"),
    ],
)
def test_mistakes_are_told(
    words: list[str], reason: str, tmp_path: Path, prepared_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((UserError, SystemExit)) as raised:  # a flag that does not exist ends the program at once
        sweep.main(arguments(tmp_path, prepared_dir, GRID, *words))
    assert reason in capsys.readouterr().err + str(raised.value)


@dataclasses.dataclass(frozen=True)
class Server:
    """The URL of a database, and a function that stops its server."""

    url: str
    stop: Callable[[], object]


@pytest.fixture
def postgres() -> Iterator[Server]:
    """A database server that is started for the test."""
    found = [shutil.which("initdb"), *map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    initdb = next(filter(None, found), None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed")
    user = "postgres" if os.geteuid() == 0 else None  # the server does not run as root
    with tempfile.TemporaryDirectory() as folder:
        if user is not None:
            shutil.chown(folder, user)
        options: dict[str, Any] = {"user": user, "cwd": folder, "check": True, "stdout": subprocess.DEVNULL}
        subprocess.run([initdb, "-D", f"{folder}/data", "-U", "me", "--auth=trust"], **options)
        port = free_port()
        server = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        program = Path(initdb).resolve().parent / "pg_ctl"
        control = [program, "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", server]
        subprocess.run([*control, "start"], **options)
        stop = functools.partial(subprocess.run, [*control, "-m", "immediate", "stop"], **options)
        try:
            yield Server(f"postgresql://me@127.0.0.1:{port}/postgres", stop)
        finally:
            if (Path(folder) / "data" / "postmaster.pid").exists():
                stop()


@pytest.mark.slow
def test_two_workers_of_a_database_are_killed_and_replaced(tmp_path: Path, prepared_dir: str, postgres: Server) -> None:
    import optuna

    space = "{'optimizer.learning_rate': {'values': [0.001, 0.002, 0.003, 0.004]}}"
    length = ["--config.epochs=16", "--config.eval_every_epochs=4", "--config.batch_size=32"]
    words = arguments(tmp_path, prepared_dir, space, *length, "--sampler=grid", "--pruner=none", "--processes=1")
    command = [sys.executable, "-m", "alexnet_jax", "sweep", *words, f"--storage={postgres.url}"]

    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)

    workers = [start() for _ in range(2)]
    try:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "sweep").glob("*/*/checkpoints/*/*"))) < 2:
            assert time.monotonic() < deadline and all(worker.poll() is None for worker in workers)
            time.sleep(0.1)
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.communicate()
        workers = [start() for _ in range(2)]
        for worker in workers:
            errors = worker.communicate(timeout=240)[1]
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    rows = leaderboard(tmp_path / "sweep")
    assert sorted(row["trial"] for row in rows) == ["0", "1", "2", "3"]
    assert {row["state"] for row in rows} <= {"done", "running"} and rows[0]["state"] == "done"
    storage = optuna.storages.RDBStorage(postgres.url)
    trials = optuna.load_study(study_name="sweep", storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()
    states = [trial.state.name for trial in trials]
    assert states.count("COMPLETE") == 4 and 1 <= states.count("FAIL") <= 3
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert sorted(trial.user_attrs["folder"] for trial in done) == [0, 1, 2, 3]
    assert sorted(trial.params["optimizer.learning_rate"] for trial in done) == [0.001, 0.002, 0.003, 0.004]
    for number in range(4):
        epochs = epochs_of(tmp_path / "sweep" / f"trial-{number:04}" / "seed-0")
        assert [record["epoch"] for record in epochs] == pytest.approx([4, 8, 12, 16], abs=0.1)


@pytest.mark.slow
def test_a_database_that_is_lost_ends_the_sweep_with_a_line(
    tmp_path: Path, prepared_dir: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    space = "{'optimizer.learning_rate': {'values': [0.001, 0.002]}}"
    words = arguments(tmp_path, prepared_dir, space, "--sampler=grid", "--processes=1", f"--storage={postgres.url}")
    train = sweep.Sweep._train

    def stop_then_train(self: sweep.Sweep, setting: Any) -> Any:
        postgres.stop()
        return train(self, setting)

    monkeypatch.setattr(sweep.Sweep, "_train", stop_then_train)
    with pytest.raises(UserError, match=r"--storage|postgresql"):
        sweep.main(words)
