"""The runs of the 2012 source, from ImageNet's own tars to the test, with every event of their schedules.

Scaled down: 1,004 small images, a narrow network, 4 epochs in place of 90.
"""

import dataclasses
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import augment
from alexnet_jax.data import imagenet
from alexnet_jax.experiment import open_experiment
from alexnet_jax.models.presets import PRESETS
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.system.signals import StopSignals
from alexnet_jax.train import Run
from configs import alexnet
from tests.data.imagenet_test import (
    SYNSETS,
    TRAIN,
    VALIDATION,
    VALIDATION_IMAGES,
    colour,
    picture,
    train_files,
    write_tar,
    write_train,
)

EPOCHS, NOISE_UNTIL, CUT, FROZEN = 4.0, 3.0, 2.5, 3.25
EXAMPLES, BATCH = len(SYNSETS) + 4, 64
EVENTS = {
    "source": (("conv1/kernel", CUT, 0.1), ("conv1/*", FROZEN, 0.0)),
    "run170": (("conv1/*", FROZEN, 0.0),),
}


@dataclasses.dataclass
class Seen:
    """A step: the epoch at which it began, and its learning rates and parameters of conv1."""

    epoch: float
    rates: dict[str, float]
    conv1: dict[str, np.ndarray]


@pytest.fixture
def tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ILSVRC-2012 as it is downloaded, with an image or so of each class."""
    monkeypatch.setattr(imagenet, "VALIDATION_IMAGES", VALIDATION_IMAGES)
    monkeypatch.setattr(imagenet, "TRAIN_IMAGES", EXAMPLES)
    write_train(tmp_path / TRAIN, train_files())
    numbers = random.Random(1).sample(range(1, VALIDATION_IMAGES + 1), VALIDATION_IMAGES)
    write_tar(tmp_path / VALIDATION, [(f"ILSVRC2012_val_{n:08d}.JPEG", picture(colour(n))) for n in numbers])
    return tmp_path


@pytest.fixture(autouse=True)
def thin_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the channels."""
    for preset in EVENTS:
        layers = PRESETS[preset]["layers"]
        thin = tuple(dataclasses.replace(layer, features=layer.features // 8) for layer in layers)
        monkeypatch.setitem(PRESETS, preset, {**PRESETS[preset], "layers": thin})  # type: ignore[arg-type]


def scaled_down(preset: str, folder: Path) -> ConfigDict:
    """The preset as for ImageNet; its events keep their factors and come at other epochs."""
    config = alexnet.get_config(f"imagenet2012,{preset}")
    assert [(row[0], row[2]) for row in config.optimizer.learning_rate_multipliers] == [
        (r[0], r[2]) for r in EVENTS[preset]
    ]
    assert 0 < config.data.color_noise_until_epoch <= config.optimizer.learning_rate_multipliers[0][1]
    config.optimizer.learning_rate_multipliers = EVENTS[preset]
    if config.optimizer.schedule == "plateau":  # which there is none of in so few epochs: as docs/fidelity.md says
        config.optimizer.update(schedule="step", step_epochs=tuple(EPOCHS * part / 4 for part in (1, 2, 3)))
    config.update({"epochs": EPOCHS, "batch_size": BATCH, "eval_every_epochs": 1.0, "log_every_steps": 1})
    config.data.update({"dir": str(folder), "prepared_dir": str(folder / "data"), "image_size": 56, "crop": 52})
    config.data.update({"color_noise_until_epoch": NOISE_UNTIL, "num_threads": 2})
    config.model.hidden_width, config.parallel.num_devices = 16, 1
    return config


@pytest.fixture
def noise_of_epochs(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[bool]]:
    """For each epoch, whether examples differed from those without colour noise."""
    found: dict[int, set[bool]] = {}

    def note(epochs: np.ndarray, noisy: np.ndarray) -> None:
        for epoch, is_noisy in zip(epochs.tolist(), noisy.tolist(), strict=True):
            found.setdefault(epoch, set()).add(is_noisy)

    def watched(p: augment.Preprocessing, images: Any, keys: Any, epoch: Any) -> Any:
        with_noise, without = (original(q, images, keys, epoch) for q in (p, dataclasses.replace(p, color_noise=0.0)))
        noisy = jnp.any(jnp.abs(with_noise - without) > 1e-3, axis=(1, 2, 3))
        jax.debug.callback(note, epoch, noisy)
        return with_noise

    original = augment.training_images
    monkeypatch.setattr(augment, "training_images", watched)
    return found


def steps(config: ConfigDict, workdir: Path) -> list[Seen]:
    """Runs from end to end and returns the input of each step."""
    experiment, seen = open_experiment(config), list[Seen]()

    def watched(state: Any, batch: Any) -> Any:
        rates = {
            f"{layer}/{name}": float(state.learning_rates[layer][name])
            for layer in ("conv1", "fc8")
            for name in ("kernel", "bias")
        }
        kernels = jax.tree.map(np.array, dict(state.params["conv1"]))
        seen.append(Seen(len(seen) * BATCH / EXAMPLES, rates, kernels))
        return experiment.train_step(state, batch)

    with StopSignals() as stop:
        Run(dataclasses.replace(experiment, train_step=watched), workdir, (), stop, lambda _: None).execute()
    return seen


def divided_at(records: list[dict[str, Any]]) -> list[float]:
    return [record["examples_seen"] / EXAMPLES for record in records if record["kind"] == "division"]


def first_at_or_after(epoch: float) -> float:
    """The epoch at which the first step begins that does not begin before this."""
    return -(-epoch * EXAMPLES // BATCH) * BATCH / EXAMPLES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "factor", "bias_rate_at_the_end", "cut_from"),
    [("source", 0.1, 0.02, CUT), ("run170", 250 ** (-1 / 3), 0.002, np.inf)],
)
def test_every_event_of_the_schedule_comes_at_its_epoch(
    preset: str,
    factor: float,
    bias_rate_at_the_end: float,
    cut_from: float,
    tars: Path,
    tmp_path: Path,
    noise_of_epochs: dict[int, set[bool]],
) -> None:
    seen = steps(scaled_down(preset, tars), tmp_path / "run")
    records = read_metrics(tmp_path / "run")

    assert noise_of_epochs.keys() == set(range(5))  # a few examples of the fifth fill the last batch
    for epoch, noisy in noise_of_epochs.items():
        assert noisy == {epoch < NOISE_UNTIL}, epoch

    divisions = divided_at(records)
    assert divisions == pytest.approx([first_at_or_after(EPOCHS * part / 4) for part in (1, 2, 3)])
    for one in seen:
        rate = 0.01 * factor ** sum(one.epoch >= division for division in divisions)
        bias_rate = bias_rate_at_the_end if one.epoch >= EPOCHS / 2 else 0.02
        conv1 = 0.0 if one.epoch >= FROZEN else 0.1 if one.epoch >= cut_from else 1.0
        expected = {
            "fc8/kernel": rate,
            "fc8/bias": bias_rate,
            "conv1/kernel": conv1 * rate,
            "conv1/bias": 0.0 if conv1 == 0 else bias_rate,
        }
        assert one.rates == pytest.approx(expected, rel=1e-6), one.epoch

    frozen = [one.conv1 for one in seen if one.epoch >= FROZEN]
    before = [one.conv1 for one in seen if one.epoch < FROZEN]
    assert len(frozen) > 8
    for name in ("kernel", "bias"):
        assert not np.array_equal(before[-1][name], frozen[0][name])
        assert all(np.array_equal(one[name], frozen[0][name]) for one in frozen)

    assert [record["epoch"] for record in records if record["kind"] == "epoch"][-1] >= EPOCHS
    assert records[-1]["kind"] == "test"
    assert (records[-1]["views"], records[-1]["count"], records[-1]["split"]) == (10, VALIDATION_IMAGES, "validation")
