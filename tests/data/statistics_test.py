"""Statistics of the training images, against NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax.data.dataset import get_dataset
from alexnet_jax.data.images import PROPERTIES
from alexnet_jax.data.statistics import PixelSums, Statistics
from tests.helpers.pictures import images_of, make_folder, noise, prepared, save, storing


def assert_statistics_are_numpys(statistics: Statistics, images: np.ndarray) -> None:
    pixels = images.astype(np.float64).reshape(-1, 3)
    covariance = np.cov(pixels.T, bias=True)
    np.testing.assert_allclose(statistics.mean_image, images.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics.mean, pixels.mean(0), rtol=1e-9)
    np.testing.assert_allclose(statistics.std, pixels.std(0), rtol=1e-3)
    stds, vectors = np.array(statistics.pca_std), np.array(statistics.pca_vectors)
    assert stds[0] >= stds[1] >= stds[2] >= 0
    np.testing.assert_allclose(stds[::-1] ** 2, np.linalg.eigvalsh(covariance), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(vectors @ np.diag(stds**2) @ vectors.T, covariance, rtol=1e-3, atol=0.01)


@pytest.mark.parametrize("image_size", [1, 2, 15, 16])
def test_statistics_are_those_of_the_stored_training_images(tmp_path: Path, image_size: int) -> None:
    source = make_folder(tmp_path / "s", {"cat": 50, "dog": 60})
    dataset = prepared(source, tmp_path / "p", image_size=image_size)
    assert_statistics_are_numpys(dataset.statistics, images_of(dataset.splits["train"]))


@pytest.mark.parametrize("image_size", [255, 256])
def test_statistics_of_large_and_nearly_uniform_images_are_exact_enough(image_size: int) -> None:
    sums, rng = PixelSums(image_size), np.random.default_rng(0)
    base = rng.integers(-6, 7, (4, image_size, image_size, 1))
    images = (240 + base + rng.integers(-1, 2, (4, image_size, image_size, 3))).astype(np.uint8)
    for image in images:
        sums.add(image)
    assert_statistics_are_numpys(sums.statistics(len(images)), images)


def test_sums_of_a_thousand_white_images_do_not_overflow() -> None:
    total, white = PixelSums(2), np.full((2, 2, 3), 255, np.uint8)
    for _ in range(5):
        chunk = PixelSums(2)
        for _ in range(1024):
            chunk.add(white)
        chunk.pixels *= np.uint32(16_000)  # as of more images than a test can count
        total.extend(chunk)
    assert (total.pixels == 5 * 1024 * 255 * 16_000).all()


def test_images_of_one_colour_have_no_deviation(tmp_path: Path) -> None:
    for name, level in (("dark", 50), ("light", 50)):
        for split, count in (("train", 3), ("val", 1)):
            for index in range(count):
                save(tmp_path / f"s/{split}/{name}/{index}.png", np.full((16, 16, 3), level, np.uint8))
    statistics = prepared(tmp_path / "s", tmp_path / "p").statistics
    assert statistics.mean == (50, 50, 50)
    np.testing.assert_allclose((*statistics.std, *statistics.pca_std), 0, atol=1e-3)


def test_grey_images_have_one_principal_colour(tmp_path: Path) -> None:
    for seed in range(6):
        for split in ("train", "val"):
            save(tmp_path / f"s/{split}/{'ab'[seed % 2]}/{seed}.png", noise(seed)[:, :, 0])
    statistics = prepared(tmp_path / "s", tmp_path / "p").statistics
    np.testing.assert_allclose(statistics.pca_std, (np.sqrt(3) * statistics.std[0], 0, 0), atol=0.02)
    np.testing.assert_allclose([row[0] for row in statistics.pca_vectors], 3**-0.5, atol=1e-4)


def test_validation_and_test_images_do_not_count(tmp_path: Path) -> None:
    for split, level in (("train", 10), ("val", 200), ("test", 250)):
        for name in "ab":
            save(tmp_path / f"s/{split}/{name}/0.png", np.full((16, 16, 3), level, np.uint8))
    assert prepared(tmp_path / "s", tmp_path / "p").statistics.mean == (10, 10, 10)


def test_generated_and_shipped_data_sets_are_prepared_alike(tmp_path: Path) -> None:
    digits = get_dataset("digits", "", str(tmp_path), 0, storing(image_size=8))
    assert {split: len(records.labels) for split, records in digits.splits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    assert_statistics_are_numpys(digits.statistics, images_of(digits.splits["train"]))
    assert json.loads((digits.directory / "info.json").read_text())["traits"]["grey"] == 1797
    assert set(PROPERTIES) >= {"grey", "tiny"}
