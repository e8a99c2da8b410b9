"""Sources of original images: the interface, and the sources "digits", "synthetic" and "tfds:NAME".

A source lists its images without reading them, in chunks that can be read in parallel and in any order. The sources
"folder" and "imagenet2012" are in `image_folder.py` and `imagenet.py`.
"""

import abc
import contextlib
import functools
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.data.storage import check_array_record
from alexnet_jax.errors import MissingSourceError, UserError, reason

SPLITS = ("train", "validation", "test")
Item = TypeVar("Item")


class Original(NamedTuple):
    """An original image.

    Attributes:
      split: one of SPLITS.
      label: index of its class.
      file: its name, for messages and tables.
      content: the encoded image, the path of its file, or pixels, uint8, [height, width] or [height, width, 1 or 3].
    """

    split: str
    label: int
    file: str
    content: bytes | Path | np.ndarray


class Chunk(NamedTuple):
    """Some images of a source, which one thread reads in order.

    Attributes:
      size: amount of work, in a unit of the source such as bytes.
      images: number of images, as far as it is known without reading them.
      where: what the source needs to find the images.
    """

    size: int
    images: int
    where: Any


class Source(abc.ABC):
    """The original images of a data set, with their classes.

    Attributes:
      class_names: names of the classes, in the order of labels.
      held_out: splits that the source lacks and that are taken from its training images.
      is_stratified: whether each class gets an image in each of them, if it has enough; its images are then read twice.
      remarks: lines for the report: what was ignored, and why.
    """

    class_names: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    is_stratified = False
    remarks: tuple[str, ...] = ()

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Returns a text that changes whenever the images change."""

    @abc.abstractmethod
    def chunks(self) -> list[Chunk]:
        """Returns all images in chunks; the list is always the same for the same fingerprint."""

    @abc.abstractmethod
    def read(self, chunk: Chunk) -> Iterator[Original]:
        """Yields the images of a chunk, in order. Raises UserError if the source is damaged."""


def divide_into_chunks(images: Sequence[Item]) -> list[Sequence[Item]]:
    """Divides images into at most a hundred chunks: enough for many cores, without too many open files."""
    size = max(-(-len(images) // 100), 64)
    return [images[start : start + size] for start in range(0, len(images), size)]


def chunks_of_splits(sizes: Mapping[str, int]) -> list[Chunk]:
    """The chunks of splits of so many images, each with its split and the numbers of its images there."""
    return [
        Chunk(len(numbers), len(numbers), (split, numbers))
        for split, size in sizes.items()
        for numbers in divide_into_chunks(range(size))
    ]


class Digits(Source):
    """The 1,797 scans of handwritten digits that scikit-learn ships, 8x8 pixels in 17 grey levels.

    They are the test half of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI). A fixed
    random split makes 1,257 training, 180 validation and 360 test images.
    """

    class_names = tuple("0123456789")

    def fingerprint(self) -> str:
        """A constant: scikit-learn ships only this set of digits."""
        return "digits"

    def chunks(self) -> list[Chunk]:
        """One chunk of all images."""
        return [Chunk(1797, 1797, None)]

    def read(self, chunk: Chunk) -> Iterator[Original]:
        """Yields the training, validation and test images, each in random order."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(2012).permutation(len(digits.target))
        for split, indices in zip(SPLITS, np.split(order, [1257, 1437]), strict=True):
            for index in indices:
                grey = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
                yield Original(split, int(digits.target[index]), f"digits/{index}", grey)


