"""Figure 1: learning rates, epochs to the bound, the plot."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax.cli import main as program
from alexnet_jax.errors import UserError
from alexnet_jax.experiments import figure1
from alexnet_jax.experiments.figure1 import Race, draw_figure1
from alexnet_jax.experiments.trials import Trial, TrialStoppedError, run_trials
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.train import train_and_evaluate
from benchmarks import tables
from configs import cifar10_figure1
from tests.conftest import REPOSITORY
from tests.helpers.pictures import make_folder


@pytest.mark.parametrize("network", ["cifar_19pct", "cifar_13pct"])
def test_nothing_regularises(network: str) -> None:
    config = cifar10_figure1.get_config(f"folder,{network}")
    assert config.model.preset == network
    assert config.model.dropout_rate == config.optimizer.weight_decay == config.data.color_noise == 0
    assert config.optimizer.weight_decay_overrides == () and not config.data.mirror
    assert (config.data.cropping, config.optimizer.schedule) == ("centre", "constant")


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_at_the_same_training_error(
    tmp_path: Path, make_config: Callable[..., ConfigDict]
) -> None:
    config = make_config("digits,lenet", epochs=6.0, stop_at_train_error=0.2)
    whole, parts = (Trial(config, tmp_path / name, ["main.py"]) for name in ("whole", "parts"))

    def interrupt(trial: Trial, _: dict[str, Any]) -> None:
        if trial is parts:
            raise TrialStoppedError("enough")

    expected, *stopped = run_trials([whole, parts, parts, parts], on_epoch=interrupt)
    assert 2 <= len(expected.epochs) < 6
    assert len(stopped[0].epochs) == 1
    (resumed,) = run_trials([parts])
    assert resumed.test == expected.test is not None
    assert (parts.workdir / "metrics.jsonl").read_bytes() == (whole.workdir / "metrics.jsonl").read_bytes()


def test_the_best_learning_rate_has_the_lowest_loss_and_one_that_diverged_is_never_best() -> None:
    assert figure1.best_learning_rate({0.1: math.inf, 0.01: 1.5, 0.001: 1.2}, "relu") == 0.001
    with pytest.raises(UserError, match="relu"):
        figure1.best_learning_rate({0.1: math.inf}, "relu")


def test_the_ratio_to_the_last_error_of_tanh_by_hand() -> None:
    relu = [0.6, 0.4, 0.3]
    assert figure1.ratio_at_last_error(relu, [0.8] * 6 + [0.5]) == pytest.approx(7 / 1.5)
    assert figure1.ratio_at_last_error(relu, [0.8, 0.3]) == pytest.approx(2 / 3)
    assert figure1.ratio_at_last_error(relu, [0.8, 0.7, 0.6]) == 3
    assert figure1.ratio_at_last_error(relu, [0.2]) is None


def test_epochs_to_the_bound() -> None:
    assert figure1.epochs_to([0.9, 0.25, 0.2], 0.25) == 2
    assert figure1.epochs_to([0.9, 0.26], 0.25) is None


def test_a_race_that_was_cut_short_says_so() -> None:
    relu = Race(0.01, {}, (4, 6), ((0.5,), (0.5,)), 20)
    tanh = Race(0.01, {}, (18, None), ((0.5,), (0.5,)), 20)
    assert relu.text() == "5.0 ± 1.4"
    assert tanh.text() == "more than 19.0 (1 of 2 seeds within 20)"


@pytest.mark.parametrize(
    ("relu", "tanh", "expected", "text"),
    [
        ((4, 6), (20, 30), ("exactly", 5.0), "5.0 times"),
        ((4, 6), (18, None), ("more than", 3.8), "more than 3.8 times"),
        ((2, None), (13, 13), ("less than", 13 / 11), "less than 1.2 times"),
        ((None, None), (None, None), ("unknown", None), "unknown"),
    ],
)
def test_the_ratio_claims_no_more_than_the_runs_tell(
    relu: tuple[int | None, ...], tanh: tuple[int | None, ...], expected: tuple[str, float | None], text: str
) -> None:
    assert figure1.ratio(*(Race(0.01, {}, epochs, (), 20) for epochs in (relu, tanh))) == expected
    assert figure1.ratio_text(*expected) == text


def test_a_best_learning_rate_at_the_edge_of_those_tried_is_noticed() -> None:
    losses = {0.001: 1.2, 0.01: 1.5, 0.1: math.inf}
    assert [figure1.is_at_the_edge(losses, rate) for rate in (0.001, 0.01, 0.1)] == [True, False, True]
    assert not figure1.is_at_the_edge({0.1: 1.0}, 0.1)


def test_the_picture_has_a_curve_a_seed(tmp_path: Path) -> None:
    curves = {"cifar_19pct": {"relu": [[0.6, 0.3, 0.2]], "tanh": [[0.7, 0.6, 0.5], [0.7, 0.6, 0.4]]}}
    draw_figure1(tmp_path / "figure.png", curves, 0.25, "Training error")
    with Image.open(tmp_path / "figure.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[0] > 400 and pixels.shape[1] > 600
    red = (pixels[..., 0] - pixels[..., 2] > 100).sum()
    blue = (pixels[..., 2] - pixels[..., 0] > 100).sum()
    assert red > blue > 100


@pytest.mark.slow
def test_the_command_from_pictures_to_figure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    folder = make_folder(tmp_path / "photos", {"train/cat": 40, "train/dog": 40, "test/cat": 8, "test/dog": 8})
    words = ["figure1", "--config=configs/cifar10_figure1.py:folder", f"--config.data.dir={folder}"]
    words += [f"--config.data.prepared_dir={tmp_path / 'prepared'}", "--config.batch_size=16", "--config.epochs=2"]
    words += ["--networks", "cifar_19pct", "--rates", "0.001", "1e20", "--probe-epochs=0.5", "--seeds=0,1"]
    words += [f"--workdir={tmp_path / 'runs'}", f"--output={tmp_path / 'results' / 'figure1.json'}", "--processes=2"]
    monkeypatch.setattr(sys, "argv", ["alexnet_jax", *words])
    program.main(["alexnet_jax", *words])
    printed = capfd.readouterr().out
    assert printed.count("six times") == 1 and "folder photos" in printed
    assert printed.count("cifar_19pct relu: 0.001 is at the edge of --rates") == 1
    results = json.loads((tmp_path / "results" / "figure1.json").read_text())
    race = results["results"]["cifar_19pct"]["tanh"]
    assert race["losses"]["0.001"] < 1
    assert results["results"]["cifar_19pct"]["relu"]["losses"]["1e+20"] is None
    assert {"--config.batch_size=16", "--config.epochs=2", "--rates", "1e+20"} <= set(results["command"])
    assert "--networks" not in results["command"]
    sense, factor = (results["results"]["cifar_19pct"][name] for name in ("ratio_is", "ratio"))
    assert any(figure1.ratio_text(sense, factor) in line for line in tables.table(tmp_path / "results/figure1.json"))
    assert not any(str(tmp_path) in word for word in results["command"])
    assert race["rate"] == 0.001 and len(race["errors"]) == len(race["epochs"]) == 2
    assert results["seeds"] == [0, 1] and "64 training" not in results["data"]
    assert (tmp_path / "results" / "figure1.png").exists()
