"""Formats of prepared images on disk: JPEG in ArrayRecord files that TFDS can read, or pixels in .npy files."""

import dataclasses
import errno
import importlib.util
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data.images import PreparedImage, decode_jpeg, encode_jpeg
from alexnet_jax.data.manifest import damaged_error, read_manifest
from alexnet_jax.errors import UserError

Shards = Mapping[str, Sequence[Sequence[Any]]]
"""(file name, images, bytes) of each shard, by split."""

INFO = "info.json"
_NAME = "images"  # TFDS needs a name


@dataclasses.dataclass(frozen=True)
class FolderInfo:
    """The content of info.json in a prepared folder.

    Attributes:
      source: fingerprint of the original images.
      content: digest of all images, labels and splits.
      storage: "jpeg" or "raw".
      image_size: side of the images, in pixels.
      jpeg_quality: 1 to 100.
      class_names: names of the classes, in the order of labels.
      shards: see Shards.
      bytes: total size of all shards.
      unreadable: number of images that could not be decoded.
      traits: number of images with each of `images.PROPERTIES`.
      statistics: statistics of the training images without the mean image.
    """

    source: str
    content: str
    storage: str
    image_size: int
    jpeg_quality: int
    class_names: Sequence[str]
    shards: Shards
    bytes: int
    unreadable: int
    traits: dict[str, int]
    statistics: dict[str, Any]

    def write(self, directory: Path) -> None:
        """Writes info.json, which marks a folder as complete."""
        (directory / INFO).write_text(json.dumps(dataclasses.asdict(self), indent=2))


def read_info(directory: Path) -> FolderInfo | None:
    """Returns the info of a prepared folder; None if it is not one. Raises UserError if it is damaged."""
    try:
        text = (directory / INFO).read_text()
        if manifest := read_manifest(directory):
            manifest.check([INFO])
        return FolderInfo(**json.loads(text))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:  # TypeError: missing or unknown keys
        raise damaged_error(directory, f"{INFO} ({error})") from error


@runtime_checkable
class Records(Protocol):
    """Random access to the images of a split.

    Attributes:
      labels: class of each image, int32, [images].
      image_size: side of the images, in pixels.
      is_compressed: whether images are decoded when they are read.
    """

    labels: np.ndarray
    image_size: int
    is_compressed: bool

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """Reads images into `out`, uint8, [indices, size, size, 3]. Many threads may read at once."""


def has_array_record() -> bool:
    """Whether the package of ArrayRecord files is installed; there is none for Windows."""
    return importlib.util.find_spec("array_record") is not None


def check_array_record() -> None:
    """Raises UserError if `has_array_record` does not hold."""
    if not has_array_record():
        raise UserError(
            "array_record is missing, of which there is none for Windows: give --config.data.storage=raw, and a set of "
            "TFDS as a folder of images"
        )


def read_images(records: Records, ids: np.ndarray) -> np.ndarray:
    """Returns the images of a split with these ids, uint8, [ids, size, size, 3]."""
    pixels = np.empty((len(ids), records.image_size, records.image_size, 3), np.uint8)
    records.read(ids, pixels)
    return pixels


class JpegRecords:
    """Records in ArrayRecord files of tf.train.Examples that hold JPEG images."""

    is_compressed = True

    def __init__(self, paths_and_counts: Sequence[tuple[Path, int]], labels: np.ndarray, image_size: int):
        check_array_record()
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.labels, self.image_size, self._folder = labels, image_size, paths_and_counts[0][0].parent
        # A file given with its range is opened at its first use, not now.
        self._source = ArrayRecordDataSource([f"{path}[0:{count}]" for path, count in paths_and_counts])

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """Decodes images into `out`. Raises UserError if one is damaged."""
        for index, pixels in zip(indices, out, strict=True):
            try:
                decode_jpeg(self.read_jpeg(int(index)), pixels)
            except (OSError, ValueError, RuntimeError, DecodeError) as error:
                raise damaged_error(self._folder, f"image {index} ({error})") from error

    def read_jpeg(self, index: int) -> bytes:
        """Returns the JPEG bytes of an image."""
        example = tf_example_pb2.Example.FromString(self._source[index])
        return example.features.feature["image"].bytes_list.value[0]


class PixelRecords:
    """Records in memory-mapped .npy files of pixels, uint8, [images, size, size, 3]."""

    is_compressed = False

    def __init__(
        self,
        paths_and_counts: Sequence[tuple[Path, int]],
        labels: np.ndarray,
        image_size: int,
        checksums: np.ndarray | None = None,
    ):
        """Opens the files; an image is compared with its checksum, if there are any, when it is first read.

        Raises ValueError that names a file which does not hold so many images.
        """
        self.labels, self.image_size, self._checksums = labels, image_size, checksums
        self._paths, counts = zip(*paths_and_counts, strict=True)
        shape = (image_size, image_size, 3)
        self._shards = [_open_pixels(path, (count, *shape)) for path, count in paths_and_counts]
        self._ends = np.cumsum(counts)
        self._is_checked = np.full(len(labels), checksums is None)

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """Copies images from the files into `out`. Raises UserError if one is damaged."""
        shards = np.searchsorted(self._ends, indices, side="right")
        for pixels, index, number in zip(out, indices, shards, strict=True):
            pixels[:] = self._shards[number][index - self._ends[number]]  # negative: from the end
            if not self._is_checked[index]:
                self._check(pixels, int(index), self._paths[number])

    def _check(self, pixels: np.ndarray, index: int, path: Path) -> None:
        """Raises UserError if an image in the file `path` does not match its checksum."""
        assert self._checksums is not None
        if checksum(pixels) != self._checksums[index]:
            raise damaged_error(path.parent, f"{path.name} (image {index} does not match its checksum)")
        self._is_checked[index] = True


