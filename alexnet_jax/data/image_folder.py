"""The source "folder": images in folders of splits and classes, in any of the layouts of `ImageFolder`."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.data import layouts
from alexnet_jax.data.imagenet import validation_synsets
from alexnet_jax.data.label_table import read_labels
from alexnet_jax.data.layouts import SUFFIXES
from alexnet_jax.data.sources import SPLITS, Chunk, Original, Source, divide_into_chunks
from alexnet_jax.errors import MissingSourceError, UserError

OUTER, INNER = "outer", "inner"
"""Values of config.data.labels for folders within folders: which of them are the classes."""

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_NAME_AND_NUMBER = re.compile(r"([^\W\d_][\w -]*?)[\W_]*\d+\)?( ?\(\d+\))?\.\w+")
_CAMERA_NAMES = ("img", "image", "dsc", "dscn", "dscf", "dcim", "photo", "picture", "pic", "p", "scan", "screenshot")
_TINY_IMAGENET_TABLE = "val_annotations.txt"
_ILSVRC_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")


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
    """A folder of images whose classes are folders, the beginnings of the files' names, or in a table.

    The folders of classes may lie in folders of splits. Without those of validation and test both splits are taken
    from the training images, by a hash of each file's content: copies of a file stay in one split, and adding files
    does not move others, except in a small class, see `Splitting`. With validation alone there is no test split;
    with test alone the validation split is taken from the training images. A split without labels, such as the test
    images of ImageNet, is left out.

    Attributes:
      files: the images, in the order of their splits.

    Args:
      folder: the folder.
      labels: `OUTER` or `INNER`, the path of a table of labels, or "" for what the layout says.
      is_for_training: whether there must be training images of two classes.

    Raises UserError if the folder is missing, has no images or only one class, could be meant in two ways, or if
    validation or test has a class that the training images do not have.
    """

    is_stratified = True

    def __init__(self, folder: str, labels: str = "", is_for_training: bool = True):
        self._folder, self._labels, self._is_for_training = Path(folder), labels, is_for_training
        if not folder:
            raise UserError("no folder: give --config.data.dir=DIR with DIR/train/CLASS/*.jpg or DIR/CLASS/*.jpg")
        self._key = f"config.data.dir={folder!r}" if is_for_training else f"--data-dir={folder!r}"
        if not self._folder.is_dir():
            unpack = "; unpack it, and give the folder" if self._folder.is_file() else ""
            raise MissingSourceError(f"{self._key} is not a folder{unpack}")
        self._ignored: Counter[str] = Counter()
        self._notes: list[str] = []
        self._loose: list[str] = []
        self.files = self._from_table() if labels not in ("", OUTER, INNER) else self._from_folders()
        present = {file.split for file in self.files}
        self.held_out = tuple(split for split in SPLITS if split not in present)
        if "validation" not in self.held_out:
            self.held_out = ()  # it serves as test, as ImageNet's does
        self.class_names = layouts.by_number(
            f.class_name for f in self.files if f.split == "train" or not is_for_training
        )
        self._notes += [f"have a look: {what}" for what in layouts.odd_names(self.class_names)]
        ignored = (f"ignored: {count:,} {what}" for what, count in sorted(self._ignored.items()))
        self.remarks = (*dict.fromkeys(self._notes), *ignored)
        if is_for_training:
            self._check()

    def fingerprint(self) -> str:
        """A digest of the paths, sizes and modification times of all files."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file}\n".encode(errors="surrogateescape"))
        return f"{len(self.files)} files {digest.hexdigest()}"

    def chunks(self) -> list[Chunk]:
        """Chunks of about a hundredth of the files; sizes in bytes."""
        groups = divide_into_chunks(self.files)
        return [Chunk(sum(file.size for file in files), len(files), files) for files in groups]

    def read(self, chunk: Chunk) -> Iterator[Original]:
        """Yields the images of a chunk, in the order of split, class and name."""
        labels = {name: label for label, name in enumerate(self.class_names)}
        for file in chunk.where:
            yield Original(file.split, labels[file.class_name], file.path, self._folder / file.path)

    def _from_table(self) -> list[_File]:
        """The images that a table of labels names."""
        table = Path(self._labels)
        if not table.is_file():
            raise UserError(
                f"config.data.labels={self._labels!r} is neither {OUTER} nor {INNER} nor a file: give a table of "
                "file and label (CSV, TSV or JSON lines)"
            )
        paths = [
            Path(os.path.relpath(path, self._folder)).as_posix()
            for path in layouts.images_below(self._folder, self._ignored)
        ]
        rows = read_labels(table, paths)
        if unlabelled := len(paths) - len(rows):
            self._ignored[f"images without a row in {table.name}"] = unlabelled
        if columns := sorted({row.column for row in rows.values()} - {"label"}):
            self._notes.append(f"the classes are in the column {columns[0]!r} of {table.name}")
        return _in_order(self._file(path, row.split or "train", row.label) for path, row in sorted(rows.items()))

    def _file(self, path: str, split: str, class_name: str) -> _File:
        try:
            status = (self._folder / path).stat()
        except OSError:  # a broken link: reading it fails
            status = (self._folder / path).lstat()
        return _File(path, split, class_name, status.st_size, status.st_mtime_ns)

    def _from_folders(self) -> list[_File]:
        """The images in the folders of classes, in those of splits if there are any."""
        root = layouts.find_root(self._folder)
        if root != self._folder:
            self._notes.append(f"the splits lie in {root}")
        splits = layouts.find_splits(root, self._is_for_training)
        for entry in layouts.scan(root) if splits else ():
            path = Path(entry.path)
            if not layouts.ignored_kind(entry.name) and not any(split.is_relative_to(path) for split in splits):
                self._ignored[f"{entry.name}, which is next to {next(iter(splits)).name}/"] += 1
        if strange := [
            f"{path.name}/ is {split}" for path, split in splits.items() if path.name.lower() not in (split, "val")
        ]:
            self._notes.append(f"splits: {', '.join(strange)}")
        files: list[_File] = []
        for path, split in (splits or {root: "train"}).items():
            files += self._files_of_split(path, split)
        return self._without_untrained_synsets(_in_order(files))

    def _without_untrained_synsets(self, files: list[_File]) -> list[_File]:
        """The images without those validation images of ILSVRC-2012 whose class is none of the training images'."""
        if not self._is_for_training:
            return files
        trained = {file.class_name for file in files if file.split == "train"}
        kept = [f for f in files if f.class_name in trained or not _ILSVRC_VALIDATION.fullmatch(Path(f.path).name)]
        if len(kept) < len(files):
            kind = "validation images of ILSVRC-2012 in classes without training images"
            self._ignored[kind] = len(files) - len(kept)
        return kept

    def _files_of_split(self, folder: Path, split: str) -> list[_File]:
        """The images of a split: in folders of classes, or all in one, with the classes in their names."""
        if (table := folder / _TINY_IMAGENET_TABLE).is_file():
            return self._of_tiny_imagenet(table, split)
        files, loose = self._list(folder, split)
        if files:
            if loose:
                self._ignored["files outside the folders of classes"] += len(loose)
            return self._of_classes(folder, files)
        classes = _classes_in_names([Path(path).name for path in loose])
        if classes:
            self._notes.append(f"the classes are the beginnings of the files' names in {folder}")
            pairs = zip(loose, classes, strict=True)
            return [self._file(path, split, name) for path, name in pairs if name]
        self._loose += loose
        if loose and split == "train" and folder == self._folder:
            self._ignored["files outside the folders of classes"] += len(loose)
        elif loose:
            self._notes.append(f"{folder} has {len(loose):,} images without labels, which are not used")
        return []

    def _of_tiny_imagenet(self, table: Path, split: str) -> list[_File]:
        """The validation images of Tiny ImageNet: a line of the table begins with a file of images/ and its class."""
        images = table.parent / "images"
        names = {entry.name for entry in layouts.scan(images)}
        rows = (line.split("\t") for line in table.read_text("utf-8", "replace").splitlines())
        found = [(row[0], row[1]) for row in rows if len(row) > 1 and row[0] in names]
        return [self._file(os.path.relpath(images / name, self._folder), split, synset) for name, synset in found]

    def _of_classes(self, folder: Path, files: list[_File]) -> list[_File]:
        """The images with the class that config.data.labels asks for. Raises UserError where it has to be given."""
        inner: dict[str, set[str]] = defaultdict(set)
        for file in files:
            inner[file.class_name].add(self._below_class(folder, file))
        if self._labels == INNER:
            return [file._replace(class_name=(self._folder / file.path).parent.name) for file in files]
        if self._labels:
            return files
        splits = {name: layouts.split_name(name) for name in set().union(*inner.values())}
        named = {name: found.split for name, found in splits.items() if found}
        if len(named) == len(splits) and "train" in named.values():
            self._notes.append("the splits lie in the folders of classes")
            return [file._replace(split=named[self._below_class(folder, file)]) for file in files]
        grouped = {group: names for group, names in inner.items() if len(names) > 1 and "" not in names}
        if len(inner) > 1 and grouped == inner:
            group, names = next(iter(inner.items()))
            raise UserError(
                f"{folder} has folders within the folders of classes, such as {group}/{min(names)}: which are the "
                f"classes? Give --config.data.labels={OUTER} for {_some(inner)}, or --config.data.labels={INNER} for "
                f"{_some(set().union(*inner.values()))}"
            )
        self._notes += [
            f"have a look: the images of {group} lie in folders within it ({', '.join(sorted(names)[:4])})"
            for group, names in sorted(grouped.items())
        ]
        return files

    def _below_class(self, folder: Path, file: _File) -> str:
        """The folder in that of its class in which an image lies; "" for none."""
        below = (self._folder / file.path).relative_to(folder).parts
        return below[1] if len(below) > 2 else ""

    def _list(self, folder: Path, split: str) -> tuple[list[_File], list[str]]:
        """The images in the folders of classes of a split, and the paths of those that lie in none."""
        real = self._folder.resolve()
        above = {*map(str, (real, *real.parents)), os.path.realpath(folder)}
        files, loose = list[_File](), list[str]()
        for entry in layouts.scan(folder):
            path = os.path.relpath(entry.path, self._folder)
            if kind := layouts.ignored_kind(entry.name):
                self._ignored[kind] += 1
            elif layouts.is_dir(entry):
                paths = list(layouts.images_below(Path(entry.path), self._ignored, above))
                if not paths:
                    self._ignored[f"folder without images ({entry.path})"] += 1
                files += [self._file(os.path.relpath(path, self._folder), split, entry.name) for path in paths]
            elif layouts.other_kind(entry):
                self._ignored["files outside the folders of classes"] += 1
            elif split == "validation" and (synset := _synset_of(entry.name)):
                files.append(self._file(path, split, synset))
            else:
                loose.append(path)
        return files, loose

    def _check(self) -> None:
        """Raises UserError if there is nothing to classify, or a class without training images."""
        self._check_classes()
        strange = sorted({file.class_name for file in self.files} - set(self.class_names))
        if strange:
            where = next(file for file in self.files if file.class_name == strange[0])
            raise UserError(
                f"{self._folder / where.path}: class {strange[0]!r} has no training images; "
                f"add some to train/ or remove the class from {where.split}"
            )

    def _check_classes(self) -> None:
        """Raises UserError if there are not two classes, and says what may be the reason."""
        if len(self.class_names) > 1:
            return
        few = [f"has only one class, {name!r}, but a classifier needs at least two" for name in self.class_names]
        if self._labels not in ("", OUTER, INNER):
            raise UserError(f"{self._labels} {few[0] if few else 'has no training images'}")
        names = [entry.name for entry in layouts.scan(self._folder)]
        tables = [name for name in names if name.lower().endswith((".csv", ".tsv", ".jsonl"))]
        archives = [name for name in names if name.lower().endswith(_ARCHIVES)]
        hint = f" If the images are in {archives[0]}, unpack it" if archives else ""
        if tables:
            hint = f" If {tables[0]} has the labels, give --config.data.labels={self._folder / tables[0]}"
        if few:
            raise UserError(f"{self._key} {few[0]}. Is DIR one level too high or too low?{hint}")
        if self._loose and not hint:
            strange = (path for path in self._loose if not _NAME_AND_NUMBER.fullmatch(Path(path).name))
            raise MissingSourceError(
                f"{self._key}: {len(self._loose):,} images lie in no folder of a class, and their names tell none "
                f"({next(strange, self._loose[0])}); make folders of classes, or give --config.data.labels=TABLE"
            )
        raise MissingSourceError(f"{self._key}: no images ({' '.join(SUFFIXES)}) in train/CLASS/ or CLASS/.{hint}")


