"""Images and labels in memory as a data set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.data.dataset import Dataset, get_dataset
from alexnet_jax.errors import UserError
from alexnet_jax.inference.evaluation import evaluate, open_run_dataset
from alexnet_jax.inference.loaded_run import load_run
from alexnet_jax.train import train_and_evaluate
from tests.helpers.pictures import images_of, refused, storing

MakeConfig = Callable[..., ConfigDict]
NAMES = np.array(["cat", "ape", "cat", "dog"] * 15)


def noises(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def opened(folder: Path, **arrays: Any) -> Dataset:
    return get_dataset("arrays", "", str(folder), 0, storing(), arrays=arrays)


def test_missing_splits_are_taken_from_the_training_images(tmp_path: Path) -> None:
    images = noises(60, 16, 16, 3)
    dataset = opened(tmp_path, train=(images, NAMES))
    assert dataset.class_names == ("ape", "cat", "dog")
    found = {}
    for split in ("train", "validation", "test"):
        records = dataset.splits[split]
        assert {*records.labels.tolist()} == {0, 1, 2}
        for image, label in zip(images_of(records), records.labels, strict=True):
            found[image.tobytes()] = dataset.class_names[label]
    assert found == {image.tobytes(): name for image, name in zip(images, NAMES, strict=True)}
    assert opened(tmp_path, train=(images, list(NAMES))).directory == dataset.directory
    assert opened(tmp_path, train=(images, NAMES[::-1])).content != dataset.content
    assert opened(tmp_path, train=(images[::-1].copy()[::-1], NAMES)).content == dataset.content


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1), (20, 30, 3)])
def test_given_splits_stay_as_they_are(shape: tuple[int, ...], tmp_path: Path) -> None:
    labels = np.array([10, 2, 2, 10], np.uint8)
    train, validation = (noises(4, *shape), labels), (noises(2, *shape, seed=1), [[2], [10]])
    dataset = opened(tmp_path, train=train, validation=validation)
    assert dataset.class_names == ("2", "10") and dataset.splits.keys() == {"train", "validation"}
    assert dataset.splits["train"].labels.tolist() == [1, 0, 0, 1]
    assert dataset.splits["validation"].labels.tolist() == [0, 1]
    if shape == (16, 16):
        np.testing.assert_array_equal(images_of(dataset.splits["train"])[..., 1], train[0])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "train"),
        ({"train": (noises(4, 8, 8), [0, 1, 0, 1]), "val": (noises(4, 8, 8), [0, 1, 0, 1])}, "'val'.*validation"),
        ({"train": (noises(4, 8, 8) / 255, [0, 1, 0, 1])}, r"'train'.*float64.*255"),
        ({"train": (noises(4, 8, 8).astype(np.int32), [0, 1, 0, 1])}, r"'train'.*int32.*astype"),
        ({"train": (noises(4, 3, 8, 8), [0, 1, 0, 1])}, r"'train'.*\(4, 3, 8, 8\)"),
        ({"train": (noises(4, 8), [0, 1, 0, 1])}, r"'train'.*\(4, 8\)"),
        ({"train": (noises(4, 8, 8), [0, 1, 0])}, r"'train'.*\(3,\).* 4 images"),
        ({"train": (noises(4, 8, 8), np.eye(4))}, r"'train'.*\(4, 4\)"),
        ({"train": (noises(4, 8, 8), [0.0, 1.0, 0.5, 1.0])}, r"'train'.*float64"),
        ({"train": (noises(4, 8, 8), [7, 7, 7, 7])}, "only one class"),
        ({"train": noises(4, 8, 8)}, "'train'"),
        ({"train": (noises(4, 8, 8), [0, 1, 0, 1]), "test": (noises(1, 8, 8), [5])}, "'test'.*'5'"),
    ],
)
def test_other_arrays_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        opened(tmp_path, **arrays)
    assert not list(tmp_path.iterdir())


def test_without_the_arrays_the_name_is_of_no_use(tmp_path: Path) -> None:
    assert "data={" in refused(lambda: get_dataset("arrays", "", str(tmp_path), 0, storing()))


@pytest.mark.slow
def test_a_run_on_arrays_is_resumed_with_the_same_and_evaluated(tmp_path: Path, make_config: MakeConfig) -> None:
    changes: dict[str, Any] = {"batch_size": 8, "epochs": 2.0, "data.prepared_dir": str(tmp_path / "data")}
    config = make_config("digits,lenet,smoke", **changes, max_steps=3)
    given = {"train": (noises(60, 20, 20), NAMES)}
    train_and_evaluate(config, tmp_path / "run", data=given)
    assert config.data.name == "digits"
    config.max_steps = 5
    assert "arrays" in refused(lambda: train_and_evaluate(config, tmp_path / "run"))
    other = {"train": (noises(60, 20, 20, seed=1), NAMES)}
    assert "images of arrays" in refused(lambda: train_and_evaluate(config, tmp_path / "run", data=other))
    result = train_and_evaluate(config, tmp_path / "run", data=given)
    run = load_run(tmp_path / "run")
    evaluation = evaluate(run, open_run_dataset(run, prepared_dir=str(tmp_path / "data")), "test")
    assert len(evaluation.predicted) == result["count"] and "arrays; 3 classes" in repr(run)