class Synthetic(Source):
    """Images of noise around a colour that tells the class: learnable, with nothing to download."""

    class_names = tuple(f"colour {number}" for number in range(10))

    def __init__(self, examples: int):
        self._examples = examples

    def fingerprint(self) -> str:
        """The number of training images, which determines all others."""
        return f"synthetic {self._examples}"

    def chunks(self) -> list[Chunk]:
        """One chunk per split; the validation and the test split each have an eighth of the training images."""
        sizes = [self._examples, *[max(self._examples // 8, 1)] * 2]
        return [Chunk(size, size, number) for number, size in enumerate(sizes)]

    def read(self, chunk: Chunk) -> Iterator[Original]:
        """Yields the images of a split, 32 x 32 pixels."""
        for index in range(chunk.images):
            label = index % len(self.class_names)
            colour = np.random.default_rng(label).integers(64, 192, 3)
            noise = np.random.default_rng((chunk.where, index)).integers(-40, 41, (32, 32, 3))
            pixels = (colour + noise).astype(np.uint8)
            yield Original(SPLITS[chunk.where], label, f"synthetic/{index}", pixels)


class Tfds(Source):
    """An image classification data set of TFDS, in ArrayRecord files.

    Reading them needs no TensorFlow; only downloading and preparing one with TFDS does.

    Raises UserError if the data set cannot be prepared, or has no images with class labels or no training split.
    """

    def __init__(self, name: str, prepared_dir: str):
        check_array_record()
        wanted = f"config.data.name='tfds:{name}'"
        with _known_features_alone(wanted):
            self._builder = _prepared_builder(name, prepared_dir)
        info = self._builder.info
        features = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
        label = features.get("label")
        if not isinstance(label, tfds.features.ClassLabel) or "image" not in features:
            raise UserError(f"{wanted} has no image with a class label, but {', '.join(features)}")
        if "train" not in info.splits:
            raise UserError(f"{wanted} has no training split, but {', '.join(info.splits)}")
        self.class_names = tuple(label.names)
        splits, encoded = [split for split in SPLITS if split in info.splits], {"image": tfds.decode.SkipDecoding()}
        self._records = {split: self._builder.as_data_source(split=split, decoders=encoded) for split in splits}
        if "test" in self._records and self._records["test"][0]["label"] < 0:
            del self._records["test"]  # its labels are not public, as with ILSVRC-2012
        self.held_out = () if "validation" in self._records else ("validation",)

    def fingerprint(self) -> str:
        """Name and version of the data set, and the sizes of its splits."""
        return f"{self._builder.info.full_name} " + " ".join(f"{s}:{len(r)}" for s, r in self._records.items())

    def chunks(self) -> list[Chunk]:
        """Chunks of about a hundredth of a split; sizes in records."""
        return chunks_of_splits({split: len(records) for split, records in self._records.items()})

    def read(self, chunk: Chunk) -> Iterator[Original]:
        """Yields the images of a chunk, in order."""
        split, numbers = chunk.where
        for index in numbers:
            record = self._records[split][index]
            yield Original(split, int(record["label"]), f"{split}/{index}", record["image"])


FEATURES = ("BBoxFeature", "ClassLabel", "FeaturesDict", "Image", "Scalar", "Sequence", "Tensor", "Text")
"""The classes of TFDS by which the features.json of a prepared data set may describe it."""


@contextlib.contextmanager
def _known_features_alone(wanted: str) -> Iterator[None]:
    """Meanwhile a features.json that names other classes than FEATURES is refused: TFDS would import what it names."""
    base = tfds.features.FeatureConnector
    class_of = base.cls_from_name

    def known_class(name: str) -> Any:
        package, _, kind = name.rpartition(".")
        if kind not in FEATURES or not package.startswith("tensorflow_datasets.core.features."):
            raise UserError(f"{wanted}: its files name the class {name!r}, which is none of {', '.join(FEATURES)}")
        return class_of(name)

    base.cls_from_name = known_class
    try:
        yield
    finally:
        base.cls_from_name = class_of


_BUILDER_ERRORS = (tfds.core.DatasetNotFoundError, ValueError, AssertionError, ImportError, OSError)


def _prepared_builder(name: str, prepared_dir: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of a prepared data set; if it is not prepared, TFDS prepares it, with TensorFlow."""
    make_builder = functools.partial(tfds.builder, name, file_format="array_record")
    for folder in (prepared_dir, os.environ.get("TFDS_DATA_DIR", str(Path("~/tensorflow_datasets").expanduser()))):
        with contextlib.suppress(*_BUILDER_ERRORS):
            builder = make_builder(data_dir=folder)
            if builder.is_prepared():
                return builder
    wanted, where = f"config.data.name='tfds:{name}'", f"put its ArrayRecord files in {prepared_dir} or $TFDS_DATA_DIR"
    try:
        builder = make_builder(data_dir=prepared_dir)
        import tensorflow  # noqa: F401
    except ImportError as error:
        missing = f" ({error.name} is missing)" if error.name != "tensorflow" else ""
        raise MissingSourceError(
            f"{wanted} is not prepared in {prepared_dir}; to prepare it install TensorFlow (python -m pip install -r "
            f"requirements-tfds.txt){missing}, or {where}"
        ) from error
    except _BUILDER_ERRORS as error:
        why = reason(ValueError(str(error).rpartition('}": ')[2]))  # without the arguments, which stand first
        raise MissingSourceError(f"{wanted} is neither prepared nor known to TFDS ({why}); {where}") from error
    try:
        logging.getLogger().setLevel(logging.ERROR)  # hides warnings of each attempt to connect
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except Exception as error:  # downloads raise anything
        raise UserError(f"TFDS cannot prepare {name} ({reason(error)}); is there a network? If not, {where}") from error
    return builder
