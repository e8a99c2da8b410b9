"""A run that was killed and resumed equals an uninterrupted one, bit for bit."""

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import load_run
from alexnet_jax.checkpoint import checkpoint_names, restore
from alexnet_jax.config_keys import KEYS, POSITIVE, RENAMED, fixed
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import open_dataset
from alexnet_jax.inference.evaluation import evaluate_run
from alexnet_jax.run import run_folder
from alexnet_jax.train import train_and_evaluate
from tests.conftest import REPOSITORY


def run(workdir: Path, prepared_dir: str, point: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.helpers.killed_run", str(workdir), prepared_dir, point]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)


def outcome(workdir: Path) -> dict[str, str]:
    """Digests of what the run ended with."""
    checkpoints = workdir / "checkpoints"
    tree = restore(checkpoints, checkpoint_names(checkpoints)[-1]).tree
    digests = {
        name: hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(tree[name]))).hexdigest()
        for name in ("params", "velocity", "plateau")
    }
    return {**digests, "metrics": (workdir / "metrics.jsonl").read_text()}


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, prepared_dir: str) -> dict[str, str]:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert run(workdir, prepared_dir, "none").returncode == 0
    result = outcome(workdir)
    assert result["metrics"].count('"kind": "division"') >= 1
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "status"),
    [
        ("step", -9),
        ("evaluation", -9),
        ("save", -9),
        ("SIGTERM", 143),
        ("SIGINT", 130),
        ("SIGTERM-evaluation", 143),
    ],
)
def test_killed_and_continued(
    point: str, status: int, tmp_path: Path, prepared_dir: str, uninterrupted: dict[str, str]
) -> None:
    killed = run(tmp_path, prepared_dir, point)
    assert killed.returncode == status, killed.stderr
    if status > 0:
        assert "To continue: python main.py" in killed.stdout
    continued = run(tmp_path, prepared_dir, "none")
    assert continued.returncode == 0, continued.stderr
    assert "continued from epoch" in continued.stdout
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.slow
def test_a_finished_run_says_so_and_is_left_alone(tmp_path: Path, prepared_dir: str) -> None:
    assert run(tmp_path, prepared_dir, "none").returncode == 0
    before = outcome(tmp_path)
    again = run(tmp_path, prepared_dir, "none")
    assert again.returncode == 0
    assert "is finished already" in again.stdout
    assert outcome(tmp_path) == before


def test_a_run_made_before_a_key_was_added_is_opened_and_continued(
    tmp_path: Path, make_config: Callable[..., ConfigDict], prepared_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new key needs no more than its row in the table, and earlier runs stay usable."""
    result = train_and_evaluate(make_config(max_steps=1), tmp_path)
    before = load_run(tmp_path)
    monkeypatch.setitem(KEYS, "data.sharpen", fixed(0.5, "strength of a filter that nobody has written", POSITIVE))
    config = make_config(max_steps=2)
    assert config.data.sharpen == 0.5
    after = load_run(tmp_path)
    assert after.config.data.sharpen == 0.5
    image = np.zeros((40, 40, 3), np.uint8)
    np.testing.assert_array_equal(after.predict(image), before.predict(image))
    assert evaluate_run(tmp_path, prepared_dir=prepared_dir).summary["top1_error"] == result["top1_error"]
    assert train_and_evaluate(config, tmp_path)["count"] == result["count"]
    config.data.sharpen = 0.7
    with pytest.raises(UserError, match=r"config\.data\.sharpen: 0\.5 -> 0\.7"):
        train_and_evaluate(config, tmp_path)
    config.data.sharpen = -1.0
    with pytest.raises(UserError, match=r"config\.data\.sharpen=-1\.0"):
        train_and_evaluate(config, tmp_path / "another")


def test_a_run_made_before_a_key_was_renamed_is_opened_and_continued(
    tmp_path: Path, make_config: Callable[..., ConfigDict], prepared_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = fixed(0.5, "strength of a filter that nobody has written", POSITIVE)
    with monkeypatch.context() as earlier:
        earlier.setitem(KEYS, "data.sharpen", key)
        result = train_and_evaluate(make_config(max_steps=1, **{"data.sharpen": 0.7}), tmp_path)
    monkeypatch.setitem(KEYS, "data.sharpness", key)
    monkeypatch.setitem(RENAMED, "data.sharpen", "data.sharpness")
    after = load_run(tmp_path)
    assert after.config.data.sharpness == 0.7 and "sharpen" not in after.config.data
    assert evaluate_run(tmp_path, prepared_dir=prepared_dir).summary["top1_error"] == result["top1_error"]
    assert train_and_evaluate(make_config(max_steps=2, **{"data.sharpness": 0.7}), tmp_path)["count"] == result["count"]
    with pytest.raises(UserError, match=r"config\.data\.sharpness: 0\.7 -> 0\.5"):
        train_and_evaluate(make_config(max_steps=3), tmp_path)


def test_what_has_changed_since_the_checkpoint_is_told(
    tmp_path: Path,
    make_config: Callable[..., ConfigDict],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config(max_steps=1)
    train_and_evaluate(config, tmp_path)
    dataset, record = open_dataset(config.data), tmp_path / "metrics.jsonl"

    def told() -> str:
        capsys.readouterr()
        run_folder.find(tmp_path, config, dataset)
        return capsys.readouterr().out.replace("\n", " ")

    assert told() == ""
    whole = record.read_text()
    record.write_text(whole.replace('"train_examples": ', '"train_examples": 1'))
    assert "line 1 was edited" in told()
    record.unlink()
    assert "after line 0 were lost" in told()
    record.write_text(whole)
    dataset = dataclasses.replace(dataset, prepared="0" * 64)
    assert "are not those of the run so far" in told()
    monkeypatch.setattr(run_folder, "compute_threads", lambda: 99)
    assert "-> 99" in told()
