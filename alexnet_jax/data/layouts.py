"""Names in folders of images: those of splits, of what systems leave behind, and of files that hold images."""

import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.data.images import is_image
from alexnet_jax.data.sources import SPLITS
from alexnet_jax.errors import UserError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".avif", ".heic", ".heif", ".jp2", ".tga", ".mpo"),
)
"""Suffixes of images, in any case; of a file with another one the content decides whether it is an image."""

_NO_IMAGES = (".cr2", ".nef", ".nrw", ".arw", ".sr2", ".dng", ".pef", ".3fr", ".iiq", ".txt", ".csv", ".tsv", ".md")
"""Suffixes of files that may begin as images do: raw data of cameras, which lie beside the JPEG files, are TIFF."""

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout"), "test"),
}
_FILLERS = ("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures", "split", "folder")
"""Words that mean nothing beside that of a split: training_set, test-images, valData."""

_SYSTEM_FOLDERS = (
    *("@eadir", "lost+found", "$recycle.bin", "system volume information", "#recycle", "@recycle", "#snapshot"),
    *("@tmp", "@recently-snapshot", ".trashes"),
)


class SplitName(NamedTuple):
    """A folder's name that means a split: the split, and the words that do not say so, such as "seg" of seg_train."""

    split: str
    rest: str


def split_name(name: str) -> SplitName | None:
    """Reads a folder's name: Training, seg_test, test_set and train2017 mean splits; None for one that does not."""
    words = [_without_filler(word) for word in re.split(r"[^a-z]+", name.lower()) if word]
    found = [word for word in words if word in _SPLIT_WORDS]
    if len(found) != 1:
        return None
    return SplitName(_SPLIT_WORDS[found[0]], " ".join(word for word in words if word not in (*found, *_FILLERS)))


def _without_filler(word: str) -> str:
    """The word of a split before a filler: "testset" is "test"; any other word as it is."""
    for filler in _FILLERS:
        if word.removesuffix(filler) in _SPLIT_WORDS:
            return word.removesuffix(filler)
    return word


def find_splits(root: Path, needs_train: bool = True) -> dict[Path, str]:
    """The folders of the splits in a folder, with the names of the splits, training first; empty if there are none.

    Names that mean training and test alone are splits, with or without words that they share (seg_train, seg_test). A
    folder "train" without folders in it, beside others that are no splits, is a class: trains, beside buses.

    Raises UserError if two folders are the same split, or if training images are needed and there are none.
    """
    folders = [Path(entry.path) for entry in scan(root) if is_dir(entry) and not ignored_kind(entry.name)]
    named = {path: name for path in folders if (name := split_name(path.name))}
    groups: dict[str, dict[Path, str]] = {}
    for path, name in named.items():
        groups.setdefault(name.rest, {})[path] = name.split
    plain = groups.pop("", {})
    if len(plain) == 1 and len(folders) > 1 and not _has_folders(next(iter(plain))):
        plain = {}
    pairs = [group for group in groups.values() if "train" in group.values() and len(set(group.values())) > 1]
    found = plain or (pairs[0] if len(pairs) == 1 else {})
    names = " and ".join(f"{path.name}/" for path in sorted(found))
    if len(set(found.values())) < len(found):
        raise UserError(f"{root} has {names}: two of them are the same split; rename or remove one")
    if needs_train and found and "train" not in found.values():
        raise UserError(f"{root} has {names} but no train/: add it")
    return {_innermost(path): split for path, split in sorted(found.items(), key=lambda item: SPLITS.index(item[1]))}


def _innermost(path: Path) -> Path:
    """The folder of a split below folders that hold nothing else: training_set/training_set, or test/images."""
    entries = [entry for entry in scan(path) if not ignored_kind(entry.name)]
    if len(entries) != 1 or not is_dir(entries[0]):
        return path
    if entries[0].name == "images" and not _has_folders(Path(entries[0].path)):
        return Path(entries[0].path)
    inner, outer = split_name(entries[0].name), split_name(path.name)
    return _innermost(Path(entries[0].path)) if inner and outer and inner.split == outer.split else path


def find_root(folder: Path) -> Path:
    """The folder that holds the splits: `folder`, or one up to four levels below it.

    The latter is taken only if each level has no other folder, and the last has several splits.
    """
    root = folder
    for _ in range(4):
        inner = [Path(e.path) for e in scan(root) if is_dir(e) and not ignored_kind(e.name)]
        if len(inner) != 1 or split_name(inner[0].name):
            break
        root = inner[0]
        if len(find_splits(root, needs_train=False)) > 1:
            return root
    return folder


def odd_names(names: Iterable[str]) -> Iterator[str]:
    """Yields what a person should look at: classes called like splits, such as "test_2", or alike, as Cat and cat."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[" ".join(name.casefold().split())].append(name)
        if split_name(name):
            yield f"the class {name} is called like a split"
    for group in alike.values():
        if len(group) > 1:
            yield f"the classes {', '.join(map(repr, group))} are called alike"


def by_number(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes, sorted; by number if all are numbers: 2 before 10."""
    unique = set(names)
    if all(name.isascii() and name.isdigit() for name in unique):
        return tuple(sorted(unique, key=lambda name: (int(name), name)))
    return tuple(sorted(unique))


def ignored_kind(name: str) -> str:
    """What an entry of a folder is that is never looked at, in words for a report; "" for any other."""
    if name.startswith(".") or name == "__MACOSX":
        return "hidden files or folders"
    return f"folders that a system has made ({name})" if name.lower() in _SYSTEM_FOLDERS else ""


def other_kind(entry: "os.DirEntry[str]") -> str:
    """Why a file is taken for no image, in words for a report; "" for one that is an image by its name or content."""
    if entry.name.lower().endswith(SUFFIXES):
        kind = stat.S_IFMT(status(entry).st_mode)
        return "" if kind in (stat.S_IFREG, stat.S_IFLNK) else "pipes, sockets and devices"
    if stat.S_ISLNK(status(entry).st_mode):
        return "broken links"
    is_other = entry.name.lower().endswith(_NO_IMAGES)
    if not is_other and stat.S_ISREG(status(entry).st_mode) and is_image(Path(entry.path)):
        return ""
    return f"files that are no images ({Path(entry.name).suffix.lower() or 'no suffix'})"


def images_below(folder: Path, ignored: Counter[str], above: Set[str] = frozenset()) -> Iterator[str]:
    """Yields the paths of all images below a folder, sorted; counts in `ignored` what it leaves out, by its kind.

    Links are followed. `above` are the real paths of the folders that contain it, by default those that it lies in: so
    links can neither make a loop nor lead out to all that is around the folder.
    """
    real = os.path.realpath(folder)
    above = above or frozenset(map(str, Path(real).parents))
    if real in above:
        ignored[f"link to a folder above it ({folder})"] += 1
        return
    for entry in scan(folder):
        if kind := ignored_kind(entry.name):
            ignored[kind] += 1
        elif is_dir(entry):
            yield from images_below(Path(entry.path), ignored, above | {real})
        elif kind := other_kind(entry):
            ignored[kind] += 1
        else:
            yield entry.path


def scan(folder: Path) -> list["os.DirEntry[str]"]:
    """The entries of a folder, sorted by name. Raises UserError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error


def is_dir(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or links to one."""
    return stat.S_ISDIR(status(entry).st_mode)


def status(entry: "os.DirEntry[str]") -> os.stat_result:
    """The status of the file that an entry links to; of the link itself if it is broken, so that reading it fails."""
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)


def _has_folders(path: Path) -> bool:
    return any(is_dir(entry) and not ignored_kind(entry.name) for entry in scan(path))
