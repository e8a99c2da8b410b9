"""A trace of some steps of a run, which changes nothing else."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.checkpoint import checkpoint_names, restore
from alexnet_jax.errors import TrainingDivergedError
from alexnet_jax.train import train_and_evaluate

MakeConfig = Callable[..., ConfigDict]


def events(workdir: Path) -> Counter[str]:
    """How often each name is in the run's only trace."""
    (trace,) = (workdir / "profile").rglob("*.trace.json.gz")
    assert list(trace.parent.glob("*.xplane.pb"))
    return Counter(event.get("name", "") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"])


def outcome(workdir: Path) -> tuple[bytes, list[Any]]:
    tree = restore(workdir / "checkpoints", checkpoint_names(workdir / "checkpoints")[-1]).tree
    return (workdir / "metrics.jsonl").read_bytes(), jax.tree.leaves(tree)


def assert_equal(one: Path, other: Path) -> None:
    (metrics, leaves), (other_metrics, other_leaves) = outcome(one), outcome(other)
    assert metrics == other_metrics
    for leaf, other_leaf in zip(leaves, other_leaves, strict=True):
        np.testing.assert_array_equal(leaf, other_leaf)


@pytest.mark.parametrize(
    ("profile_steps", "eval_every_epochs", "recorded"),
    [pytest.param(2, 9.0, 2, marks=pytest.mark.slow), (100, 9.0, 3), (2, 1.0, 1)],
    ids=["as asked for", "to the end of the run", "to the next evaluation"],
)
def test_a_run_of_six_steps(
    profile_steps: int,
    eval_every_epochs: float,
    recorded: int,
    tmp_path: Path,
    make_config: MakeConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"max_steps": 6, "eval_every_epochs": eval_every_epochs}  # an epoch is two steps
    train_and_evaluate(make_config(**changes), tmp_path / "plain")
    assert not (tmp_path / "plain" / "profile").exists()
    train_and_evaluate(make_config(profile_steps=profile_steps, **changes), tmp_path / "traced")
    assert_equal(tmp_path / "plain", tmp_path / "traced")
    names = events(tmp_path / "traced")
    assert names["train_step"] == recorded
    assert any("fusion" in name for name in names)  # what XLA made of the step
    assert f"Trace of {recorded} steps in {tmp_path / 'traced' / 'profile'}: open" in capsys.readouterr().out


@pytest.mark.slow
def test_a_continued_run_may_be_traced(tmp_path: Path, make_config: MakeConfig) -> None:
    train_and_evaluate(make_config(max_steps=7), tmp_path / "plain")
    train_and_evaluate(make_config(max_steps=2), tmp_path / "continued")
    train_and_evaluate(make_config(max_steps=7, profile_steps=1), tmp_path / "continued")
    assert events(tmp_path / "continued")["train_step"] == 1


def test_a_run_that_diverges_leaves_its_trace_and_no_recording(tmp_path: Path, make_config: MakeConfig) -> None:
    changes = {
        "profile_steps": 9,
        "eval_every_epochs": 9.0,
        "optimizer.learning_rate_multipliers": (("*/kernel", 1.5, 1e9),),
    }
    with pytest.raises(TrainingDivergedError):
        train_and_evaluate(make_config(max_steps=9, **changes), tmp_path)
    assert events(tmp_path)["train_step"]
    with pytest.raises(RuntimeError, match="No profile started"):
        jax.profiler.stop_trace()
