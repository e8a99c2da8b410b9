"""What a preparation knows of its images: where each went, what was odd, copies, mean image and principal colours."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from alexnet_jax.data.images import TRAITS

QUARANTINE, DUPLICATES, CLASSES = "quarantine.tsv", "duplicates.tsv", "classes.tsv"


@dataclasses.dataclass
class Inventory:
    """Of a part of the images, or of all of them, in order.

    Attributes:
      split, label, file, digest: of each stored image; the digest is the first 8 bytes of its file's SHA-256.
      traits: how many images had each of `images.TRAITS`.
      quarantine: (split, file, reason) of the unreadable.
      pixel_sum: of the training images, [size, size, 3].
      product_sum: of the products of their channels less 128, over all pixels, [3, 3].
    """

    split: list[str]
    label: list[int]
    file: list[str]
    digest: list[int]
    traits: Counter[str]
    quarantine: list[tuple[str, str, str]]
    pixel_sum: np.ndarray
    product_sum: np.ndarray

    def __post_init__(self) -> None:
        self._rows = np.zeros((-(-self.pixel_sum.size // (512 * 12)), 512, 12), np.float32)

    @classmethod
    def create(cls, image_size: int) -> "Inventory":
        """An empty one."""
        return cls([], [], [], [], Counter(), [], np.zeros((image_size, image_size, 3), np.float32), np.zeros((3, 3)))

    def add(self, split: str, label: int, file: str, digest: bytes, traits: Iterable[str], pixels: np.ndarray) -> None:
        """Counts a stored image."""
        self.split.append(split)
        self.label.append(label)
        self.file.append(file)
        self.digest.append(int.from_bytes(digest[:8], "big"))
        self.traits.update(traits)
        if split == "train":
            cv2.accumulate(pixels, self.pixel_sum)
            self.product_sum += _channel_products(pixels, self._rows)

    def save(self, path: Path) -> None:
        """Writes the file in one step."""
        lists = {name: getattr(self, name) for name in ("split", "label", "file", "digest", "traits", "quarantine")}
        text = np.frombuffer(json.dumps(lists).encode(), np.uint8)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, text=text, pixel_sum=self.pixel_sum, product_sum=self.product_sum)
        temporary.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Inventory":
        """Reads a saved one."""
        with np.load(path) as arrays:
            lists = json.loads(arrays["text"].tobytes())
            lists["traits"] = Counter(lists["traits"])
            lists["quarantine"] = [tuple(row) for row in lists["quarantine"]]
            return cls(**lists, pixel_sum=arrays["pixel_sum"], product_sum=arrays["product_sum"])

    def extend(self, other: "Inventory") -> None:
        """Appends a later part."""
        for name in ("split", "label", "file", "digest", "quarantine"):
            getattr(self, name).extend(getattr(other, name))
        self.traits.update(other.traits)
        self.pixel_sum = self.pixel_sum.astype(np.float64) + other.pixel_sum  # a part's are exact in float32
        self.product_sum += other.product_sum

    def counts(self, num_classes: int) -> dict[str, np.ndarray]:
        """Images of each class, by split."""
        splits, labels = np.array(self.split), np.array(self.label, np.int64)
        return {
            split: np.bincount(labels[splits == split], minlength=num_classes)
            for split in dict.fromkeys(("train", "validation", *self.split))
        }

    def duplicates(self) -> list[tuple[str, str, str, str]]:
        """(split, file, split, file) of equal files in different splits, which make errors look too small."""
        first: dict[int, int] = {}
        pairs = []
        for index, digest in enumerate(self.digest):
            known = first.setdefault(digest, index)
            if self.split[known] != self.split[index]:
                pairs.append((self.split[known], self.file[known], self.split[index], self.file[index]))
        return pairs

    def copies(self) -> int:
        """How many images are equal to an earlier one, in whatever split."""
        return len(self.digest) - len(set(self.digest))

    def content(self) -> str:
        """A digest of all images, their order, labels and splits."""
        digest = hashlib.sha256(np.array(self.digest, np.uint64).tobytes())
        digest.update(np.array(self.label, np.int64).tobytes())
        digest.update(" ".join(self.split).encode())
        return digest.hexdigest()

    def statistics(self) -> "Statistics":
        """Of the training images. Raises ValueError if there are none."""
        images = self.split.count("train")
        if not images:
            raise ValueError("no training images")
        mean_image = self.pixel_sum.astype(np.float64) / images
        mean = mean_image.mean(axis=(0, 1))
        covariance = self.product_sum / (images * mean_image.shape[0] ** 2) - np.outer(mean - 128, mean - 128)
        variances, vectors = np.linalg.eigh(covariance)
        largest = np.abs(vectors).argmax(axis=0)
        vectors *= np.sign(vectors[largest, range(3)])  # the sign of a component is arbitrary
        return Statistics(
            mean_image=mean_image.astype(np.float32),
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(covariance.diagonal().clip(0)).tolist()),
            pca_std=tuple(np.sqrt(variances[::-1].clip(0)).tolist()),
            pca_vectors=tuple(map(tuple, vectors[:, ::-1].tolist())),
        )


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of the training images' grey levels, 0 to 255.

    Attributes:
      mean_image: float32, [size, size, 3].
      mean, std: of R, G and B.
      pca_std: standard deviations along the principal components of the colours, the largest first.
      pca_vectors: the components as columns, rows R, G, B.
    """

    mean_image: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pca_std: tuple[float, ...]
    pca_vectors: tuple[tuple[float, ...], ...]

    @classmethod
    def unknown(cls, image_size: int) -> "Statistics":
        """Stands for those of images that are not prepared yet."""
        nothing = (0.0, 0.0, 0.0)
        return cls(np.zeros((image_size, image_size, 3), np.float32), nothing, nothing, nothing, (nothing,) * 3)


