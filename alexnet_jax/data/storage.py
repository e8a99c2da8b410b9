"""How prepared images lie on disk: JPEG in ArrayRecord files that TFDS can read, or pixels in .npy files."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data.images import decode_jpeg
from alexnet_jax.errors import UserError

_NAME = "images"  # TFDS wants one


@runtime_checkable
class Records(Protocol):
    """Random access to the images of a split."""

    @property
    def labels(self) -> np.ndarray:
        """int32, [images]."""

    @property
    def image_size(self) -> int:
        """In pixels."""

    @property
    def is_compressed(self) -> bool:
        """Whether reading means decoding."""

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """Writes images to `out`, uint8, [indices, size, size, 3]. Any number of threads may read at once."""


def read_squares(records: Records, ids: np.ndarray) -> np.ndarray:
    """These images of a split, uint8, [ids, size, size, 3]."""
    pixels = np.empty((len(ids), records.image_size, records.image_size, 3), np.uint8)
    records.read(ids, pixels)
    return pixels


class JpegRecords:
    """Images in ArrayRecord files of tf.train.Examples."""

    is_compressed = True

    def __init__(self, paths_and_counts: Sequence[tuple[Path, int]], labels: np.ndarray, image_size: int):
        self.labels, self.image_size, self._folder = labels, image_size, paths_and_counts[0][0].parent
        # With its range a file is opened at its first use, not now.
        self._source = ArrayRecordDataSource([f"{path}[0:{count}]" for path, count in paths_and_counts])

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """See Records. Raises UserError if an image is damaged."""
        for index, pixels in zip(indices, out, strict=True):
            try:
                decode_jpeg(self.read_jpeg(int(index)), pixels)
            except (OSError, ValueError, RuntimeError, DecodeError) as error:
                raise UserError(
                    f"image {index} of {self._folder} cannot be read ({error}): delete the folder, it is prepared anew"
                ) from error

    def read_jpeg(self, index: int) -> bytes:
        """An image as it is stored."""
        example = tf_example_pb2.Example.FromString(self._source[index])
        return example.features.feature["image"].bytes_list.value[0]


class PixelRecords:
    """Images in .npy files of uint8, [images, size, size, 3], mapped into memory."""

    is_compressed = False

    def __init__(self, paths: Sequence[Path], labels: np.ndarray, image_size: int):
        self.labels, self.image_size = labels, image_size
        self._shards = [np.load(path, mmap_mode="r") for path in paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """See Records."""
        shards = np.searchsorted(self._ends, indices, side="right")
        for pixels, index, number in zip(out, indices, shards, strict=True):
            shard = self._shards[number]
            pixels[:] = shard[index - self._ends[number] + len(shard)]


class InMemoryRecords:
    """Images in one array, uint8, [images, size, size, 3]."""

    is_compressed = False

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels, self.image_size = images, labels, images.shape[1]

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """See Records."""
        np.take(self.images, indices, axis=0, out=out, mode="clip")  # "raise" would copy everything once more


@runtime_checkable
class ShardWriter(Protocol):
    """Writes the images of one file, in order."""

    def write(self, pixels: np.ndarray, jpeg: bytes, label: int, file: str) -> None:
        """Adds an image."""

    def close(self) -> None:
        """Completes the file."""


class JpegWriter:
    """Writes what JpegRecords reads."""

    def __init__(self, path: Path):
        self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def write(self, pixels: np.ndarray, jpeg: bytes, label: int, file: str) -> None:
        """Adds `jpeg`."""
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature["image"].bytes_list.value.append(jpeg)
        feature["label"].int64_list.value.append(label)
        feature["file_name"].bytes_list.value.append(file.encode(errors="backslashreplace"))
        self._writer.write(example.SerializeToString(deterministic=True))

    def close(self) -> None:
        """Completes the file. Raises OSError if the disk did not take it."""
        try:
            self._writer.close()
        except RuntimeError as error:  # the writer keeps what went wrong until now
            text = str(error)
            code = errno.ENOSPC if os.strerror(errno.ENOSPC) in text else errno.EIO
            raise OSError(code, text.splitlines()[0]) from error


class PixelWriter:
    """Writes what PixelRecords reads."""

    def __init__(self, path: Path, image_size: int):
        self._file, self._image_size, self._count = path.open("wb"), image_size, 0
        self._write_header()

    def write(self, pixels: np.ndarray, jpeg: bytes, label: int, file: str) -> None:
        """Adds `pixels`."""
        self._file.write(pixels.data)
        self._count += 1

    def close(self) -> None:
        """Completes the file."""
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        """NumPy leaves room for the first number to grow."""
        shape = (self._count, self._image_size, self._image_size, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def working_name(split: str, part: int, storage: str) -> str:
    """A shard's name while it is not known how many there will be."""
    return f"{split}-{part:05d}.{'npy' if storage == 'raw' else 'array_record'}"


def final_name(split: str, number: int, shards: int, storage: str) -> str:
    """A shard's name in a complete data set."""
    if storage == "raw":
        return f"{split}-{number:05d}-of-{shards:05d}.npy"
    return f"{_NAME}-{split}.array_record-{number:05d}-of-{shards:05d}"


def write_tfds_metadata(
    directory: Path, class_names: Sequence[str], image_size: int, sizes: dict[str, list[int]]
) -> None:
    """Lets `tfds.builder_from_directory` open the ArrayRecord files of a folder; `sizes` are images a shard."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        dataset_name=_NAME,
        filetype_suffix="array_record",
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features={
            "image": tfds.features.Image(shape=(image_size, image_size, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=_tfds_names(class_names)),
            "file_name": tfds.features.Text(),
        },
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths,
                num_bytes=sum(path.stat().st_size for path in directory.glob(f"{_NAME}-{split}.*")),
                filename_template=template.replace(split=split),
            )
            for split, lengths in sizes.items()
        ],
        check_data=False,
    )


def _tfds_names(class_names: Sequence[str]) -> list[str]:
    """Names as TFDS wants them: one word each, all different."""
    words = ["_".join(name.encode(errors="backslashreplace").decode().split()) for name in class_names]
    return [f"{word}_{label}" if words.count(word) > 1 else word for label, word in enumerate(words)]
