"""Data sets by name, as random access to records {"image": encoded bytes or uint8 array, "label": int}.

Everything is a TFDS data set in ArrayRecord files, read without TensorFlow, except the synthetic one.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax.errors import UserError

NAMES = ("digits", "synthetic")
"""What `get_dataset` knows beside tfds:NAME."""


@runtime_checkable
class Records(Protocol):
    """Random access to the records of a split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set ready to read: records by split ("train", "validation", "test") and class names by label."""

    splits: dict[str, Records]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, seen in the training split or not."""
        return len(self.class_names)


def get_dataset(name: str, prepared_dir: str, validation_fraction: float, synthetic_examples: int) -> Dataset:
    """Opens a data set, preparing our own on first use.

    Args:
      name: "digits", "synthetic" or "tfds:NAME", where NAME is as in `tfds.builder`, e.g. tfds:cifar10:3.0.2.
      prepared_dir: folder of prepared data sets; ours are written there. TFDS's own folder is searched too.
      validation_fraction: share of the training split to hold out where a data set has no validation split.
      synthetic_examples: size of the synthetic training split.

    Raises UserError if there is no such data set, it is not prepared, or it holds no images with labels.
    """
    if name == "synthetic":
        return _synthetic(synthetic_examples)
    if name == "digits":
        builder = _prepare(Digits, prepared_dir)
    elif name.startswith("tfds:"):
        builder = _find_prepared(name.removeprefix("tfds:"), prepared_dir)
    else:
        raise UserError(f"config.data.name={name!r} is unknown; there are: {', '.join(NAMES)} and tfds:NAME")
    return _open(builder, name, validation_fraction)


def _prepare(builder_class: type[tfds.core.DatasetBuilder], prepared_dir: str) -> tfds.core.DatasetBuilder:
    """One of our own data sets, made on first use. TFDS writes aside and renames, so there is all of it or nothing."""
    nowhere = io.StringIO()  # TFDS would speak of downloads and unknown sizes
    with (
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        contextlib.suppress(FileExistsError),  # another process was faster
    ):
        builder_class(data_dir=prepared_dir, file_format="array_record").download_and_prepare()
    return builder_class(data_dir=prepared_dir, file_format="array_record")


def _find_prepared(name: str, prepared_dir: str) -> tfds.core.DatasetBuilder:
    """The builder of a prepared TFDS data set. Reading needs no TensorFlow; preparing a stock data set does."""
    folders = [prepared_dir, os.environ.get("TFDS_DATA_DIR", str(Path("~/tensorflow_datasets").expanduser()))]
    for folder in folders:
        try:
            builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        except (tfds.core.DatasetNotFoundError, ValueError, AssertionError):
            continue
        if builder.is_prepared():
            return builder
    raise UserError(
        f"config.data.name='tfds:{name}': not found as ArrayRecord in {' or '.join(folders)}; prepare it where "
        f"TensorFlow is installed: tfds build {name} --file_format=array_record --data_dir={prepared_dir}"
    )


def _open(builder: tfds.core.DatasetBuilder, name: str, validation_fraction: float) -> Dataset:
    features = builder.info.features
    has_label = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
    if "image" not in features or not has_label:
        raise UserError(f"config.data.name={name!r} has no image with a class label, but {', '.join(features)}")
    splits = {split: split for split in ("train", "validation", "test") if split in builder.info.splits}
    if "train" not in splits:
        raise UserError(f"config.data.name={name!r} has no training split")
    if "validation" not in splits:
        size = builder.info.splits["train"].num_examples
        held_out = max(round(size * validation_fraction), 1)
        splits |= {"train": f"train[:{size - held_out}]", "validation": f"train[{size - held_out}:]"}
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = {split: builder.as_data_source(split=spec, decoders=decoders) for split, spec in splits.items()}
    if "test" in records and records["test"][0]["label"] < 0:
        del records["test"]  # its labels are withheld, as ImageNet's are
    return Dataset(records, tuple(features["label"].names))


class Digits(tfds.core.GeneratorBasedBuilder):
    """The 1,797 scans of handwritten digits that scikit-learn ships, 8x8 pixels in 17 grey levels.

    The test half of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI). Split at random, the
    same way each time: 1,257 to train, 180 to validate, 360 to test.
    """

    VERSION = tfds.core.Version("1.0.0")
    SIZES = {"train": 1257, "validation": 180, "test": 360}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits shipped by scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(2012).permutation(len(digits.target))
        ends = np.cumsum(list(self.SIZES.values()))
        parts = np.split(order, ends[:-1])
        return {split: self._generate_examples(digits, part) for split, part in zip(self.SIZES, parts, strict=True)}

    def _generate_examples(self, digits: Any, indices: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices:
            grey = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(grey).save(encoded, format="PNG")
            encoded.seek(0)
            yield int(index), {"image": encoded, "label": int(digits.target[index])}


@dataclasses.dataclass(frozen=True)
class _SyntheticRecords:
    """Noise around a colour of the class: enough to learn from, nothing to download."""

    split: int
    size: int
    num_classes: int
    pixels: int = 32

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = index % self.num_classes
        colour = np.random.default_rng(label).integers(64, 192, 3)
        noise = np.random.default_rng((self.split, index)).integers(-40, 41, (self.pixels, self.pixels, 3))
        return {"image": (colour + noise).astype(np.uint8), "label": label}


def _synthetic(examples: int) -> Dataset:
    num_classes = 10
    sizes = {"train": examples, "validation": max(examples // 8, 1), "test": max(examples // 8, 1)}
    return Dataset(
        splits={
            split: _SyntheticRecords(number, size, num_classes) for number, (split, size) in enumerate(sizes.items())
        },
        class_names=tuple(f"colour {number}" for number in range(num_classes)),
    )
