"""Splits that a source lacks: which training images are taken for them, by the digests of their contents."""

import functools
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from alexnet_jax.data.images import read_original
from alexnet_jax.data.sources import Original, Source
from alexnet_jax.errors import failure_of_the_machine
from alexnet_jax.system import console
from alexnet_jax.system.machine import available_cores

SMALL_CLASS = 200
"""Images of a class up to which it is made sure that each split has one; with more, chance does: 0.9^200 is 1e-9."""


class Splitting:
    """Moves training images to the splits that a source lacks.

    The digest of an image's content is a position in [0, 1): the first part of it is for testing, the next for
    validation, the rest for training. So copies share a split, and new images move no others. In a class of few images
    each split is given at least one image, if there are three: those of the nearest positions. There, new images can
    move others.

    Args:
      source: the source of the images.
      fractions: fraction of the images for each split that may be lacking.
      max_pixels: see `read_original`.
    """

    def __init__(self, source: Source, fractions: Mapping[str, float], max_pixels: float):
        names = [name for name in ("test", "validation") if name in source.held_out]
        self._fractions = {name: fractions[name] for name in names if fractions[name]}
        is_needed = self._fractions and source.is_stratified
        self._of_small_classes = self._assign_small_classes(source, max_pixels) if is_needed else {}

    def split_of(self, split: str, digest: bytes) -> str:
        """The split of an image: its own; a training image may be held out for testing or validation, by its digest."""
        if split != "train":
            return split
        return self._of_small_classes.get(digest) or self._part_of(digest)

    def _part_of(self, digest: bytes) -> str:
        position = int.from_bytes(digest[:8], "big") / 2**64
        for name, fraction in self._fractions.items():
            if position < fraction:
                return name
            position -= fraction
        return "train"

    def _assign_small_classes(self, source: Source, max_pixels: float) -> dict[bytes, str]:
        """The splits of the images whose class would lack one, by their digests."""
        by_class: dict[int, list[Original]] = defaultdict(list)
        for chunk in source.chunks():
            for image in source.read(chunk):
                if image.split == "train":
                    by_class[image.label].append(image)
        assigned: dict[bytes, str] = {}
        small = [images for images in by_class.values() if len(images) <= SMALL_CLASS]
        read = functools.partial(_digest_of_file, max_pixels=max_pixels)
        with (
            console.work_progress("dividing small classes", sum(map(len, small))) as progress,
            ThreadPoolExecutor(available_cores()) as pool,
        ):
            for images in small:
                assigned |= self._fill(set(pool.map(read, images)) - {b""})
                progress.advance(len(images), len(images))
        return assigned

    def _fill(self, digests: set[bytes]) -> dict[bytes, str]:
        """The splits of the images of one class, by digest.

        Empty if each split has an image already, or if the class has fewer than three different images.
        """
        names = [*self._fractions, "train"]
        parts = [self._part_of(digest) for digest in digests]
        if len(digests) < 3 or all(name in parts for name in names):
            return {}
        ordered, assigned = sorted(digests), dict[bytes, str]()
        for place, name in enumerate(names):
            left, others = len(ordered) - len(assigned), len(names) - place - 1
            count = min(max(parts.count(name), 1), left - others) if others else left
            assigned |= dict.fromkeys(ordered[len(assigned) : len(assigned) + count], name)
        return assigned


def digest_of(content: bytes | np.ndarray) -> bytes:
    """SHA-256 of an image's file or pixels."""
    return hashlib.sha256(np.ascontiguousarray(content).data if isinstance(content, np.ndarray) else content).digest()


def _digest_of_file(image: Original, max_pixels: float) -> bytes:
    """The digest of an image that has not been read yet; none of one that cannot be."""
    try:
        return digest_of(read_original(image.content, max_pixels))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and failure_of_the_machine(error):
            raise
        return b""
