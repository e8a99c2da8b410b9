"""When a run counts as started, and the diagnosis of a stuck one."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.config import check
from alexnet_jax.data.storage import InMemoryRecords
from alexnet_jax.diagnosis.layer_statistics import measure_layers
from alexnet_jax.diagnosis.linear_probe import probe_labels
from alexnet_jax.diagnosis.start_watch import StartWatch
from alexnet_jax.errors import TrainingStuckError, UserError
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.models.presets import PRESETS
from alexnet_jax.train import train_and_evaluate
from alexnet_jax.train_state import init_variables
from benchmarks import faults
from configs import alexnet

SHARES = np.full(10, 0.1)


def stuck_at(losses: Sequence[float] | np.ndarray, after: int, shares: np.ndarray = SHARES) -> int | None:
    watch = StartWatch(shares, after)
    return next((step for step, loss in enumerate(losses, start=1) if watch.is_stuck(step, loss)), None)


def noise(steps: int, deviation: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, deviation, steps)


def test_a_run_at_chance_level_is_stuck() -> None:
    losses = math.log(10) + noise(2000, 0.02)
    assert stuck_at(losses, after=1000) == 1000
    assert stuck_at(losses, after=0) is None
    assert stuck_at(losses + 3, after=1000) == 1000


def test_a_run_that_learns_slowly_but_surely_is_not() -> None:
    slow = math.log(10) * (1 - 0.02 * np.arange(1000) / 1000) + noise(1000, 0.02)
    assert slow.min() > 0.94 * math.log(10)
    assert stuck_at(slow, after=1000) is None


def test_a_few_lucky_steps_are_no_start_and_a_start_is_for_good() -> None:
    lucky = math.log(10) + noise(1000, 0.4)  # small batches
    lucky[::100] = 1.0
    assert stuck_at(lucky, after=1000) == 1000
    assert stuck_at([1.0] * 200 + [2.4] * 1000, after=500) is None


def test_chance_level_is_measured_by_the_shares_of_the_classes() -> None:
    rare = np.array([0.9, 0.05, 0.0, 0.05])
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.05)
    assert StartWatch(rare, 10).chance == pytest.approx(entropy)
    assert stuck_at([entropy + 0.001] * 500, after=400, shares=rare) == 400
    assert StartWatch(np.ones(1), 10).chance == 0


def test_a_relation_of_images_and_labels_is_found_if_there_is_one() -> None:
    generator = np.random.default_rng(0)
    for classes in (2, 1000):
        labels = generator.integers(0, classes, 20 * classes if classes > 2 else 300).astype(np.int32)
        colours = generator.integers(100, 150, (classes, 1, 1, 3))
        images = (colours[labels] + generator.integers(-90, 90, (len(labels), 9, 9, 3))).astype(np.uint8)
        related = probe_labels(InMemoryRecords(images, labels))
        assert related is not None and related.p_value < 1e-4 and related.accuracy > related.chance
        unrelated = probe_labels(InMemoryRecords(images, generator.permutation(labels)))
        assert unrelated is not None and unrelated.p_value > 1e-3
    assert probe_labels(InMemoryRecords(images[:20], labels[:20])) is None
    assert probe_labels(InMemoryRecords(images, np.zeros_like(labels))) is None


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["cifar_11pct", "bn"])
def test_layers_are_measured_in_every_kind_of_network(preset: str) -> None:
    config = alexnet.get_config(f"synthetic,{preset},smoke")
    crop = config.data.crop
    model = get_model(config.model, num_classes=2)
    images = jax.random.normal(jax.random.key(0), (4, crop, crop, 3))
    first, other = init_variables(model, crop, 0), init_variables(model, crop, 1)
    layers = measure_layers(model, first, other, images, np.array([0, 1, 0, 1]))
    assert len(layers) == len(model.layers)
    for layer in layers:
        assert all(np.isfinite(value) for value in dataclasses.astuple(layer)[1:])
        assert layer.output_std > 0 and layer.gradient > 0 and layer.dead < 1
        assert layer.moved == pytest.approx(2**0.5, rel=0.3)  # kernels that were drawn independently
        if preset != "cifar_11pct":
            assert layer.kernel_std == pytest.approx(layer.he_std, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("biases from -10 in hidden layers", "biases"),
        ("labels shuffled", "labels"),
        ("learning rate 1e-7", "learning rate"),
    ],
)
def test_a_planted_fault_is_named(name: str, cause: str, prepared_dir: str) -> None:
    fault = next(fault for fault in faults.FAULTS if fault.name == name)
    with mock.patch.object(faults, "STEPS", 40):
        error = faults.run_fault(fault, prepared_dir)
    assert isinstance(error, TrainingStuckError) and error.exit_code == 1
    assert faults.cause_of(error) == cause


def test_kernels_that_are_too_small_are_named(
    tmp_path: Path, make_config: Callable[..., ConfigDict], capsys: pytest.CaptureFixture[str]
) -> None:
    layers = tuple(dataclasses.replace(layer, init=1e-4) for layer in PRESETS["lenet"]["layers"])
    config = make_config(stuck_after_steps=4, max_steps=9, **{"checkpoint.every_steps": 2})
    config.model.preset = "small"
    with (
        mock.patch.dict(PRESETS, {"small": {**PRESETS["lenet"], "layers": layers}}),
        pytest.raises(TrainingStuckError, match=r"\d steps.*checkpoints/\d+.*initialisation"),
    ):
        train_and_evaluate(config, tmp_path)
    assert "gradient/kernel" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_healthy_run_is_left_alone(seed: int, prepared_dir: str) -> None:
    assert faults.run_healthy("synthetic,lenet", 100, seed, prepared_dir) is None


@pytest.mark.parametrize("value", [-1, "soon"])
def test_impossible_values_are_refused(value: object) -> None:
    config = alexnet.get_config().to_dict()
    with pytest.raises(UserError, match=r"config\.stuck_after_steps"):
        check({**config, "stuck_after_steps": value})
