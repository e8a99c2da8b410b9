"""Small images in folders, and data sets prepared from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data.dataset import Dataset, get_dataset
from alexnet_jax.data.preparation import StorageOptions
from alexnet_jax.data.storage import Records
from alexnet_jax.errors import UserError

SIZE = 16


def noise(seed: int, height: int = SIZE, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """Writes an image in the format of its suffix, whatever that suffix's case."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format=Image.registered_extensions()[path.suffix.lower()], **options)
    return path


def make_folder(root: Path, counts: dict[str, int], suffix: str = ".png", seed: int = 0) -> Path:
    """Writes so many different images into each folder: make_folder(root, {"train/cat": 3, "train/dog": 2})."""
    for number, (folder, count) in enumerate(counts.items()):
        for index in range(count):
            save(root / folder / f"{index:03d}{suffix}", noise(10_000 * (seed + number) + index))
    return root


def storing(**changes: Any) -> StorageOptions:
    settings = {
        "image_size": SIZE,
        "storage": "raw",
        "jpeg_quality": 90,
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
        "max_quarantined": 0.01,
        "max_megapixels": 1.0,
    }
    return StorageOptions(**(settings | changes))  # type: ignore[arg-type]


def prepared(source: Path, into: Path, **changes: Any) -> Dataset:
    """Prepares a folder of images, or opens the data set that is prepared already."""
    return get_dataset("folder", str(source), str(into), 0, storing(**changes))


def contents(directory: Path) -> dict[str, bytes]:
    """The content of all files, by their path in the folder."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def images_of(records: Records) -> np.ndarray:
    """All images of a split."""
    images = np.empty((len(records.labels), records.image_size, records.image_size, 3), np.uint8)
    records.read(range(len(images)), images)
    return images


def refused(run: Callable[[], object]) -> str:
    """The message of the UserError that `run` raises; it must be one line."""
    with pytest.raises(UserError) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_whole(into: Path, expected: dict[str, bytes]) -> None:
    """Asserts that `into` holds the expected files of one data set, its lock and nothing else."""
    (directory,) = [path for path in into.iterdir() if path.is_dir()]
    found = contents(directory)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    assert [path.name for path in into.iterdir() if path.is_file()] == [f"{directory.name}.lock"]


def watch_reads(patch: pytest.MonkeyPatch) -> list[Path]:
    """A list that grows by the path of each PNG file that is read from now on."""
    real, seen = Path.read_bytes, []

    def read_bytes(path: Path) -> bytes:
        if path.suffix == ".png":
            seen.append(path)
        return real(path)

    patch.setattr(Path, "read_bytes", read_bytes)
    return seen
