"""What a network saw in an image: explanations and their page."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax.cli import explain_prediction as explain_prediction_command
from alexnet_jax.data.dataset import get_dataset
from alexnet_jax.data.storage import read_images
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import make_storage_options
from alexnet_jax.inference import explanation as explanation_lib
from alexnet_jax.inference.explanation import GREY, PLACES, explain_prediction
from alexnet_jax.inference.loaded_run import TrainedRun
from tests.helpers import random_run as random_run_lib
from tests.helpers.pictures import make_folder
from tests.helpers.random_run import random_run

PHOTO = np.random.default_rng(3).integers(0, 256, (40, 50), np.uint8)  # grey


@pytest.fixture(scope="module")
def logistic() -> TrainedRun:
    """A network whose logits are linear in the pixels."""
    from configs import alexnet

    return random_run(alexnet.get_config("synthetic,logistic,smoke"))


def test_the_gradient_and_the_squares_of_a_linear_network(logistic: TrainedRun) -> None:
    explained, resized = explain_prediction(logistic, PHOTO), logistic.resize(PHOTO)
    np.testing.assert_allclose(explained.probabilities, logistic.predict(resized, views=1)[0], rtol=1e-5)
    kernel = np.asarray(logistic.params["fc1"]["kernel"])[:, explained.label].reshape(28, 28, 3)
    np.testing.assert_allclose(explained.saliency, np.abs(kernel).max(axis=-1), rtol=1e-5)
    assert explained.occluded.shape == (PLACES, PLACES, 3) and explained.square == 7
    np.testing.assert_array_equal(explained.image, resized)
    covered = resized.copy()
    covered[:4, 24:] = GREY  # 7 pixels wide, around the last centre of the first row, 0.875 and 27.125
    expected = explained.probabilities - logistic.predict(covered, views=1)[0]
    np.testing.assert_allclose(explained.drops[0, -1], expected[explained.label], rtol=1e-3)
    assert explained.maps == {} and explained.neighbours is None


@pytest.mark.parametrize("number", range(2))
def test_the_one_output_of_two_classes(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from configs import alexnet

    monkeypatch.setattr(random_run_lib, "CLASSES", ("cat", "dog"))
    run = random_run(alexnet.get_config("synthetic,logistic,smoke"))
    run.params["fc1"]["bias"] = np.array([(-9.0, 9.0)[number]], np.float32)
    explained = explain_prediction(run, PHOTO)
    kernel = np.asarray(run.params["fc1"]["kernel"]).reshape(28, 28, 3)
    assert explained.label == number
    np.testing.assert_allclose(explained.saliency, np.abs(kernel).max(axis=-1), rtol=1e-5)


def test_maps_and_neighbours(
    make_config: Callable[..., ConfigDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "images", {"cat": 8, "dog $x$": 8, "<b>": 8})
    config = make_config("folder,lenet")
    run = random_run(config)
    dataset = get_dataset("folder", str(folder), str(tmp_path / "data"), 0, make_storage_options(config.data))
    train = dataset.splits["train"]
    monkeypatch.setattr(explanation_lib, "MOST_SEARCHED", 8)
    (image,) = read_images(train, np.array([3]))
    explained = explain_prediction(run, image, dataset)
    assert list(explained.maps) == ["act1", "act2"]
    maps = explained.maps["act1"]
    expected = run.features(image, "act1")[0]
    assert maps.shape == expected.shape and maps.kernels[0] == expected.mean(axis=(0, 1)).argmax()
    np.testing.assert_allclose(maps.maps[0], expected[..., maps.kernels[0]], rtol=1e-4, atol=1e-4)
    near = explained.neighbours
    assert near is not None and near.ids[0] == 3 and (near.searched, near.total) == (8, len(train.labels))
    assert abs(near.distances[0]) < 1e-5 and (np.diff(near.distances) >= 0).all()
    np.testing.assert_array_equal(near.images[0], image)


def test_the_most_frequent_predictions(logistic: TrainedRun) -> None:
    occluded = np.zeros((PLACES, PLACES, 9), np.float32)
    occluded[..., 4] = 0.5
    for column, label in enumerate((8, 8, 1)):
        occluded[:, column, label] = 1
    explained = dataclasses.replace(explain_prediction(logistic, PHOTO), occluded=occluded)
    labels, ranks = explained.frequent(2)
    assert labels.tolist() == [4, 8] and ranks[7].tolist() == [1, 1, 2, *[0] * (PLACES - 3)]


@pytest.mark.slow
def test_the_page_and_the_picture(
    logistic: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    logistic.save(tmp_path / "<net>.safetensors")
    Image.fromarray(PHOTO).save("my <photo>.jpg")
    explain_prediction_command.main(["<net>.safetensors", "my <photo>.jpg"])
    output = capsys.readouterr().out
    assert "warning: No training images are shown" in output and "explanations/my <photo>.jpg.html" in output
    page = (tmp_path / "explanations" / "my <photo>.jpg.html").read_text()
    assert "What &lt;net&gt;.safetensors saw in my &lt;photo&gt;.jpg" in page and "central 28 pixels" in page
    assert "Zeiler and Fergus 2014" in page and "Simonyan et al. 2014" in page and "<photo>" not in page
    assert not re.findall(r"""(?:src|href|srcset)="(?!data:image/png;base64,|#)""", page) and "<script" not in page
    assert np.asarray(Image.open("explanations/my <photo>.jpg.png").convert("RGB")).std() > 20


def test_a_network_of_nan_is_refused(logistic: TrainedRun) -> None:
    broken = random_run(logistic.config)
    broken.params["fc1"]["bias"] = np.full(3, np.nan, np.float32)
    with pytest.raises(UserError, match="nowhere: the network predicts NaN"):
        explain_prediction(broken, PHOTO)
