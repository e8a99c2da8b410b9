"""A run that was killed and continued equals one that was not, bit for bit."""

import hashlib
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from alexnet_jax.checkpoint import checkpoint_names, restore
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


def test_a_finished_run_says_so_and_is_left_alone(tmp_path: Path, prepared_dir: str) -> None:
    assert run(tmp_path, prepared_dir, "none").returncode == 0
    before = outcome(tmp_path)
    again = run(tmp_path, prepared_dir, "none")
    assert again.returncode == 0
    assert "is finished already" in again.stdout
    assert outcome(tmp_path) == before