def _classes_in_names(names: Sequence[str]) -> list[str]:
    """The classes of files that are called CLASS.0.jpg, CLASS_1.png or alike, each of which has two; else nothing."""
    matches = [_NAME_AND_NUMBER.fullmatch(name) for name in names]
    classes = [match[1].strip(" _-") if match else "" for match in matches]
    counts = Counter(classes)
    is_clear = len(counts) > 1 and min(counts.values()) > 1 and "" not in counts
    return classes if is_clear and not {name.lower() for name in counts} & {*_CAMERA_NAMES} else []


def _synset_of(name: str) -> str:
    """The class of an ILSVRC-2012 validation image by its number; "" for another file."""
    match = _ILSVRC_VALIDATION.fullmatch(name)
    number = int(match[1]) if match else 0
    return validation_synsets()[number - 1] if 0 < number <= len(validation_synsets()) else ""


def _in_order(files: Iterable[_File]) -> list[_File]:
    """The images in the order of their splits."""
    return sorted(files, key=lambda file: SPLITS.index(file.split))


def _some(names: set[str] | dict[str, set[str]]) -> str:
    """A few names, and how many there are."""
    shown = ", ".join(sorted(names)[:4])
    return f"{len(names):,} classes ({shown}{', ...' if len(names) > 4 else ''})"
