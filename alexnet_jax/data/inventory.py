"""The inventory of prepared images: splits, labels, files, unusual properties, unreadable images and duplicates."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data.images import PROPERTIES, PreparedImage
from alexnet_jax.data.statistics import PixelSums, Statistics
from alexnet_jax.data.storage import FolderInfo
from alexnet_jax.system.files import flush, inert

_LISTS = ("split", "label", "file", "digest", "checksum", "quarantine")
QUARANTINE_TABLE, DUPLICATES_TABLE, CLASSES_TABLE = "quarantine.tsv", "duplicates.tsv", "classes.tsv"

MOST_LISTED = 30
"""Classes that the report lists."""

FEW_IMAGES = 50
"""A split with fewer images is said to be small: its error has a 95 % interval of about 20 points, or of more."""


class Inventory:
    """The images of one chunk or of all chunks, in order.

    Attributes:
      split, label, file, digest: of each stored image; the digest is the first 8 bytes of its file's SHA-256.
      checksum: of the pixels of each image that is stored as such; see `storage.checksum`.
      traits: number of images with each of `images.PROPERTIES`.
      quarantine: (split, file, reason) of each unreadable image.
      sums: pixel sums over the training images.
    """

    def __init__(self, image_size: int):
        self.split: list[str] = []
        self.label: list[int] = []
        self.file: list[str] = []
        self.digest: list[int] = []
        self.checksum: list[int] = []
        self.traits: Counter[str] = Counter()
        self.quarantine: list[Sequence[str]] = []
        self.sums = PixelSums(image_size)

    def add(self, image: PreparedImage) -> None:
        """Adds a stored image."""
        self.split.append(image.split)
        self.label.append(image.label)
        self.file.append(image.file)
        self.digest.append(int.from_bytes(image.digest[:8], "big"))
        self.traits.update(image.resized.properties)
        if image.split == "train":
            self.sums.add(image.resized.pixels)

    def save(self, path: Path) -> None:
        """Writes the inventory to a file, atomically."""
        lists = {name: getattr(self, name) for name in (*_LISTS, "traits")}
        text = np.frombuffer(json.dumps(lists).encode(), np.uint8)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, text=text, pixel_sum=self.sums.pixels, product_sum=self.sums.products)
        flush(temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Inventory":
        """Reads an inventory that `save` has written."""
        with np.load(path) as arrays:
            inventory = cls(len(arrays["pixel_sum"]))
            inventory.sums.pixels, inventory.sums.products = arrays["pixel_sum"], arrays["product_sum"]
            inventory._extend(json.loads(arrays["text"].tobytes()))
        return inventory

    def extend(self, other: "Inventory") -> None:
        """Appends the inventory of a later chunk."""
        self._extend(vars(other))
        self.sums.extend(other.sums)

    def _extend(self, lists: Mapping[str, Any]) -> None:
        for name in _LISTS:
            getattr(self, name).extend(lists[name])
        self.traits.update(lists["traits"])

    def images(self) -> int:
        """Returns the number of images, including unreadable ones."""
        return len(self.label) + len(self.quarantine)

    def counts(self, num_classes: int) -> dict[str, np.ndarray]:
        """Returns the number of stored images of each class, [num_classes], by split."""
        splits, labels = np.array(self.split), np.array(self.label, np.int64)
        return {
            split: np.bincount(labels[splits == split], minlength=num_classes)
            for split in dict.fromkeys(("train", "validation", *self.split))
        }

    def duplicates(self) -> list[tuple[str, str, str, str]]:
        """Returns (split, file, split, file) for equal files in different splits, which make test errors too low."""
        first: dict[int, int] = {}
        pairs = []
        for index, digest in enumerate(self.digest):
            known = first.setdefault(digest, index)
            if self.split[known] != self.split[index]:
                pairs.append((self.split[known], self.file[known], self.split[index], self.file[index]))
        return pairs

    def content(self) -> str:
        """Returns a digest of all stored images, their order, labels and splits."""
        digest = hashlib.sha256(np.array(self.digest, np.uint64).tobytes())
        digest.update(np.array(self.label, np.int64).tobytes())
        digest.update(" ".join(self.split).encode())
        return digest.hexdigest()


def save_arrays(directory: Path, inventory: Inventory, statistics: Statistics) -> None:
    """Writes the mean image, and the labels, file names and checksums of each split, in the order of its images."""
    np.save(directory / "mean_image.npy", statistics.mean_image)
    splits = np.array(inventory.split)
    for split in dict.fromkeys(inventory.split):
        chosen = np.flatnonzero(splits == split)
        np.save(directory / f"{split}_labels.npy", np.array([inventory.label[i] for i in chosen], np.int32))
        (directory / f"{split}_files.json").write_text(json.dumps([inventory.file[i] for i in chosen]))
        if inventory.checksum:
            np.save(directory / f"{split}_checksums.npy", np.array([inventory.checksum[i] for i in chosen], np.uint32))


def write_tables(directory: Path, inventory: Inventory, class_names: Sequence[str]) -> None:
    """Writes the tables that a report refers to: images of each class, unreadable images, duplicates across splits."""
    counts = inventory.counts(len(class_names))
    rows = zip(class_names, *(column.tolist() for column in counts.values()), strict=True)
    write_table(directory / CLASSES_TABLE, ("class", *counts), rows)
    write_table(directory / QUARANTINE_TABLE, ("split", "file", "reason"), inventory.quarantine)
    header = ("split", "file", "split of its copy", "file of its copy")
    write_table(directory / DUPLICATES_TABLE, header, inventory.duplicates())


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes tab-separated values, each `inert`; tabs and line breaks within a value become spaces."""
    lines = ["\t".join(inert(" ".join(str(value).split())) for value in row) for row in (header, *rows)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")


def describe(info: FolderInfo, inventory: Inventory, directory: Path, remarks: Sequence[str]) -> dict[str, str]:
    """Returns the report of a preparation, as lines of name and text."""
    counts = inventory.counts(len(info.class_names))
    images, size, duplicates = len(inventory.label), info.image_size, len(inventory.duplicates())
    copies, image_bytes = images - len(set(inventory.digest)), info.bytes / images
    sizes = "; ".join(
        f"{split} {column.sum():,} ({column.min():,} to {column.max():,} per class)" for split, column in counts.items()
    )
    colours = [" ".join(f"{value:.1f}" for value in info.statistics[name]) for name in ("mean", "std", "pca_std")]
    see_unreadable = f"; see {QUARANTINE_TABLE}" if info.unreadable else ""
    see_duplicates = f"; see {DUPLICATES_TABLE}" if duplicates else ""
    report = {
        "prepared": f"{images:,} images of {len(info.class_names):,} classes in {directory}",
        "stored": f"{size} x {size} {info.storage}, {info.bytes / 1e6:,.1f} MB, {image_bytes:,.0f} bytes per image",
        "classes": _list_classes(info.class_names, sum(counts.values())),
        "splits": f"{sizes}; see {CLASSES_TABLE}",
        "unusual": ", ".join(f"{info.traits[name]:,} {name}" for name in PROPERTIES if name in info.traits),
        "unreadable": f"{info.unreadable:,}{see_unreadable}",
        "duplicates": f"{copies:,}, {duplicates:,} of them in another split{see_duplicates}",
        "colours": "mean {}, std {}, std along principal components {}".format(*colours),
    }
    untrained = [name for name, count in zip(info.class_names, counts["train"], strict=True) if not count]
    if untrained:
        more = f" and {len(untrained) - 5} more" if len(untrained) > 5 else ""
        report["untrained"] = f"no training image of {', '.join(map(repr, untrained[:5]))}{more}"
    if few := _too_few(counts):
        report["small"] = few
    if remarks:
        report["notes"] = "; ".join(remarks)
    return report


def _list_classes(names: Sequence[str], images: Any) -> str:
    """The classes, each with its number of images; of many the first."""
    shown = [f"{name} {count:,}" for name, count in zip(names, images.tolist(), strict=True)][:MOST_LISTED]
    return ", ".join(shown) + (f" and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else "")


def _too_few(counts: Mapping[str, np.ndarray]) -> str:
    """Says which splits besides that of training are too small for their errors to mean much."""
    small = []
    for split, column in counts.items():
        if split != "train" and 0 < column.sum() < FEW_IMAGES:
            least = f", {(column == 0).sum():,} classes without one" if not column.all() else ""
            small.append(f"{split} has {column.sum():,} images{least}: one mistake is {100 / column.sum():.1f} % error")
    return "; ".join(small)
