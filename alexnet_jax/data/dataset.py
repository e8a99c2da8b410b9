"""Opens data sets by name, with random access to resized images; they are prepared at the first use."""

import dataclasses
import errno
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data.array_files import READERS
from alexnet_jax.data.arrays import ARRAYS, Arrays, ArraySource
from alexnet_jax.data.image_folder import INNER, OUTER, ImageFolder
from alexnet_jax.data.imagenet import ImageNet
from alexnet_jax.data.manifest import MANIFEST, damaged_error, read_manifest
from alexnet_jax.data.preparation import StorageOptions, prepare
from alexnet_jax.data.sources import SPLITS, Digits, Source, Synthetic, Tfds
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.data.storage import FolderInfo, JpegRecords, PixelRecords, Records, read_info
from alexnet_jax.errors import MissingSourceError, UserError
from alexnet_jax.system import console
from alexnet_jax.system.files import expand_home

DATASET_NAMES = ("digits", "folder", "imagenet2012", "synthetic")
"""The names that `get_dataset` accepts in addition to tfds:NAME."""

IMAGENETTE = "tfds:imagenette"
PUBLISHED = (*READERS, IMAGENETTE)
"""Data sets of TFDS that are read as published where a folder is given; that of IMAGENETTE is one of images."""

BUILT_IN = ("digits", "synthetic")
"""The names of those data sets that need no files."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    Attributes:
      splits: images with labels of "train", "validation" and, if there is one, "test".
      class_names: names of the classes, in the order of labels.
      statistics: pixel statistics of the training images.
      content: digest of all images, labels and splits.
      directory: folder of the prepared images.
      prepared: digest of the folder's files; "" if a version without digests prepared it.
    """

    splits: dict[str, Records]
    class_names: tuple[str, ...]
    statistics: Statistics
    content: str
    directory: Path
    prepared: str = ""

    @property
    def num_classes(self) -> int:
        """The number of classes, including those without a training image."""
        return len(self.class_names)


def get_dataset(
    name: str,
    source_dir: str,
    prepared_dir: str,
    synthetic_size: int,
    options: StorageOptions,
    labels: str = "",
    arrays: Arrays | None = None,
) -> Dataset:
    """Opens a data set, after preparing it if it is new or its originals have changed.

    Args:
      name: one of DATASET_NAMES, or "tfds:NAME", where NAME is as in `tfds.builder`, e.g. tfds:cifar10:3.0.2, or
        "arrays".
      source_dir: folder of the originals of "folder" and "imagenet2012"; for PUBLISHED ones the folder of the
        files as published, or "" for those of TFDS.
      prepared_dir: folder of prepared data sets; it is also the first place to look for those of TFDS.
      synthetic_size: size of the synthetic training split.
      options: how images are prepared and stored.
      labels: see `ImageFolder`.
      arrays: the images and labels of "arrays".

    Raises UserError if there is no such data set or it cannot be prepared.
    """
    source_dir, prepared_dir, labels = map(expand_home, (source_dir, prepared_dir, labels))
    folder, given = Path(source_dir).resolve(), ArraySource(arrays) if arrays is not None else None
    fingerprint = given.fingerprint() if given else None
    origins: dict[str, Any] = {"folder": folder, "imagenet2012": folder, "synthetic": synthetic_size}
    origin = {**origins, ARRAYS: fingerprint}.get(name)
    if source_dir and name in PUBLISHED:
        origin = folder
    elif source_dir and name.startswith("tfds:"):
        raise UserError(
            f"config.data.dir={source_dir!r}: {name} is read by TFDS from config.data.prepared_dir; leave it out"
        )
    identity: tuple[Any, ...] = (
        name,
        str(origin),
        dataclasses.astuple(dataclasses.replace(options, max_quarantined=0.0)),
    )
    if labels:
        if name not in ("folder", "imagenet2012"):
            raise UserError(f"config.data.labels={labels!r}: {name} has its own labels; leave it out")
        identity += (labels if labels in (OUTER, INNER) else str(Path(labels).resolve()),)
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:8]
    label = re.sub(r"[^\w.]+", "-", f"{name}-{folder.name}".strip("-") if name == "folder" else name)[:80]
    directory = Path(prepared_dir) / f"{label}-{options.image_size}-{digest}"
    try:
        source = given or _get_source(name, source_dir, prepared_dir, synthetic_size, labels)
    except MissingSourceError as error:
        if read_info(directory) is None:
            raise
        console.warn(f"{error}; using its prepared copy in {directory}")
    else:
        prepare(source, options, directory)
    return open_prepared(directory)


