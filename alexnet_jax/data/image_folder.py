"""The source "folder": images in DIR/train/CLASS/, DIR/val/CLASS/ and DIR/test/CLASS/, or in DIR/CLASS/."""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.data.sources import SPLITS, Chunk, Original, Source, divide_into_chunks
from alexnet_jax.errors import MissingSourceError, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


class _File(NamedTuple):
    """An image file: its path below the folder, split and class, and the size and time that show whether it changed.

    Fingerprints of prepared folders contain these names: renaming one would make all folders be prepared again.
    """

    path: str
    split: str
    class_name: str
    size: int
    modified: int


class ImageFolder(Source):
    """A folder of images with a subfolder for each class; images of a class may lie in deeper folders too.

    Without val/ and test/ both splits are taken from the training images, by a hash of each file's content: copies of a
    file stay in one split, and adding files does not move others. With val/ alone there is no test split; with test/
    alone the validation split is taken from the training images.

    Raises UserError if the folder is missing, has no images or only one class, or if val/ or test/ has a class that
    train/ does not have.
    """

    def __init__(self, folder: str):
        self._root = Path(folder)
        if not folder:
            raise UserError("no folder: give --config.data.dir=DIR with DIR/train/CLASS/*.jpg or DIR/CLASS/*.jpg")
        if not self._root.is_dir():
            raise MissingSourceError(f"config.data.dir={folder!r} is not a folder")
        self._ignored: Counter[str] = Counter()
        splits = self._split_folders()
        self.held_out = tuple(split for split in SPLITS if split not in splits.values())
        if "validation" not in self.held_out:
            self.held_out = ()  # val/ serves as test, as ImageNet's does
        root = self._root.resolve()
        above = frozenset(map(str, (root, *root.parents)))
        self._files = [file for path, split in splits.items() for file in self._files_below(path, split, "", above)]
        self.class_names = tuple(sorted({file.class_name for file in self._files if file.split == "train"}))
        self.remarks = tuple(f"ignored: {count:,} {what}" for what, count in sorted(self._ignored.items()))
        self._check(folder)

    def fingerprint(self) -> str:
        """A digest of the paths, sizes and modification times of all files."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file}\n".encode(errors="surrogateescape"))
        return f"{len(self._files)} files {digest.hexdigest()}"

    def chunks(self) -> list[Chunk]:
        """Chunks of about a hundredth of the files; sizes in bytes."""
        groups = divide_into_chunks(self._files)
        return [Chunk(sum(file.size for file in files), len(files), files) for files in groups]

    def read(self, chunk: Chunk) -> Iterator[Original]:
        """Yields the images of a chunk, in the order of split, class and name."""
        labels = {name: label for label, name in enumerate(self.class_names)}
        for file in chunk.where:
            yield Original(file.split, labels[file.class_name], file.path, self._root / file.path)

    def _split_folders(self) -> dict[Path, str]:
        """The folders of the splits that there are, with the names of the splits."""
        entries = [entry for entry in _scan(self._root) if not _is_hidden(entry.name)]
        found = {Path(e.path): _SPLITS[e.name.lower()] for e in entries if e.name.lower() in _SPLITS and _is_dir(e)}
        names = " and ".join(f"{path.name}/" for path in sorted(found))
        if len(set(found.values())) < len(found):
            raise UserError(f"{self._root} has {names}: two of them are the same split; rename or remove one")
        if found and "train" not in found.values():
            raise UserError(f"{self._root} has {names} but no train/: add it")
        for entry in entries if found else ():
            if Path(entry.path) not in found:
                self._ignored[f"{entry.name}, which is next to train/"] += 1
        return dict(sorted(found.items(), key=lambda item: SPLITS.index(item[1]))) or {self._root: "train"}

    def _files_below(self, folder: Path, split: str, class_name: str, above: frozenset[str]) -> Iterator[_File]:
        """Yields the images below a class's folder, or below a split's folder if `class_name` is empty.

        `above` are the real paths of the folders that contain it, so that links cannot make a loop.
        """
        real = os.path.realpath(folder)
        if class_name and real in above:
            self._ignored[f"link to a folder above it ({folder})"] += 1
            return
        for entry in self._visible(folder):
            if _is_dir(entry):
                files = list(self._files_below(Path(entry.path), split, class_name or entry.name, above | {real}))
                if not files and not class_name:
                    self._ignored[f"folder without images ({entry.path})"] += 1
                yield from files
            elif not class_name:
                self._ignored["files outside the folders of classes"] += 1
            elif not entry.name.lower().endswith(SUFFIXES):
                suffix = Path(entry.name).suffix.lower() or "no suffix"
                self._ignored[f"files without the suffix of an image ({suffix})"] += 1
            elif stat.S_IFMT((status := _status(entry)).st_mode) not in (stat.S_IFREG, stat.S_IFLNK):
                self._ignored["pipes, sockets and devices"] += 1
            else:
                path = os.path.relpath(entry.path, self._root)
                yield _File(path, split, class_name, status.st_size, status.st_mtime_ns)

    def _visible(self, folder: Path) -> Iterator["os.DirEntry[str]"]:
        """Yields the entries of a folder that are not hidden, by name; counts the others."""
        for entry in _scan(folder):
            if _is_hidden(entry.name):
                self._ignored["hidden files or folders"] += 1
            else:
                yield entry

    def _check(self, folder: str) -> None:
        """Raises UserError if there is nothing to classify, or a class without training images."""
        kinds = " ".join(SUFFIXES)
        if not self.class_names:
            raise MissingSourceError(f"config.data.dir={folder!r}: no images ({kinds}) in train/CLASS/ or CLASS/")
        if len(self.class_names) == 1:
            raise UserError(
                f"config.data.dir={folder!r} has only one class, {self.class_names[0]!r}, but a classifier needs "
                "at least two. Is DIR one level too high or too low?"
            )
        strange = sorted({file.class_name for file in self._files} - set(self.class_names))
        if strange:
            where = next(file for file in self._files if file.class_name == strange[0])
            raise UserError(
                f"{self._root / where.path}: class {strange[0]!r} has no training images; "
                f"add some to train/ or remove the class from {where.split}"
            )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _scan(folder: Path) -> list["os.DirEntry[str]"]:
    """The entries of a folder, sorted by name. Raises UserError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error


def _is_dir(entry: "os.DirEntry[str]") -> bool:
    return stat.S_ISDIR(_status(entry).st_mode)


def _status(entry: "os.DirEntry[str]") -> os.stat_result:
    """The status of the file that an entry links to; of the link itself if it is broken, so that reading it fails."""
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)
