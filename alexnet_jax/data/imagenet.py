"""The source "imagenet2012": reads the two tar files of ILSVRC-2012 without unpacking them."""

import functools
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from alexnet_jax.data.sources import Chunk, Original, Source, divide_into_chunks
from alexnet_jax.errors import MissingSourceError, UserError, reason

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
TRAIN_IMAGES, VALIDATION_IMAGES = 1_281_167, 50_000
_CLASSES_PER_CHUNK = 10
_PADDING = 20 * 512 + 1024  # the most zeros at the end of a tar
_MOST_READ = 2**26
"""Bytes of the largest image, and of the longest description of a file: those of ILSVRC-2012 are far smaller."""

_DAMAGED = (tarfile.TarError, ArithmeticError, LookupError, RecursionError, ValueError)
"""What tarfile raises on damaged headers."""


class ImageNet(Source):
    """The training and validation images of ILSVRC-2012. The classes are WordNet's synset numbers, sorted.

    The training file holds one tar for each class, named by it. The labels of the validation images, by number, are a
    list that TFDS ships, so the development kit is not needed.

    Raises UserError if a tar file is missing, incomplete or another file.
    """

    def __init__(self, folder: str):
        self._folder = Path(folder)
        if not folder:
            raise UserError(f"no folder: give --config.data.dir=DIR with {TRAIN} and {VALIDATION}")
        for name in (TRAIN, VALIDATION):
            if not (self._folder / name).is_file():
                raise MissingSourceError(f"{self._folder / name} not found: download it from image-net.org")
        self.class_names = _words("labels.txt")
        self._labels = {name: label for label, name in enumerate(self.class_names)}
        self._validation_labels = [self._labels[name] for name in validation_synsets()]

    def fingerprint(self) -> str:
        """The sizes and modification times of the two tar files."""
        stats = [(self._folder / name).stat() for name in (TRAIN, VALIDATION)]
        return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)

    def chunks(self) -> list[Chunk]:
        """Chunks of ten classes of training images, then chunks of validation images; sizes in bytes."""
        return [*self._train_chunks(), *self._validation_chunks()]

    def read(self, chunk: Chunk) -> Iterator[Original]:
        """Yields the images of a chunk, in the order of the tar file."""
        split, members = chunk.where
        return self._read_train(members) if split == "train" else self._read_validation(members)

    def _train_chunks(self) -> list[Chunk]:
        path, classes = self._folder / TRAIN, len(self.class_names)
        members = _members(path, r"n\d{8}\.tar")
        missing = len({*self.class_names} - {Path(member.name).stem for member in members})
        if missing:
            raise UserError(f"{path} is incomplete: {missing} of {classes} classes are missing. Download it again")
        if len(members) > classes:
            raise UserError(f"{path} has a class twice, or one that is not ILSVRC-2012's. Download it again")
        images = TRAIN_IMAGES // classes
        groups = [members[start : start + _CLASSES_PER_CHUNK] for start in range(0, classes, _CLASSES_PER_CHUNK)]
        return [Chunk(sum(tar.size for tar in group), images * len(group), ("train", group)) for group in groups]

    def _read_train(self, members: list[tarfile.TarInfo]) -> Iterator[Original]:
        for member in members:
            yield from self._read_class(Path(member.name).stem, member.offset_data, member.size)

    def _read_class(self, name: str, offset: int, size: int) -> Iterator[Original]:
        """Yields the images of one class's tar and checks that nothing but padding follows them.

        Args:
          name: synset number of the class.
          offset, size: where its tar lies in the training file, in bytes.
        """
        path = self._folder / TRAIN
        try:
            with _Bounded(path) as file:
                file.seek(offset)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in _plain(tar, path):
                        image = tar.extractfile(member) if member.isfile() else None
                        if image is None:
                            raise tarfile.ReadError(f"{member.name} is no file")
                        yield Original("train", self._labels[name], f"{name}/{member.name}", image.read())
                    end = tar.offset
                file.seek(end)  # tarfile takes a damaged header for the end; then more than padding follows
                rest = file.read(min(offset + size - end, _PADDING + 1))
                if end == offset or len(rest) > _PADDING or rest.strip(b"\0"):
                    raise tarfile.ReadError("an image is missing or unreadable")
        except _DAMAGED as error:
            raise UserError(f"{path} is damaged in {name}.tar ({reason(error)}): copy or download it again") from error

    def _validation_chunks(self) -> list[Chunk]:
        path = self._folder / VALIDATION
        members = _members(path, r"ILSVRC2012_val_\d{8}\.JPEG")
        numbers = sorted(int(Path(member.name).stem[-8:]) for member in members)
        if numbers != list(range(1, VALIDATION_IMAGES + 1)):
            raise UserError(f"{path} is incomplete: it has {len(set(numbers)):,} of {VALIDATION_IMAGES:,} images")
        if huge := next((member for member in members if member.size > _MOST_READ), None):
            raise UserError(f"{path} is not ILSVRC-2012's: {huge.name} claims {huge.size:,} bytes")
        groups = divide_into_chunks(members)
        return [Chunk(sum(member.size for member in group), len(group), ("validation", group)) for group in groups]

    def _read_validation(self, members: list[tarfile.TarInfo]) -> Iterator[Original]:
        with (self._folder / VALIDATION).open("rb") as file:
            for member in members:
                number = int(Path(member.name).stem[-8:])
                file.seek(member.offset_data)
                data = file.read(member.size)
                yield Original("validation", self._validation_labels[number - 1], member.name, data)


@functools.cache
def validation_synsets() -> tuple[str, ...]:
    """The classes of the validation images, by number from 1; a list that TFDS ships."""
    return _words("validation_labels.txt")


def _words(file: str) -> tuple[str, ...]:
    return tuple((tfds.core.tfds_path("datasets/imagenet2012") / file).read_text().split())


class _Bounded(io.BufferedReader):
    """A tar file of which _MOST_READ bytes are read at once: its headers may claim any size."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads bytes. Raises tarfile.ReadError if they are too many, or if all are asked for."""
        if size is None or not 0 <= size <= _MOST_READ:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size)


def _plain(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the members of a tar file. Raises tarfile.ReadError at one that cannot have the size that it claims."""
    most = path.stat().st_size
    for member in tar:
        if member.issparse() or not 0 <= member.size <= most:
            raise tarfile.ReadError(f"{member.name} is sparse, or claims {member.size:,} bytes")
        yield member


def _members(path: Path, pattern: str) -> list[tarfile.TarInfo]:
    """The files in a tar. Raises UserError if one has a name that does not match or is cut short."""
    try:
        with _Bounded(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = [member for member in _plain(tar, path) if member.isfile()]
    except _DAMAGED as error:
        raise UserError(f"{path} is not ILSVRC-2012's tar file, or is incomplete: {reason(error)}") from error
    strange = [member.name for member in members if not re.fullmatch(pattern, Path(member.name).name)]
    if strange or not members:
        raise UserError(f"{path} is not ILSVRC-2012's: it has {strange[0]!r}" if strange else f"{path} is empty")
    if members[-1].offset_data + members[-1].size > path.stat().st_size:
        raise UserError(f"{path} is cut short: {members[-1].name} is incomplete. Copy or download it again")
    return members
