"""Folders of images: layouts, what is ignored, what is refused, and splitting by content."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax.data.dataset import Dataset, get_dataset
from alexnet_jax.data.image_folder import ImageFolder
from alexnet_jax.errors import MissingSourceError, UserError
from tests.helpers.pictures import (
    assert_whole,
    contents,
    images_of,
    make_folder,
    noise,
    prepared,
    refused,
    save,
    storing,
    watch_reads,
)


def listed(source: ImageFolder) -> list[tuple[str, str, str]]:
    """(split, class, file) of every image."""
    originals = [original for chunk in source.chunks() for original in source.read(chunk)]
    return sorted((split, source.class_names[label], file) for split, label, file, _ in originals)


def remarks_of(folder: Path) -> str:
    return "; ".join(ImageFolder(str(folder)).remarks)


def files_by_split(dataset: Dataset) -> dict[str, list[str]]:
    return {split: json.loads((dataset.directory / f"{split}_files.json").read_text()) for split in dataset.splits}


def split_by_file(dataset: Dataset) -> dict[str, str]:
    return {file: split for split, files in files_by_split(dataset).items() for file in files}


def refusal(folder: Path | str) -> str:
    """The error of one line with which a folder is refused."""
    return refused(lambda: ImageFolder(str(folder)))


@pytest.mark.parametrize("val", ["val", "validation"])
def test_train_val_and_test_are_taken_as_they_are(tmp_path: Path, val: str) -> None:
    make_folder(tmp_path, {f"{split}/{name}": 1 for split in ("train", val, "test") for name in ("cat", "dog")})
    source = ImageFolder(str(tmp_path))
    assert source.class_names == ("cat", "dog") and source.held_out == () and source.remarks == ()
    assert listed(source) == sorted(
        (split, name, f"{folder}/{name}/000.png")
        for split, folder in (("train", "train"), ("validation", val), ("test", "test"))
        for name in ("cat", "dog")
    )


def test_without_val_validation_is_taken_from_train_and_test_stays(tmp_path: Path) -> None:
    make_folder(tmp_path / "s", {"train/cat": 30, "train/dog": 30, "test/cat": 2, "test/dog": 3})
    files = files_by_split(prepared(tmp_path / "s", tmp_path / "p"))
    assert sorted(files["test"]) == sorted(
        [*(f"test/cat/00{i}.png" for i in "01"), *(f"test/dog/00{i}.png" for i in "012")]
    )
    assert 2 <= len(files["validation"]) <= 25 and len(files["validation"]) + len(files["train"]) == 60


def test_with_val_alone_there_is_no_test_split(tmp_path: Path) -> None:
    make_folder(tmp_path / "s", {"train/cat": 3, "train/dog": 3, "val/cat": 2, "val/dog": 1})
    dataset = prepared(tmp_path / "s", tmp_path / "p")
    assert {split: len(records.labels) for split, records in dataset.splits.items()} == {"train": 6, "validation": 3}


@pytest.mark.parametrize("train", ["", "train/"])
def test_class_folders_alone_give_all_three_splits(tmp_path: Path, train: str) -> None:
    make_folder(tmp_path / "s", {f"{train}cat": 30, f"{train}dog": 30})
    dataset = prepared(tmp_path / "s", tmp_path / "p")
    assert list(dataset.splits) == ["train", "validation", "test"] and dataset.class_names == ("cat", "dog")
    assert len(split_by_file(dataset)) == 60


def test_both_val_and_validation_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, {f"{split}/{name}": 1 for split in ("train", "val", "validation") for name in "ab"})
    assert re.search("val/ and validation/: two of them are the same split", refusal(tmp_path))


@pytest.mark.parametrize("split", ["val", "validation", "test"])
def test_a_split_without_train_is_refused(tmp_path: Path, split: str) -> None:
    make_folder(tmp_path, {f"{split}/cat": 1, f"{split}/dog": 1})
    assert f"{split}/ but no train/" in refusal(tmp_path)


def test_suffixes_may_be_in_any_case(tmp_path: Path) -> None:
    names = [f"{number}{suffix}" for number, suffix in enumerate((".JPG", ".jpeg", ".Png", ".webp", ".BMP", ".gif"))]
    for seed, name in enumerate(names):
        save(tmp_path / "s/train/cat" / name, noise(seed))
        save(tmp_path / "s/val/cat" / name, noise(seed + 100))
    make_folder(tmp_path / "s", {"train/dog": 1, "val/dog": 1}, ".JpEg", seed=7)
    dataset = prepared(tmp_path / "s", tmp_path / "p", max_quarantined=0.0)
    assert sorted(files_by_split(dataset)["train"]) == sorted(
        [*(f"train/cat/{n}" for n in names), "train/dog/000.JpEg"]
    )


def test_files_of_other_kinds_are_ignored_and_reported(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 1, "dog": 1})
    for name in ("notes.txt", "more.TXT", "README", "cat.jpg.bak"):
        (tmp_path / "cat" / name).write_text("?")
    assert len(listed(ImageFolder(str(tmp_path)))) == 2
    remarks = remarks_of(tmp_path)
    assert "2 files" in remarks and "(.txt)" in remarks and "(no suffix)" in remarks and "(.bak)" in remarks


def test_images_may_lie_deep_below_their_class(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat/a/b.jpg": 1, "cat/a b/é/ü": 1, "dog": 1, "dog/cat": 1})
    assert [(name, file) for _, name, file in listed(ImageFolder(str(tmp_path)))] == [
        ("cat", "cat/a b/é/ü/000.png"),
        ("cat", "cat/a/b.jpg/000.png"),
        ("dog", "dog/000.png"),
        ("dog", "dog/cat/000.png"),
    ]


@pytest.mark.parametrize("train", ["", "train/"])
def test_hidden_folders_and_files_are_ignored_and_reported(tmp_path: Path, train: str) -> None:
    make_folder(tmp_path, {f"{train}cat": 1, f"{train}dog": 1})
    make_folder(tmp_path, {f"{train}{name}": 1 for name in (".cache", ".ipynb_checkpoints", "__MACOSX")})
    make_folder(tmp_path, {f"{train}cat/.ipynb_checkpoints": 1, f"{train}cat/__MACOSX": 1})
    save(tmp_path / train / "dog/._000.png", noise(1))
    assert len(listed(ImageFolder(str(tmp_path)))) == 2
    assert "6 hidden" in remarks_of(tmp_path)


@pytest.mark.parametrize("train", ["", "train/"])
def test_files_that_lie_in_no_class_are_ignored_and_reported(tmp_path: Path, train: str) -> None:
    make_folder(tmp_path, {f"{train}cat": 1, f"{train}dog": 1})
    save(tmp_path / train / "stray.png", noise(1))
    assert len(listed(ImageFolder(str(tmp_path)))) == 2
    assert "1 files outside the folders of classes" in remarks_of(tmp_path)


def test_what_lies_beside_train_is_reported(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/cat": 1, "train/dog": 1, "extra/cat": 1, "extra/dog": 1})
    save(tmp_path / "stray.png", noise(1))
    assert len(listed(ImageFolder(str(tmp_path)))) == 2
    remarks = remarks_of(tmp_path)
    assert "extra" in remarks and "stray.png" in remarks


def test_class_names_may_have_spaces_and_unicode(tmp_path: Path) -> None:
    names = ("a b", "Größe", "猫", "it's [x] {y} #1")
    make_folder(tmp_path / "s", {f"{split}/{name}": 1 for split in ("train", "val") for name in names})
    for storage in ("raw", "jpeg"):
        assert prepared(tmp_path / "s", tmp_path / "p", storage=storage).class_names == tuple(sorted(names))


@pytest.mark.parametrize("names", [("a b", "a_b"), ("a  b", "a b")])
def test_class_names_that_differ_in_spaces_alone_stay_apart(tmp_path: Path, names: tuple[str, str]) -> None:
    make_folder(tmp_path / "s", {f"{split}/{name}": 1 for split in ("train", "val") for name in names})
    assert prepared(tmp_path / "s", tmp_path / "p", storage="jpeg").class_names == tuple(sorted(names))


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_names_that_are_no_utf_8_are_taken(tmp_path: Path, storage: str) -> None:
    latin = os.fsdecode(b"caf\xe9")
    make_folder(tmp_path / "s", {f"{split}/{name}": 1 for split in ("train", "val") for name in ("tea", latin)})
    (tmp_path / "s/train" / os.fsdecode(b"caf\xe8")).mkdir()
    dataset = prepared(tmp_path / "s", tmp_path / "p", storage=storage)
    assert dataset.num_classes == 2 and len(dataset.splits["train"].labels) == 2


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/cat": 2, "val/cat": 2})
    assert "only one class, 'cat'" in refusal(tmp_path)


def test_an_empty_class_is_ignored_and_reported(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/cat": 1, "train/dog": 1})
    (tmp_path / "train/eel/deep").mkdir(parents=True)
    assert ImageFolder(str(tmp_path)).class_names == ("cat", "dog")
    assert str(tmp_path / "train/eel") in remarks_of(tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_refused(tmp_path: Path, split: str) -> None:
    make_folder(tmp_path, {"train/cat": 1, "train/dog": 1, f"{split}/cat": 1, f"{split}/eel": 1})
    (tmp_path / "train/eel").mkdir()
    assert "'eel'" in refusal(tmp_path) and f"{split}/eel" in refusal(tmp_path)


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
@pytest.mark.parametrize("depth", ["", "deep/"])
def test_a_link_to_a_folder_above_is_reported_and_not_followed(tmp_path: Path, target: str, depth: str) -> None:
    root = make_folder(tmp_path / "root", {"train/cat": 1, f"train/cat/{depth}": 1, "train/dog": 1})
    (root / "train/cat" / depth / "loop").symlink_to(target)
    images = listed(ImageFolder(str(root)))
    assert not [file for _, _, file in images if "loop" in file]
    assert "link to a folder above" in remarks_of(root)


@pytest.mark.parametrize("place", ["train/cat/loop.png", "train/loop", "train/cat/loop"])
def test_a_link_to_itself_does_no_harm(tmp_path: Path, place: str) -> None:
    make_folder(tmp_path, {"train/cat": 1, "train/dog": 1})
    (tmp_path / place).symlink_to(tmp_path / place)
    assert len(listed(ImageFolder(str(tmp_path)))) in (2, 3)  # with a suffix it is an image that cannot be read


def test_links_to_images_and_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    elsewhere = make_folder(tmp_path / "elsewhere", {"a": 2, "b": 1})
    root = make_folder(tmp_path / "root", {"cat": 1})
    (root / "dog").symlink_to(elsewhere / "a")
    (root / "cat/more.png").symlink_to(elsewhere / "b/000.png")
    assert [name for _, name, _ in listed(ImageFolder(str(root)))] == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize("unreadable", ["", "train", "train/cat"])
def test_a_folder_that_may_not_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    make_folder(tmp_path, {"train/cat": 1, "train/dog": 1} if unreadable else {"cat": 1, "dog": 1})
    real = os.scandir

    def scandir(folder: Path) -> object:
        if Path(folder) == tmp_path / unreadable:
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert str(tmp_path / unreadable) in refusal(tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingSourceError, match="nowhere"):
        ImageFolder(str(tmp_path / "nowhere"))
    assert "no images" in refusal(tmp_path)
    (tmp_path / "train/cat").mkdir(parents=True)
    (tmp_path / "train/cat/x.txt").write_text("?")
    assert "no images" in refusal(tmp_path)
    file = save(tmp_path / "x.png", noise(0))
    assert "not a folder" in refusal(file)
    assert "config.data.dir" in refusal("")
    with pytest.raises(UserError, match=r"config\.data\.dir"):
        get_dataset("folder", "", str(tmp_path / "p"), 0, storing())


def test_folders_prepared_by_earlier_versions_stay_up_to_date(tmp_path: Path) -> None:
    for number, name in enumerate(("train/cat/a.png", "train/dog/b.jpg", "val/dog/c.png")):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"?" * number)
        os.utime(file, ns=(0, 1_000_000_001 * number))
    digest = "c699b0a699898a338f7a83f8ea04f5efd3031199cfdcff96af8cb3ba6e1b2da0"
    assert ImageFolder(str(tmp_path)).fingerprint() == f"3 files {digest}"


def test_the_fingerprint_changes_with_the_files_alone(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    file, seen = tmp_path / "cat/000.png", [ImageFolder(str(tmp_path)).fingerprint()]
    assert ImageFolder(str(tmp_path)).fingerprint() == seen[0]
    (tmp_path / "cat/notes.txt").write_text("no image")
    assert ImageFolder(str(tmp_path)).fingerprint() == seen[0]
    for change in (
        lambda: os.utime(file, (1, 1)),
        lambda: file.rename(tmp_path / "cat/new.png"),
        lambda: (tmp_path / "cat/new.png").rename(tmp_path / "dog/new.png"),
        lambda: (tmp_path / "dog/new.png").unlink(),
    ):
        change()
        seen.append(ImageFolder(str(tmp_path)).fingerprint())
    assert len(set(seen)) == len(seen)


def test_splits_taken_from_train_are_about_as_large_as_asked(tmp_path: Path) -> None:
    make_folder(tmp_path / "s", {"cat": 150, "dog": 150})
    files = files_by_split(
        prepared(tmp_path / "s", tmp_path / "p", validation_fraction=0.1, test_fraction=0.3, image_size=2)
    )
    assert 15 <= len(files["validation"]) <= 45 and 70 <= len(files["test"]) <= 110


def test_copies_of_a_file_share_a_split_and_neither_new_files_nor_names_move_one(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "s", {"cat": 40, "dog": 40})
    before = split_by_file(prepared(source, tmp_path / "p"))
    assert set(before.values()) == {"train", "validation", "test"}
    make_folder(source, {"ant": 20, "cat/new": 30}, seed=50)
    for number in range(40):
        shutil.copy(source / f"cat/{number:03d}.png", source / f"dog/copy-{number:03d}.png")
        (source / f"dog/{number:03d}.png").rename(source / f"dog/renamed-{number:03d}.png")
    after = split_by_file(prepared(source, tmp_path / "p"))
    assert len(after) == 80 + 50 + 40
    for number in range(40):
        cat, dog = before[f"cat/{number:03d}.png"], before[f"dog/{number:03d}.png"]
        assert after[f"cat/{number:03d}.png"] == after[f"dog/copy-{number:03d}.png"] == cat
        assert after[f"dog/renamed-{number:03d}.png"] == dog


def test_a_larger_test_fraction_takes_no_image_from_test(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "s", {"cat": 40, "dog": 40})
    few = split_by_file(prepared(source, tmp_path / "p", test_fraction=0.2))
    many = split_by_file(prepared(source, tmp_path / "p", test_fraction=0.4))
    assert {f for f, split in few.items() if split == "test"} < {f for f, split in many.items() if split == "test"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("folder") / "source", {"train/cat": 20, "train/dog": 20})


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: save(root / "train/cat/new.png", noise(5)),
    "removed": lambda root: (root / "train/cat/003.png").unlink(),
    "modified": lambda root: save(root / "train/cat/003.png", noise(6)),
    "touched": lambda root: os.utime(root / "train/cat/003.png", (1, 1)),
    "moved": lambda root: (root / "train/cat/003.png").rename(root / "train/dog/new.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_images_that_have_changed_are_prepared_anew(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    root = shutil.copytree(source, tmp_path / "s")
    before = prepared(root, tmp_path / "p")
    CHANGES[change](root)
    capsys.readouterr()
    after = prepared(root, tmp_path / "p")
    assert "warning: the images have changed" in capsys.readouterr().out
    assert after.directory == before.directory and (after.content == before.content) is (change == "touched")
    assert_whole(tmp_path / "p", contents(prepared(root, tmp_path / "fresh").directory))


def test_images_that_have_not_changed_are_not_prepared_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = prepared(source, tmp_path).directory
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    reads = watch_reads(monkeypatch)
    capsys.readouterr()
    assert prepared(source, tmp_path, max_quarantined=0.5).directory == directory
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not reads and not capsys.readouterr().out


def test_the_prepared_copy_serves_when_the_originals_are_gone(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(source, tmp_path / "s")
    before = prepared(root, tmp_path / "p")
    shutil.rmtree(root)
    after = prepared(root, tmp_path / "p")
    assert after.content == before.content and "warning: " in capsys.readouterr().out
    np.testing.assert_array_equal(images_of(after.splits["train"]), images_of(before.splits["train"]))
    with pytest.raises(MissingSourceError, match="folder"):
        prepared(root, tmp_path / "p", image_size=8)


def test_tiny_imagenet(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/n01/images": 2, "train/n02/images": 1, "val/images": 2, "test/images": 1})
    (tmp_path / "train" / "n01" / "n01_boxes.txt").write_text("000.png\t0\t0\t62\t62\n")
    table = "000.png\tn02\t0\t0\t9\t9\n001.png\tn01\t0\t0\t9\t9\n../../train/n01/images/000.png\tn01\n"
    (tmp_path / "val" / "val_annotations.txt").write_text(table)
    found = listed(ImageFolder(str(tmp_path)))
    assert [row for row in found if row[0] == "validation"] == [
        ("validation", "n01", "val/images/001.png"),
        ("validation", "n02", "val/images/000.png"),
    ]
    assert len(found) == 5 and "test/images has 1 images without labels" in remarks_of(tmp_path)
