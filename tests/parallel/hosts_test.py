"""Several processes on one machine: the same run as one process, and every failure ends with a one-line message."""

import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from alexnet_jax.checkpoint import checkpoint_names
from alexnet_jax.cli import audit
from alexnet_jax.errors import LostProcessError, UserError
from alexnet_jax.parallel import hosts
from alexnet_jax.run.metrics_log import read_metrics
from tests.helpers.processes import finish, free_port, is_silent, joining, start

STEPS = 17  # of two epochs of 101 images in batches of 12


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, prepared_dir: str) -> list[dict[str, Any]]:
    """The records of a run of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    train(1, workdir, prepared_dir)
    return read_metrics(workdir)


def train(count: int, workdir: Path, prepared_dir: str, *changes: str, **settings: Any) -> str:
    """Runs some processes to their end and returns the output, which only process 0 prints."""
    results = finish(start(count, workdir, prepared_dir, *changes, **settings))
    assert [status for status, *_ in results] == [0] * count, results
    assert all(is_silent(out) and not errors for _, out, errors in results[1:]), results
    record = read_metrics(workdir)
    steps = [entry["examples_seen"] for entry in record if entry["kind"] == "step"]
    assert [entry["kind"] for entry in record].count("start") == 1
    assert steps == list(range(12, steps[-1] + 1, 12))
    return results[0][1]


def assert_same(record: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Losses may differ by the order of summation; images, counts and learning rates may not."""
    assert len(record) == len(other)
    for entry, expected in zip(record, other, strict=True):
        losses = {key: pytest.approx(value, rel=1e-5) for key, value in expected.items() if key.endswith("loss")}
        assert entry == {**expected, **losses}


@pytest.mark.slow
def test_tasks_of_slurm_with_two_devices_each(alone: list[dict[str, Any]], tmp_path: Path, prepared_dir: str) -> None:
    assert "4 x cpu, " in train(2, tmp_path / "run", prepared_dir, devices=2, slurm=True)
    assert_same(read_metrics(tmp_path / "run"), alone)


@pytest.mark.slow
def test_networks_divided_over_the_devices_of_each(
    alone: list[dict[str, Any]], tmp_path: Path, prepared_dir: str
) -> None:
    mesh = ["--config.parallel.mode=mesh", "--config.parallel.towers=2"]
    assert "4 x cpu, " in train(2, tmp_path / "run", prepared_dir, *mesh, devices=2)
    assert_same(read_metrics(tmp_path / "run"), alone)


@pytest.mark.slow
def test_continued_by_other_numbers_of_processes(
    alone: list[dict[str, Any]], tmp_path: Path, prepared_dir: str
) -> None:
    for count, steps in [(2, 4), (1, 12), (3, STEPS)]:
        out = train(count, tmp_path, prepared_dir, f"--config.max_steps={steps}")
        assert ("continued from epoch" in out) == (steps > 4)
    # Each stop was the end of a run, with an evaluation and a test more.
    one, many = ([entry for entry in record if is_in_both(entry)] for record in (alone, read_metrics(tmp_path)))
    assert_same(many, one)
    audit.main([str(tmp_path)])


def is_in_both(entry: dict[str, Any]) -> bool:
    """Whether a record occurs both in runs that are stopped on the way and in those that are not."""
    return entry["kind"] in ("step", "division") or (entry["kind"], entry["examples_seen"]) == ("test", STEPS * 12)


def start_endless(run: Path, prepared_dir: str, *changes: str) -> list[subprocess.Popen[str]]:
    """Two processes that are training."""
    processes = start(2, run, prepared_dir, "--config.epochs=100000.0", *changes)
    deadline, record = time.monotonic() + 60, run / "metrics.jsonl"
    while not (record.exists() and '"kind": "epoch"' in record.read_text()):
        if time.monotonic() > deadline or processes[0].poll() is not None:
            raise AssertionError(finish(processes, 1))
        time.sleep(0.1)
    return processes


@pytest.mark.slow
def test_sigterm_to_one_stops_and_saves_all(tmp_path: Path, prepared_dir: str) -> None:
    processes = start_endless(tmp_path, prepared_dir)
    processes[1].send_signal(signal.SIGTERM)
    (status, out, errors), other = finish(processes)
    assert (status, errors) == (143, "") and other[0] == 143 and is_silent(other[1]) and not other[2]
    assert "SIGTERM: saved at epoch" in out and "To continue: python main.py" in out
    position = checkpoint_names(tmp_path / "checkpoints")[-1]
    assert position == read_metrics(tmp_path)[-1]["examples_seen"]
    train(1, tmp_path, prepared_dir, "--config.epochs=100000.0", f"--config.max_steps={position // 12 + 2}")
    audit.main([str(tmp_path)])