def save_mean_image(directory: Path, statistics: Statistics) -> None:
    """Writes what is too long for a text file."""
    np.save(directory / "mean_image.npy", statistics.mean_image)


def save_examples(directory: Path, inventory: Inventory) -> None:
    """Writes labels and file names of each split, in order."""
    splits = np.array(inventory.split)
    for split in dict.fromkeys(inventory.split):
        chosen = np.flatnonzero(splits == split)
        np.save(directory / f"{split}_labels.npy", np.array([inventory.label[i] for i in chosen], np.int32))
        (directory / f"{split}_files.json").write_text(json.dumps([inventory.file[i] for i in chosen]))


def write_tables(directory: Path, inventory: Inventory, class_names: Sequence[str]) -> None:
    """Writes what a report points to: counts by class, unreadable images, copies in different splits."""
    counts = inventory.counts(len(class_names))
    rows = zip(class_names, *(column.tolist() for column in counts.values()), strict=True)
    write_table(directory / CLASSES, ("class", *counts), rows)
    write_table(directory / QUARANTINE, ("split", "file", "reason"), inventory.quarantine)
    header = ("split", "file", "split of its copy", "file of its copy")
    write_table(directory / DUPLICATES, header, inventory.duplicates())


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes tab-separated values; tabs and line ends in them become spaces."""
    lines = ["\t".join(" ".join(str(value).split()) for value in row) for row in (header, *rows)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")


def describe(info: Mapping[str, Any], inventory: Inventory, directory: Path, remarks: Sequence[str]) -> dict[str, str]:
    """The report of a preparation, name and text."""
    class_names, statistics = info["class_names"], info["statistics"]
    counts = inventory.counts(len(class_names))
    images, size, duplicates = len(inventory.label), info["image_size"], inventory.duplicates()
    sizes = "; ".join(
        f"{split} {column.sum():,} ({column.min():,} to {column.max():,} a class)" for split, column in counts.items()
    )
    report = {
        "prepared": f"{images:,} images of {len(class_names):,} classes in {directory}",
        "stored": f"{size} x {size} {info['storage']}, {info['bytes'] / 1e6:,.1f} MB, {info['bytes'] / images:,.0f} "
        "bytes an image",
        "splits": f"{sizes}; see {CLASSES}",
        "odd": ", ".join(f"{inventory.traits[trait]:,} {trait}" for trait in TRAITS),
        "unreadable": f"{len(inventory.quarantine):,}" + (f"; see {QUARANTINE}" if inventory.quarantine else ""),
        "copies": f"{inventory.copies():,}, {len(duplicates):,} of them in another split"
        + (f"; see {DUPLICATES}" if duplicates else ""),
        "colours": f"mean {_numbers(statistics['mean'])}, std {_numbers(statistics['std'])}, "
        f"along principal components {_numbers(statistics['pca_std'])}",
    }
    untrained = [name for name, count in zip(class_names, counts["train"], strict=True) if not count]
    if untrained:
        report["untrained"] = f"no training image of {', '.join(map(repr, untrained[:5]))}" + (
            f" and {len(untrained) - 5} more" if len(untrained) > 5 else ""
        )
    if remarks:
        report["remarks"] = "; ".join(remarks)
    return report


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def _channel_products(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sums of the products of channels less 128 over an image, [3, 3].

    Four pixels a row make the matrix products wide enough; over 512 rows float32 is exact, for 512 * 128^2 < 2^24.
    `rows` is where they are laid out, [any, 512, 12], zeros behind them; threads that allocate it wait for each other.
    """
    np.subtract(pixels.ravel(), 128, out=rows.reshape(-1)[: pixels.size], dtype=np.float32)
    products = (rows.transpose(0, 2, 1) @ rows).sum(axis=0, dtype=np.float64)
    return np.einsum("ijik->jk", products.reshape(4, 3, 4, 3))
