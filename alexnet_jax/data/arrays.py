"""The source "arrays": images and labels that a program has in memory."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alexnet_jax.data.images import check_pixels
from alexnet_jax.data.layouts import by_number
from alexnet_jax.data.sources import SPLITS, Chunk, Original, Source, chunks_of_splits
from alexnet_jax.errors import UserError, check_choice, reason

ARRAYS = "arrays"
"""Value of config.data.name."""

Arrays = Mapping[str, Any]
"""(images, labels) by split: "train" and, if there are any, "validation" and "test".

Images: uint8, [images, height, width], [images, height, width, 1] or [images, height, width, 3], RGB. Labels: whole
numbers or text, [images] or [images, 1].
"""


class ArraySource(Source):
    """Images in arrays. The classes are the labels of the training images; lacking splits are taken as from a folder.

    Raises UserError that names the split if its arrays are of another form.
    """

    is_stratified = True

    def __init__(self, arrays: Arrays):
        if "train" not in arrays:
            raise UserError('data: there are no training images: give {"train": (images, labels), ...}')
        self._images: dict[str, np.ndarray] = {}
        self._labels: dict[str, list[str]] = {}
        for split in sorted(arrays, key=lambda split: SPLITS.index(check_choice("data: split", split, SPLITS))):
            try:
                self._images[split], self._labels[split] = _checked(*arrays[split])
            except (TypeError, ValueError) as error:
                raise UserError(f"data[{split!r}]: {reason(error)}") from error
        self.held_out = () if "validation" in arrays else tuple(split for split in SPLITS if split not in arrays)
        self.class_names = by_number(self._labels["train"])
        if len(self.class_names) < 2:
            raise UserError("data['train'] has only one class, but a classifier needs at least two")
        for split, labels in self._labels.items():
            if strange := sorted(set(labels) - set(self.class_names)):
                raise UserError(f"data[{split!r}]: class {strange[0]!r} has no training images")

    def fingerprint(self) -> str:
        """A digest of all pixels and labels."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for split, images in self._images.items():
            digest.update(repr((split, images.shape, self._labels[split])).encode())
            digest.update(np.ascontiguousarray(images).data)
        return f"arrays {digest.hexdigest()}"

    def chunks(self) -> list[Chunk]:
        """Chunks of about a hundredth of a split; sizes in images."""
        return chunks_of_splits({split: len(images) for split, images in self._images.items()})

    def read(self, chunk: Chunk) -> Iterator[Original]:
        """Yields the images of a chunk, in order."""
        labels = {name: label for label, name in enumerate(self.class_names)}
        split, numbers = chunk.where
        for index in numbers:
            yield Original(split, labels[self._labels[split][index]], f"{split}/{index}", self._images[split][index])


def _checked(images: Any, labels: Any) -> tuple[np.ndarray, list[str]]:
    """Images as an array, and the names of their classes. Raises ValueError if they are of another form."""
    images, labels = np.asarray(images), np.asarray(labels)
    check_pixels(images)
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)) or images.size == 0:
        raise ValueError(
            f"images of shape {images.shape} are not [images, height, width], perhaps with 1 or 3 channels"
        )
    if labels.shape == (len(labels), 1):
        labels = labels[:, 0]
    if labels.shape != (len(images),):
        raise ValueError(f"labels of shape {labels.shape} are not one for each of {len(images):,} images")
    if labels.dtype.kind not in "biuU" and not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels of type {labels.dtype} are neither whole numbers nor text")
    return images, [str(label) for label in labels]