@pytest.mark.slow
def test_lost_process_ends_the_others(tmp_path: Path, prepared_dir: str) -> None:
    seconds = 20  # longer than any first step takes on a busy machine
    hanging = start_endless(tmp_path / "1", prepared_dir, f"--config.parallel.timeout_seconds={seconds}")
    hanging[1].send_signal(signal.SIGSTOP)
    try:
        killed = start_endless(tmp_path / "2", prepared_dir)
        killed[1].kill()
        assert_ended_in_words(killed, "another process of this run has ended; see its message (Gloo ")
        hanging[0].wait(2 * seconds)
    finally:
        hanging[1].kill()
    assert_ended_in_words(hanging, f"no progress for {seconds} s (config.parallel.timeout_seconds) after ")


def assert_ended_in_words(processes: list[subprocess.Popen[str]], text: str) -> None:
    """Asserts that process 0 ended by itself, with one line that starts with the text."""
    status, _, errors = finish(processes, 30)[0]
    assert status == 1 and errors.count("\n") == 1
    assert errors.startswith(f"error: process 0: {text}")


@pytest.mark.slow
def test_other_settings_are_refused(tmp_path: Path, prepared_dir: str) -> None:
    results = finish(start(2, tmp_path / "run", prepared_dir, own={1: ["--config.seed=1"]}))
    for number, (status, _, errors) in enumerate(results):
        assert status == 2, results
        expected = "process 1 has other settings than process 0; give all processes the same"
        assert errors == f"error: process {number}: {expected}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_error_of_one_ends_all(tmp_path: Path, prepared_dir: str) -> None:
    file = tmp_path / "file"
    file.touch()
    results = finish(start(3, tmp_path / "run", prepared_dir, own={1: [f"--config.data.prepared_dir={file}"]}))
    assert [status for status, *_ in results] == [1, 2, 1], results
    assert results[1][2].startswith(f"error: process 1: {file}") and results[1][2].count("\n") == 1
    for number in (0, 2):
        assert results[number][2] == (
            f"error: process {number}: another process of this run has failed; see its message\n"
        )


@pytest.mark.slow
def test_nobody_to_join_is_one_line(tmp_path: Path, prepared_dir: str) -> None:
    timeout = "--config.parallel.timeout_seconds=3"
    with socket.create_server(("", 0)) as server:
        used = server.getsockname()[1]
        cases = {
            "not all processes have joined within 3 s": joining(1, 2, free_port()),
            "process 0 cannot listen on this port (Address already in use); try another": joining(0, 2, used),
            "Outside a cluster that JAX detects, give": ["--config.parallel.coordinator=auto"],
        }
        processes = [start(1, tmp_path, prepared_dir, timeout, *flags)[0] for flags in cases.values()]
        results = finish(processes)
    for text, (status, out, errors) in zip(cases, results, strict=True):
        assert (status, out) == (2, ""), errors
        assert errors.startswith("error: config.parallel.coordinator=") and text in errors and errors.count("\n") == 1


def test_watchdog_ends_the_process_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[BaseException] = []
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "_leave", ended.append)
    with hosts.Watchdog(0.2, "Advice") as watchdog:
        for step in range(8):
            time.sleep(0.05)
            watchdog.progress(f"step {step}")
        assert not ended
        time.sleep(0.5)
    assert isinstance(ended[0], LostProcessError)
    assert "no progress for 0.2 s" in str(ended[0]) and "after step 7: " in str(ended[0])
    seen = len(ended)
    time.sleep(0.2)
    assert len(ended) == seen


def test_one_process_asks_nobody() -> None:
    tree = {"kernel": object()}
    assert hosts.from_main(lambda: (tree, "data")) == (tree, "data")
    assert hosts.on_main(lambda: tree) is tree
    assert hosts.any_process(True) and not hosts.any_process(False)
    with pytest.raises(UserError, match="bad"), hosts.together():
        raise UserError("bad")


def test_errors_of_jax_become_readable() -> None:
    text = "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read error [::1]:9: Reset"
    assert hosts._brief(RuntimeError(f"{text}\nmore")) == "Gloo all-reduce failed: Read error [::1]:9: Reset"
    assert hosts._brief(ValueError("word " * 100)).endswith("word ...")
