"""Figure 1: rates, races, the picture."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax import __main__
from alexnet_jax.errors import UserError
from alexnet_jax.figures import draw_figure1
from alexnet_jax.metric_writer import read_metrics
from alexnet_jax.programs import figure1
from alexnet_jax.programs.figure1 import Race
from alexnet_jax.train import train_and_evaluate
from configs import cifar10_figure1
from tests.conftest import REPOSITORY
from tests.pictures import make_folder


@pytest.mark.parametrize("network", ["cifar_19pct", "cifar_13pct"])
def test_nothing_regularises(network: str) -> None:
    config = cifar10_figure1.get_config(f"folder,{network}")
    assert config.model.preset == network
    assert config.model.dropout_rate == config.optimizer.weight_decay == config.data.color_noise == 0
    assert config.optimizer.weight_decay_overrides == () and not config.data.mirror
    assert (config.data.cropping, config.optimizer.schedule) == ("centre", "constant")


def test_a_run_ends_once_training_errors_are_rare_enough(
    tmp_path: Path, make_config: Callable[..., ConfigDict]
) -> None:
    config = make_config("digits,lenet", epochs=6.0, stop_at_train_error=0.5)
    end = train_and_evaluate(config, tmp_path / "run")
    errors = [record["train_top1_error"] for record in read_metrics(tmp_path / "run") if record["kind"] == "epoch"]
    assert len(errors) < 6 and errors[-1] <= 0.5 < min(errors[:-1], default=1)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert train_and_evaluate(config, tmp_path / "run").items() >= end.items()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    config.stop_at_train_error = 0.0
    config.epochs = len(errors) + 1.0
    train_and_evaluate(config, tmp_path / "run")
    more = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "epoch"]
    assert len(more) == len(errors) + 1


def test_the_best_rate_has_the_lowest_loss_and_one_that_diverged_is_never_best() -> None:
    assert figure1.best_rate({0.1: math.inf, 0.01: 1.5, 0.001: 1.2}, "relu") == 0.001
    with pytest.raises(UserError, match="relu diverged"):
        figure1.best_rate({0.1: math.inf}, "relu")


def test_epochs_to_the_bound() -> None:
    assert figure1.epochs_to([0.9, 0.25, 0.2], 0.25) == 2
    assert figure1.epochs_to([0.9, 0.26], 0.25) is None


def test_a_race_that_was_cut_short_says_so() -> None:
    relu = Race(0.01, (4, 6), ((0.5,), (0.5,)), 20)
    tanh = Race(0.01, (18, None), ((0.5,), (0.5,)), 20)
    assert relu.text() == "5.0 ± 1.4"
    assert tanh.text() == "more than 19.0 (1 of 2 seeds within 20)"
    assert figure1.ratio({("n", "relu"): relu, ("n", "tanh"): tanh}, "n") == (19 / 5, True)
    assert figure1.ratio({("n", "relu"): relu, ("n", "tanh"): relu}, "n") == (1, False)


def test_the_picture_has_a_curve_a_seed(tmp_path: Path) -> None:
    curves = {"cifar_19pct": {"relu": [[0.6, 0.3, 0.2]], "tanh": [[0.7, 0.6, 0.5], [0.7, 0.6, 0.4]]}}
    draw_figure1(tmp_path / "figure.png", curves, 0.25, "Training error")
    with Image.open(tmp_path / "figure.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[0] > 400 and pixels.shape[1] > 600
    red = (pixels[..., 0] - pixels[..., 2] > 100).sum()
    blue = (pixels[..., 2] - pixels[..., 0] > 100).sum()
    assert red > blue > 100


def test_the_command_from_pictures_to_figure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    folder = make_folder(tmp_path / "photos", {"train/cat": 40, "train/dog": 40, "test/cat": 8, "test/dog": 8})
    words = ["figure1", "--config=configs/cifar10_figure1.py:folder", f"--config.data.dir={folder}"]
    words += [f"--config.data.prepared_dir={tmp_path / 'prepared'}", "--config.batch_size=16", "--config.epochs=2"]
    words += ["--networks", "cifar_19pct", "--rates", "0.001", "1e20", "--probe-epochs=0.5", "--seeds", "0", "1"]
    words += [f"--workdir={tmp_path / 'runs'}", f"--output={tmp_path / 'results' / 'figure1.json'}", "--processes=2"]
    monkeypatch.setattr(sys, "argv", ["alexnet_jax", *words])
    __main__.main(["alexnet_jax", *words])
    printed = capfd.readouterr().out
    assert "six times" in printed and "folder photos" in printed
    results = json.loads((tmp_path / "results" / "figure1.json").read_text())
    race = results["results"]["cifar_19pct"]["tanh"]
    assert race["rate"] == 0.001 and len(race["errors"]) == len(race["epochs"]) == 2
    assert results["seeds"] == [0, 1] and "64 training" not in results["data"]
    assert (tmp_path / "results" / "figure1.png").exists()