def _get_source(name: str, source_dir: str, prepared_dir: str, synthetic_examples: int, labels: str) -> Source:
    if name == "digits":
        return Digits()
    if name == "synthetic":
        return Synthetic(synthetic_examples)
    is_unpacked = name == "imagenet2012" and (Path(source_dir) / "train").is_dir()
    if source_dir and name in READERS:
        return READERS[name](name.removeprefix("tfds:"), source_dir)
    if name == "folder" or is_unpacked or (source_dir and name == IMAGENETTE):
        return ImageFolder(source_dir, labels)
    if name == "imagenet2012":
        return ImageNet(source_dir)
    if name == ARRAYS:
        raise UserError(
            "config.data.name='arrays': give train_and_evaluate the arrays: data={'train': (images, labels)}"
        )
    if name.startswith("tfds:"):
        return Tfds(name.removeprefix("tfds:"), prepared_dir)
    raise UserError(f"config.data.name={name!r} is unknown; there are: {', '.join(DATASET_NAMES)} and tfds:NAME")


def find_prepared(prepared_dir: str, content: str, options: StorageOptions) -> Dataset | None:
    """Opens the prepared copy of images that are known by `Dataset.content`; None if there is none.

    Where several fit, because `options.storage` is "auto", one of pixels is preferred.
    """
    found = []
    for path in Path(prepared_dir).glob(f"*-{options.image_size}-????????/info.json"):
        try:
            info = read_info(path.parent)
        except UserError as error:  # of another data set, perhaps
            console.warn(str(error))
            continue
        if info and info.content == content and _is_stored_as(info, options):
            found.append((info.storage, path.parent))
    return open_prepared(max(found)[1]) if found else None


def _is_stored_as(info: FolderInfo, options: StorageOptions) -> bool:
    """Whether prepared images may be those that these options would make."""
    is_of_quality = info.storage == "raw" or info.jpeg_quality == options.jpeg_quality
    return is_of_quality and options.storage in ("auto", info.storage)


def open_prepared(directory: Path) -> Dataset:
    """Opens a folder that `prepare` has completed. Raises UserError if it is damaged or another folder."""
    info = read_info(directory)
    if info is None:
        raise UserError(f"{directory} is no prepared data set: it has no info.json")
    if manifest := read_manifest(directory):
        shards = {name for rows in info.shards.values() for name, _, _ in rows}  # checked when images are read
        manifest.check(manifest.files.keys() - shards)
    else:
        console.warn(
            f"{directory} has no {MANIFEST}, as an earlier version prepared it: some damage would not be noticed"
        )
    try:
        splits = {split: _open_split(directory, split, info) for split in SPLITS if split in info.shards}
        mean_image = np.load(directory / "mean_image.npy")
    except Exception as error:  # on damaged files NumPy raises errors of Python's tokenizer and more
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise UserError(f"{directory}: too many open files; raise the limit (ulimit -n 4096)") from error
        raise damaged_error(directory, str(error)) from error
    statistics = Statistics(mean_image=mean_image, **{key: _tuple(value) for key, value in info.statistics.items()})
    prepared = manifest.digest if manifest else ""
    return Dataset(splits, tuple(info.class_names), statistics, info.content, directory, prepared)


def _open_split(directory: Path, split: str, info: FolderInfo) -> Records:
    labels = np.load(directory / f"{split}_labels.npy")
    shards = info.shards[split]
    for name, _, size in shards:
        if (directory / name).stat().st_size != size:
            raise ValueError(f"{name} should have {size:,} bytes")
    if len(labels) != sum(count for _, count, _ in shards):
        raise ValueError(f"{split}_labels.npy has {len(labels):,} labels")
    if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= len(info.class_names):
        raise ValueError(f"{split}_labels.npy holds other labels than those of {len(info.class_names):,} classes")
    paths_and_counts = [(directory / name, count) for name, count, _ in shards]
    if info.storage == "raw":
        path = directory / f"{split}_checksums.npy"
        checksums = np.load(path) if path.exists() else None  # earlier versions wrote none
        return PixelRecords(paths_and_counts, labels, info.image_size, checksums)
    return JpegRecords(paths_and_counts, labels, info.image_size)


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
