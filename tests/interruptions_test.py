"""Runs killed from outside at random times end like an uninterrupted one; a run that does not is reported."""

import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax.checkpoint import Checkpoints, checkpoint_names, restore
from benchmarks import interruptions
from benchmarks.interruptions import Run, Stop, fuzz, summarize

EXAMPLES = 2001


@pytest.mark.slow
def test_killed_runs_equal_the_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = fuzz(2, 1, 0, tmp_path, kinds=("preparing", "save"), examples=EXAMPLES)
    assert [stop.status for trial in results for stop in trial.stops] == [-signal.SIGKILL] * 2
    assert [trial.differences for trial in results] == [[], []]
    assert summarize(results).startswith("2 of 2 runs equal the undisturbed one\n2 kills hit: ")

    finished = tmp_path / "undisturbed" / "run"
    assert_differences_are_told(finished, tmp_path / "tampered", monkeypatch)


def assert_differences_are_told(finished: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Runs the check on copies of a finished run instead of killed processes, some of them changed."""

    def finish(run: Run) -> int:
        shutil.copytree(finished, run.workdir)
        if run.folder.name == "trial1":
            record = run.workdir / "metrics.jsonl"
            record.write_text(record.read_text().replace("0.002", "0.0020001", 1))
        elif run.folder.name == "trial2":
            change_velocity(run.checkpoints)
        return 3 if run.folder.name == "trial3" else 0

    stop = Stop("step", ("step",), epoch=1.0, after_seconds=4.0, ended_in_seconds=0.0, status=-signal.SIGKILL)
    patch.setattr(Run, "finish", finish)
    patch.setattr(Run, "interrupt", lambda *_: stop)
    results = fuzz(4, 1, 0, folder, examples=EXAMPLES)
    expected = [["metrics.jsonl"], ["parameters and velocity"], ["exit status 3"], []]
    assert [trial.differences for trial in results] == expected
    assert summarize(results).startswith("1 of 4 runs equal")
    assert [(folder / f"trial{number}").exists() for number in (1, 2, 3, 4)] == [True, True, True, False]

    patch.setattr(interruptions, "fuzz", lambda *_: results)
    patch.setattr("sys.argv", ["interruptions"])
    with pytest.raises(SystemExit, match="kept in"):
        interruptions.main()


def change_velocity(checkpoints: Path) -> None:
    """Increases one number of the last checkpoint by the smallest possible amount."""
    name = checkpoint_names(checkpoints)[-1]
    restored = restore(checkpoints, name)
    leaf = jax.tree.leaves(restored.tree["velocity"])[0]
    leaf.flat[0] = np.nextafter(leaf.flat[0], np.float32(1))
    with Checkpoints(checkpoints, keep=2) as writer:
        writer.save(name, restored.tree, restored.metadata, best=None)


@pytest.mark.slow
def test_sigterm_in_an_evaluation_saves_and_ends_soon(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", tmp_path / "compiled", EXAMPLES)
    stop = run.interrupt("evaluation", np.random.default_rng(0), signal.SIGTERM)
    log = (run.folder / "log.txt").read_text()
    assert stop.status == 143, log
    assert stop.ended_in_seconds < 10
    assert "SIGTERM: saved at epoch" in log and "To continue: python main.py" in log
    position = checkpoint_names(run.checkpoints)[-1]
    assert f'"examples_seen": {position}' in (run.workdir / "metrics.jsonl").read_text().splitlines()[-1]
