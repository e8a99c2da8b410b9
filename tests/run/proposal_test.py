"""What is proposed for a folder of images."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax.experiment import Experiment, open_experiment
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.models.summary import summarize
from alexnet_jax.run import proposal
from configs import alexnet

MakeConfig = Callable[..., ConfigDict]


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores that compute a million operations a second."""
    monkeypatch.setattr(proposal, "matrix_flops", lambda: 1e6)
    monkeypatch.setattr(proposal, "compute_threads", lambda: 2)


def of_folder(config: ConfigDict, **changes: object) -> Experiment:
    """The experiment of a config as if its images were those of a folder."""
    experiment = open_experiment(config)
    config.update_from_flattened_dict({"max_steps": 0, "data.name": "folder", **changes})
    return experiment


@pytest.mark.usefixtures("slow_machine")
def test_a_long_run_is_told_what_is_faster(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = of_folder(make_config(), epochs=1e6)
    monkeypatch.setattr(proposal, "typical_side", lambda *_: 100)
    line = proposal.propose(experiment)
    count = len(experiment.dataset.splits["train"].labels)
    macs = sum(layer.macs for layer in experiment.layers)
    there = sum(len(records.labels) for records in experiment.dataset.splits.values())
    assert line.startswith(f"{there} images of about 100 x 100 on 2 cores: 1e+06 epochs of lenet take about ")
    assert f" {proposal.console.duration(macs * count * 1e6 * 6 / 1.5e6)};" in line
    assert "`:folder,medium` --config.epochs=150 about " in line and "image_size" not in line
    monkeypatch.setattr(proposal, "typical_side", lambda *_: 32)
    assert "--config.data.image_size=72" in proposal.propose(experiment)
    experiment.config.epochs = 1.0
    assert ";" not in proposal.propose(experiment)


def test_medium_is_told_of_better_epochs(make_config: MakeConfig) -> None:
    experiment = of_folder(make_config(), **{"model.preset": "medium", "epochs": 10.0})
    assert "--config.epochs=150" in proposal.propose(experiment)
    experiment.config.epochs = 150.0
    assert ";" not in proposal.propose(experiment)


@pytest.mark.parametrize(("images", "epochs"), [(100, 150), (1650, 61), (20_000, 15)])
def test_epochs_suit_the_number_of_images(images: int, epochs: int) -> None:
    assert proposal.suitable_epochs(images) == epochs


@pytest.mark.parametrize("change", [{"data.name": "digits"}, {"max_steps": 3}, {"init_from": "runs/a"}])
def test_nothing_is_proposed_where_it_does_not_help(make_config: MakeConfig, change: dict[str, object]) -> None:
    assert proposal.propose(of_folder(make_config(), **change)) == ""


def test_the_typical_side_is_the_median_of_shorter_sides(tmp_path: Path) -> None:
    sizes = {"a.png": (40, 90), "b.jpg": (200, 100), "c.png": (300, 300), "d.jpg": (9, 9)}
    for name, size in sizes.items():
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "d.jpg").write_bytes(b"no image")
    assert proposal.typical_side(tmp_path, tmp_path) == 0  # no prepared images are known
    (tmp_path / "train_files.json").write_text(json.dumps([*sizes, "missing.png"]))
    assert proposal.typical_side(tmp_path, tmp_path) == 100


def test_the_proposed_sizes_are_those_of_the_config() -> None:
    config = alexnet.get_config("folder,medium")
    for size in proposal.SIZES:
        crop = int(size.choices.rpartition("crop=")[2]) if "crop=" in size.choices else config.data.crop
        assert sum(layer.macs for layer in summarize(get_model(config.model, 10), crop)) == size.macs
