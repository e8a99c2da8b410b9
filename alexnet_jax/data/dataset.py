"""Data sets by name: prepared on first use, then opened for random access to resized images."""

import dataclasses
import errno
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data.image_folder import ImageFolder
from alexnet_jax.data.imagenet import ImageNet
from alexnet_jax.data.preparation import Storing, prepare
from alexnet_jax.data.sources import SPLITS, Digits, Source, Synthetic, Tfds
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.data.storage import FolderInfo, JpegRecords, PixelRecords, Records, damaged, read_info
from alexnet_jax.errors import MissingSourceError, UserError
from alexnet_jax.system import console

DATASET_NAMES = ("digits", "folder", "imagenet2012", "synthetic")
"""What `get_dataset` knows beside tfds:NAME."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set ready to read.

    Attributes:
      splits: images with labels by "train", "validation" and, where there is one, "test".
      class_names: by label.
      statistics: of the training images.
      content: a digest of all images, labels and splits.
      directory: the prepared folder.
    """

    splits: dict[str, Records]
    class_names: tuple[str, ...]
    statistics: Statistics
    content: str
    directory: Path

    @property
    def num_classes(self) -> int:
        """Number of classes, seen in the training split or not."""
        return len(self.class_names)


def get_dataset(name: str, source_dir: str, prepared_dir: str, synthetic_examples: int, storing: Storing) -> Dataset:
    """Opens a data set, preparing it first if it is new or has changed.

    Args:
      name: one of DATASET_NAMES or "tfds:NAME", where NAME is as in `tfds.builder`, e.g. tfds:cifar10:3.0.2.
      source_dir: where the originals of "folder" and "imagenet2012" are.
      prepared_dir: folder of prepared data sets; those of TFDS are looked for there first.
      synthetic_examples: size of the synthetic training split.
      storing: how images are stored.

    Raises UserError if there is no such data set or it cannot be prepared.
    """
    folder = Path(source_dir).resolve()
    origin = {"folder": folder, "imagenet2012": folder, "synthetic": synthetic_examples}.get(name)
    identity = (name, str(origin), dataclasses.astuple(dataclasses.replace(storing, max_quarantined=0.0)))
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:8]
    label = re.sub(r"[^\w.]+", "-", f"{name}-{folder.name}".strip("-") if name == "folder" else name)[:80]
    directory = Path(prepared_dir) / f"{label}-{storing.image_size}-{digest}"
    try:
        source = _get_source(name, source_dir, prepared_dir, synthetic_examples)
    except MissingSourceError as error:
        if read_info(directory) is None:
            raise
        console.warn(f"{error}; its prepared copy in {directory} is used")
    else:
        prepare(source, storing, directory)
    return open_prepared(directory)


def _get_source(name: str, source_dir: str, prepared_dir: str, synthetic_examples: int) -> Source:
    if name == "digits":
        return Digits()
    if name == "synthetic":
        return Synthetic(synthetic_examples)
    if name == "folder":
        return ImageFolder(source_dir)
    if name == "imagenet2012":
        return ImageNet(source_dir)
    if name.startswith("tfds:"):
        return Tfds(name.removeprefix("tfds:"), prepared_dir)
    raise UserError(f"config.data.name={name!r} is unknown; there are: {', '.join(DATASET_NAMES)} and tfds:NAME")


def open_prepared(directory: Path) -> Dataset:
    """Opens a folder that `prepare` has made. Raises UserError if it is damaged."""
    info = read_info(directory)
    if info is None:
        raise UserError(f"{directory} is no prepared data set")
    try:
        splits = {split: _open_split(directory, split, info) for split in SPLITS if split in info.shards}
        mean_image = np.load(directory / "mean_image.npy")
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise UserError(f"{directory}: too many open files; raise the limit (ulimit -n 4096)") from error
        raise damaged(directory, error) from error
    statistics = Statistics(mean_image=mean_image, **{key: _tuple(value) for key, value in info.statistics.items()})
    return Dataset(splits, tuple(info.class_names), statistics, info.content, directory)


def _open_split(directory: Path, split: str, info: FolderInfo) -> Records:
    labels = np.load(directory / f"{split}_labels.npy")
    shards = info.shards[split]
    for name, _, size in shards:
        if (directory / name).stat().st_size != size:
            raise ValueError(f"{name} should have {size:,} bytes")
    if len(labels) != sum(count for _, count, _ in shards):
        raise ValueError(f"{split}_labels.npy has {len(labels):,} labels")
    if info.storage == "raw":
        return PixelRecords([directory / name for name, _, _ in shards], labels, info.image_size)
    return JpegRecords([(directory / name, count) for name, count, _ in shards], labels, info.image_size)


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