def _open_pixels(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Maps a .npy file of pixels into memory. Raises ValueError that names it if they are not of this shape."""
    try:
        pixels: np.ndarray = np.load(path, mmap_mode="r")
    except OSError:
        raise
    except Exception as error:  # on damaged headers NumPy raises errors of Python's tokenizer and more
        raise ValueError(f"{path.name} ({error})") from error
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise ValueError(f"{path.name} ({pixels.dtype} of shape {pixels.shape}, not uint8 of {shape})")
    return pixels


def checksum(pixels: np.ndarray) -> int:
    """CRC-32 of the pixels of an image."""
    return zlib.crc32(pixels.data)


class InMemoryRecords:
    """Records in one array of pixels, uint8, [images, size, size, 3]."""

    is_compressed = False

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels, self.image_size = images, labels, images.shape[1]

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """Copies images from the array into `out`."""
        np.take(self.images, indices, axis=0, out=out, mode="clip")  # "raise" would copy once more


class JpegWriter:
    """Writes one ArrayRecord file for JpegRecords; encodes images that are not JPEG files of the right size already."""

    def __init__(self, path: Path, quality: int):
        check_array_record()
        from array_record.python.array_record_module import ArrayRecordWriter

        self._writer, self._quality = ArrayRecordWriter(str(path), "group_size:1,uncompressed"), quality

    def write(self, image: PreparedImage) -> None:
        """Appends an image, its label and its file name."""
        jpeg = image.resized.jpeg or encode_jpeg(image.resized.pixels, self._quality)
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature["image"].bytes_list.value.append(jpeg)
        feature["label"].int64_list.value.append(image.label)
        feature["file_name"].bytes_list.value.append(image.file.encode(errors="backslashreplace"))
        self._writer.write(example.SerializeToString(deterministic=True))

    def close(self) -> None:
        """Completes the file. Raises OSError if writing failed."""
        try:
            self._writer.close()
        except RuntimeError as error:  # the writer reports failed writes only here
            text = str(error)
            code = errno.ENOSPC if os.strerror(errno.ENOSPC) in text else errno.EIO
            raise OSError(code, text.splitlines()[0]) from error


class PixelWriter:
    """Writes one .npy file for PixelRecords."""

    def __init__(self, path: Path, image_size: int):
        self._file, self._image_size, self._count = path.open("wb"), image_size, 0
        self._write_header()

    def write(self, image: PreparedImage) -> None:
        """Appends the pixels of an image."""
        self._file.write(image.resized.pixels.data)
        self._count += 1

    def close(self) -> None:
        """Completes the file: writes the number of images into its header."""
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        """Writes the header at the file's position; NumPy leaves room in it for the number of images to grow."""
        shape = (self._count, self._image_size, self._image_size, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


ShardWriter = JpegWriter | PixelWriter


def working_name(split: str, chunk: int, storage: str) -> str:
    """Returns the name of a shard while the number of shards is not known."""
    return f"{split}-{chunk:05d}.{'npy' if storage == 'raw' else 'array_record'}"


def final_name(split: str, number: int, shards: int, storage: str) -> str:
    """Returns the name of a shard in a complete data set."""
    if storage == "raw":
        return f"{split}-{number:05d}-of-{shards:05d}.npy"
    return f"{_NAME}-{split}.array_record-{number:05d}-of-{shards:05d}"


def write_tfds_metadata(directory: Path, class_names: Sequence[str], image_size: int, shards: Shards) -> None:
    """Writes the metadata with which `tfds.builder_from_directory` opens the ArrayRecord files of a folder."""
    words = ["_".join(name.encode(errors="backslashreplace").decode().split()) for name in class_names]
    names = [f"{word}_{label}" if words.count(word) > 1 else word for label, word in enumerate(words)]
    features = {
        "image": tfds.features.Image(shape=(image_size, image_size, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=names),  # names must be single words, all different
        "file_name": tfds.features.Text(),
    }
    template = tfds.core.ShardedFileTemplate(directory, dataset_name=_NAME, filetype_suffix="array_record")
    splits = []
    for split, rows in shards.items():
        _, counts, sizes = zip(*rows, strict=True)
        files = template.replace(split=split)
        splits.append(tfds.core.SplitInfo(split, list(counts), sum(sizes), filename_template=files))
    tfds.folder_dataset.write_metadata(data_dir=directory, features=features, split_infos=splits, check_data=False)
