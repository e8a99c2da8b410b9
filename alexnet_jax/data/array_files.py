"""Sources whose images lie as arrays of pixels in a few files: MNIST and Fashion-MNIST in the IDX format, and CIFAR.

They are the files that the data sets' authors publish, read where they lie: compressed or not, packed or unpacked.
"""

import abc
import dataclasses
import functools
import gzip
import math
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from alexnet_jax.data.array_pickle import read_pickle
from alexnet_jax.data.sources import Chunk, Original, Source, chunks_of_splits
from alexnet_jax.errors import MissingSourceError, UserError, reason

_MOST_READ = 2**30
"""Most bytes that are read of a file; the largest of MNIST has 47 million."""

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class ArrayFiles(Source):
    """A training and a test split that are read as a whole; the validation split is taken from the training images.

    Attributes:
      files: the files that hold them.
    """

    held_out = ("validation",)
    files: Sequence[Path]

    @abc.abstractmethod
    def load(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Reads images, uint8, [images, height, width(, 3)], and labels by split. Raises UserError for damage."""

    @functools.cached_property
    def _splits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        splits = self.load()
        for split, (images, labels) in splits.items():
            if len(images) != len(labels):
                where = " and ".join(map(str, self.files))
                raise UserError(f"{where}: {len(images):,} {split} images, but {len(labels):,} labels")
            if len(images) == 0:
                raise UserError(f"{self.files[0].parent}: there are no {split} images")
            if labels.max() >= len(self.class_names):
                raise UserError(f"{self.files[0].parent}: the {split} labels are not 0 to {len(self.class_names) - 1}")
        return splits

    def fingerprint(self) -> str:
        """The names, sizes and modification times of the files."""
        stats = [(path.name, path.stat()) for path in self.files]
        return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)

    def chunks(self) -> list[Chunk]:
        """Chunks of about a hundredth of a split; sizes in images."""
        return chunks_of_splits({split: len(images) for split, (images, _) in self._splits.items()})

    def read(self, chunk: Chunk) -> Iterator[Original]:
        """Yields the images of a chunk, in order."""
        split, numbers = chunk.where
        images, labels = self._splits[split]
        for number in numbers:
            yield Original(split, int(labels[number]), f"{split}/{number}", images[number])


class Idx(ArrayFiles):
    """The four files of MNIST or Fashion-MNIST.

    Args:
      name: "mnist" or "fashion_mnist".
      folder: the folder of the files, each as published (.gz) or unpacked.

    Raises UserError if a file is missing, or there twice.
    """

    def __init__(self, name: str, folder: str):
        self.class_names = FASHION if name == "fashion_mnist" else tuple("0123456789")
        self.files = [
            _idx_file(Path(folder), f"{split}-{what}", name)
            for split in ("train", "t10k")
            for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]

    def load(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Reads the four files."""
        train_images, train_labels, test_images, test_labels = map(read_idx, self.files, (3, 1, 3, 1))
        return {"train": (train_images, train_labels), "test": (test_images, test_labels)}


_WHERE = {
    "mnist": "download the four .gz files of MNIST, for instance from storage.googleapis.com/cvdf-datasets/mnist",
    "fashion_mnist": "download them from github.com/zalandoresearch/fashion-mnist, or install Debian's package "
    "dataset-fashion-mnist and give --config.data.dir=/usr/share/datasets/fashion-mnist",
}


def _idx_file(folder: Path, stem: str, name: str) -> Path:
    found = [path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()]
    if not found:
        raise MissingSourceError(f"{folder / stem}(.gz) not found: {_WHERE[name]}")
    if len(found) > 1:
        raise UserError(f"{folder} has both {stem} and {stem}.gz: remove one of them")
    return found[0]


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an IDX file of bytes, compressed by gzip or not; its content decides, not its suffix.

    The format: two zero bytes, the type (8 for bytes), the number of dimensions, each dimension as a big-endian 32-bit
    integer, then the numbers, the last dimension varying fastest.

    Raises UserError if it is another file, or of another length than its header says.
    """
    magic = bytes([0, 0, 8, dimensions])
    try:
        with path.open("rb") as stored, gzip.open(stored) if is_gzip(stored) else stored as file:
            found = file.read(4)
            shape = [int.from_bytes(file.read(4), "big") for _ in range(dimensions)]
            size = math.prod(shape)
            content = file.read(min(size, _MOST_READ) + 1) if found == magic else b""
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if found != magic:
        raise UserError(
            f"{path} begins with {found.hex() or 'nothing'}, not {magic.hex()}: it is not an IDX file of this kind"
        )
    if 0 in shape[1:]:
        raise UserError(f"{path}: its header says {' x '.join(map(str, shape))} pixels: it is cut off or damaged")
    if len(content) != size:
        more = "more" if len(content) > size else f"{len(content):,}"
        raise UserError(f"{path} should have {' x '.join(map(str, shape))} = {size:,} numbers, but has {more}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def is_gzip(file: BinaryIO) -> bool:
    """Whether a file, of which nothing has been read, begins as gzip's do; it is then at its beginning again."""
    start = file.read(2)
    file.seek(0)
    return start == b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class _CifarFiles:
    """How CIFAR's files are called: the folder, the packed folder, the training and the test files, the class names."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str


_CIFAR = {
    "cifar10": (
        _CifarFiles(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            tuple(f"data_batch_{number}" for number in range(1, 6)),
            "test_batch",
            "batches.meta",
        ),
        _CifarFiles(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            "test_batch.bin",
            "batches.meta.txt",
        ),
    ),
    "cifar100": (
        _CifarFiles("cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", "meta"),
        _CifarFiles("cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), "test.bin", "fine_label_names.txt"),
    ),
}


class Cifar(ArrayFiles):
    """CIFAR-10 or CIFAR-100 in its "python" or "binary" version, packed or unpacked.

    Args:
      name: "cifar10" or "cifar100"; the classes of the latter are the hundred fine ones.
      folder: the folder of the .tar.gz file, of the folder that it holds, or that folder itself.

    Raises UserError if there is neither. The names of the classes are known once the images are read.
    """

    def __init__(self, name: str, folder: str):
        self._layout, self._place = _find_cifar(name, Path(folder))
        self._label_bytes = 2 if name == "cifar100" else 1
        layout = self._layout
        is_packed = self._place.is_file()
        self.files = [self._place] if is_packed else [self._place / file for file in (*layout.train, layout.test)]

    @property
    def _is_binary(self) -> bool:
        return self._layout.test.endswith(".bin")

    def load(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Reads the names of the classes and all batches."""
        layout = self._layout
        contents = self._read_files([layout.names, *layout.train, layout.test])
        self.class_names = self._parse_names(contents.pop(layout.names))
        parse = self._parse_binary if self._is_binary else self._parse_pickle
        batches = {name: parse(name, content) for name, content in contents.items()}
        train = [batches[name] for name in layout.train]
        images, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
        return {"train": (images, labels), "test": batches[layout.test]}

    def _read_files(self, names: Sequence[str]) -> dict[str, bytes]:
        """The contents of files of the data set by name."""
        found: dict[str, bytes] = {}
        try:
            if self._place.is_file():
                with tarfile.open(self._place) as archive:
                    for member in archive:
                        name = Path(member.name).name
                        if name in names and member.isfile() and (file := archive.extractfile(member)):
                            found[name] = file.read(_MOST_READ + 1)
            else:
                for name in names:
                    with (self._place / name).open("rb") as file:
                        found[name] = file.read(_MOST_READ + 1)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is missing") from error
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise UserError(f"{self._place} cannot be read: {reason(error)}") from error
        if large := [name for name, content in found.items() if len(content) > _MOST_READ]:
            raise UserError(f"{self._place}: {large[0]} has more than {_MOST_READ:,} bytes, too many for CIFAR")
        if missing := [name for name in names if name not in found]:
            raise UserError(f"{self._place} has no {', '.join(missing)}")
        return found

    def _parse_names(self, content: bytes) -> tuple[str, ...]:
        if self._is_binary:
            names = content.decode("utf-8", "replace").split()
        else:
            entries = read_pickle(content, f"{self._place}: {self._layout.names}")
            names = entries.get("fine_label_names", entries.get("label_names", []))
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise UserError(f"{self._place}: {self._layout.names} does not hold the names of the classes")
        return tuple(names)

    def _parse_binary(self, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Rows of labels (of CIFAR-100 coarse and fine) and 3 x 32 x 32 pixels."""
        labels = self._label_bytes
        if len(content) % (labels + 3072):
            raise UserError(f"{self._place}: {name} has {len(content):,} bytes, no multiple of {labels + 3072:,}")
        rows = np.frombuffer(content, np.uint8).reshape(-1, labels + 3072)
        return _images(rows[:, labels:]), rows[:, labels - 1]

    def _parse_pickle(self, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
        where = f"{self._place}: {name}"
        entries = read_pickle(content, where)
        pixels, labels = entries.get("data"), entries.get("fine_labels", entries.get("labels"))
        if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (3072,) or not isinstance(labels, list):
            raise UserError(f"{where} does not hold the images of CIFAR")
        if not all(type(label) is int and 0 <= label < 100 for label in labels):
            raise UserError(f"{where} does not hold the labels of CIFAR")
        return _images(pixels), np.array(labels, np.int64)


def _images(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _find_cifar(name: str, folder: Path) -> tuple[_CifarFiles, Path]:
    """The version that lies in a folder, and the folder of its files or its archive."""
    for layout in _CIFAR[name]:
        for place in (folder / layout.folder, folder):
            if (place / layout.test).is_file():
                return layout, place
        for archive in (layout.archive, layout.archive.removesuffix(".gz")):
            if (folder / archive).is_file():
                return layout, folder / archive
    names = " or ".join(layout.archive for layout in _CIFAR[name])
    raise MissingSourceError(f"{folder} has no {names}: download one from www.cs.toronto.edu/~kriz/cifar.html")


READERS: dict[str, type[Idx] | type[Cifar]] = {
    "tfds:mnist": Idx,
    "tfds:fashion_mnist": Idx,
    "tfds:cifar10": Cifar,
    "tfds:cifar100": Cifar,
}
"""Data sets of TFDS that are read from their authors' files if `config.data.dir` is given."""
