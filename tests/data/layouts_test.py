"""Layouts of folders: names of splits, tables of labels, classes in names, what is left out, small classes."""

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from alexnet_jax.data import splitting
from alexnet_jax.data.dataset import get_dataset
from alexnet_jax.data.image_folder import ImageFolder
from alexnet_jax.data.label_table import read_labels
from alexnet_jax.data.layouts import images_below, split_name
from alexnet_jax.data.preparation import StorageOptions
from alexnet_jax.errors import UserError
from tests.helpers.pictures import make_folder, noise, prepared, refused, save


def counts(source: ImageFolder) -> dict[tuple[str, str], int]:
    pairs = [(file.split, file.class_name) for file in source.files]
    return {pair: pairs.count(pair) for pair in pairs}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set", "test_set"),
        ("TrainSet", "TestSet"),
        ("data/train2017", "data/test2017"),
    ],
)
def test_folders_called_like_splits_are_splits(train: str, test: str, tmp_path: Path) -> None:
    make_folder(tmp_path, {f"{train}/cat": 2, f"{train}/dog": 3, f"{test}/cat": 1, f"{test}/dog": 1})
    source = ImageFolder(str(tmp_path))
    expected = {("train", "cat"): 2, ("train", "dog"): 3, ("test", "cat"): 1, ("test", "dog"): 1}
    assert counts(source) == expected and source.held_out == ("validation",)


@pytest.mark.parametrize("name", ["cat", "bullet train station test", "contest", "trainer"])
def test_other_names_are_no_splits(name: str) -> None:
    assert split_name(name) is None


def test_trains_beside_buses_are_a_class(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": 2, "bus": 2})
    assert ImageFolder(str(tmp_path)).class_names == ("bus", "train")


def test_folders_in_folders_are_asked_about(tmp_path: Path) -> None:
    make_folder(tmp_path, {"animal/cat": 1, "animal/dog": 1, "vehicle/car": 1, "vehicle/bus": 1})
    assert "config.data.labels=outer" in refused(lambda: ImageFolder(str(tmp_path)))
    assert ImageFolder(str(tmp_path), "outer").class_names == ("animal", "vehicle")
    assert ImageFolder(str(tmp_path), "inner").class_names == ("bus", "car", "cat", "dog")


def test_folders_of_splits_in_those_of_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat/train": 2, "cat/test": 1, "dog/train": 1, "dog/test": 2})
    source = ImageFolder(str(tmp_path))
    assert counts(source) == {("train", "cat"): 2, ("train", "dog"): 1, ("test", "cat"): 1, ("test", "dog"): 2}
    assert [file.split for file in source.files] == ["train"] * 3 + ["test"] * 3
    assert ImageFolder(str(tmp_path), "outer").held_out == ("validation", "test")


def test_what_a_person_should_look_at(tmp_path: Path) -> None:
    make_folder(tmp_path, {"Dog": 1, "dog ": 1, "photos/cat": 1, "photos/eel": 1, "test_2": 1})
    remarks = "; ".join(ImageFolder(str(tmp_path)).remarks)
    assert "the classes 'Dog', 'dog ' are called alike" in remarks and "test_2 is called like a split" in remarks
    assert "images of photos lie in folders within it (cat, eel)" in remarks


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["0_1.png", "0_2.png", "1_3.png"],
            "3 images lie in no folder of a class, and their names tell none (0_1",
        ),
        (["train/cat.1.png", "train/dog.1.png", "train/odd.png"], "(train/odd.png)"),
        (["photos.zip"], "If the images are in photos.zip, unpack it"),
        (["cat/1.png", "dog.zip"], "one class, 'cat', but a classifier needs at least two. Is DIR"),
    ],
)
def test_a_folder_without_classes_is_told_what_it_lacks(files: list[str], message: str, tmp_path: Path) -> None:
    for number, file in enumerate(files):
        if file.endswith(".zip"):
            (tmp_path / file).write_bytes(b"PK")
        else:
            save(tmp_path / file, noise(number))
    assert message in refused(lambda: ImageFolder(str(tmp_path)))


def test_an_archive_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert "unpack it" in refused(lambda: ImageFolder(str(tmp_path / "a.zip")))
    assert "--data-dir=" in refused(lambda: ImageFolder(str(tmp_path / "a.zip"), is_for_training=False))


def test_copies_of_files_in_windows_have_the_class_of_their_names(tmp_path: Path) -> None:
    for number, name in enumerate(("cat (1)", "cat (2)", "dog (1)", "dog2 (1)")):
        save(tmp_path / f"{name}.png", noise(number))
    assert counts(ImageFolder(str(tmp_path))) == {("train", "cat"): 2, ("train", "dog"): 2}


def test_classes_are_read_from_the_names_of_files(tmp_path: Path) -> None:
    for number, name in enumerate(("cat.0", "cat.1", "dog.0", "dog.1")):
        save(tmp_path / f"train/{name}.jpg", noise(number))
    save(tmp_path / "test1/1.jpg", noise(9))
    source = ImageFolder(str(tmp_path))
    assert counts(source) == {("train", "cat"): 2, ("train", "dog"): 2}
    assert "without labels" in "; ".join(source.remarks)


TABLES = {
    "labels.csv": "filename,label,split\na.png,x,train\nsub/b.png,y,training\nc.png,x,Test\n",
    "paths.csv": "path,label,split\nimages/a.png,x,train\nimages/sub/b.png,y,train\nimages/c,x,test\n",
    "labels.tsv": "a.png\tx\ttrain\nb.png\ty\ttrain\nc.png\tx\ttest\n",
    "labels.jsonl": '{"file": "a", "label": "x"}\n{"file": "b", "label": "y"}\n'
    '{"file": "c.png", "label": "x", "split": "test"}\n',
    "array.json": '[{"file": "a", "label": "x"}, {"file": "b", "label": "y"},\n'
    '{"file": "c.png", "label": "x", "split": "test"}]\n',
    "spaces.txt": "a.png x train\nsub/b.png y train\nc.png x test\n",
    "Names.csv": ";Image Name;Class-ID;Set\n1;a;x;Train\n2;b;y;Train\n3;c;x;Test\n",
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_gives_classes_and_splits(name: str, encoding: str, tmp_path: Path) -> None:
    for number, file in enumerate(("a.png", "sub/b.png", "c.png", "d.png")):
        save(tmp_path / "images" / file, noise(number))
    (tmp_path / name).write_text(TABLES[name], encoding)
    source = ImageFolder(str(tmp_path / "images"), str(tmp_path / name))
    assert counts(source) == {("train", "x"): 1, ("train", "y"): 1, ("test", "x"): 1}
    assert f"1 images without a row in {name}" in "; ".join(source.remarks)


def test_a_table_names_files_in_linked_folders_and_of_one_name_by_their_paths(tmp_path: Path) -> None:
    make_folder(tmp_path / "elsewhere", {"b": 1})
    make_folder(tmp_path / "images", {"a": 1})
    (tmp_path / "images/b").symlink_to(tmp_path / "elsewhere/b")
    (tmp_path / "labels.csv").write_text("path,species\n/data/images/a/000.png,x\nb/000.png,y\n")
    source = ImageFolder(str(tmp_path / "images"), str(tmp_path / "labels.csv"))
    assert {file.path: file.class_name for file in source.files} == {"a/000.png": "x", "b/000.png": "y"}
    assert "the classes are in the column 'species' of labels.csv" in source.remarks


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"file": "a.png", "label": null}', "line 1: 'a.png' has no label"),
        ('{"file": "a.png", "label": ["x"]}', "line 1 has a list or an object for 'label'"),
        ("\n7", "line 2 holds no object"),
    ],
)
def test_labels_in_json_are_texts_or_numbers(lines: str, message: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0))
    (tmp_path / "labels.jsonl").write_text(lines)
    assert message in refused(lambda: ImageFolder(str(tmp_path), str(tmp_path / "labels.jsonl")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nz.png,x\n", "line 2: there is no image 'z.png'"),
        ("file,label\nz.png,x\ny.png,x\na.png,x\n", "'z.png' (nor one of 1 other rows)"),
        ("file,label\na.png,x, y\n", "line 2 has 3 cells, not 2"),
        ("file,label\na.png,x\n", "labels.csv has only one class, 'x', but a classifier needs at least two"),
        ("file,label,split\na.png,x,test\n", "labels.csv has no training images"),
        ("file,label\na.png,K\udce4se\n", "it is no text in UTF-8"),
        ("file,label\nelsewhere/b.png,x\n", "line 2: there is no image 'elsewhere/b.png'"),
        ("file,label\na.png,\n", "line 2: 'a.png' has no label"),
        ("file,label\na.png,x\na.png,y\n", "lines 2 and 3 contradict"),
        ("file,label,split\na.png,x,upper\n", "line 2: 'upper' is no split"),
        ("one,two\n1,2\n", "its columns are one, two"),
    ],
)
def test_a_mistake_in_a_table_is_named(text: str, message: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0))
    save(tmp_path / "sub/b.png", noise(1))
    (tmp_path / "labels.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert message in refused(lambda: ImageFolder(str(tmp_path), str(tmp_path / "labels.csv")))


def test_json_of_too_many_levels_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text("[" * 5000)
    with pytest.raises(UserError, match=r"labels\.jsonl"):
        read_labels(tmp_path / "labels.jsonl", ["a.png"])


def test_classes_of_digits_sort_as_numbers_and_what_systems_leave_is_ignored(tmp_path: Path) -> None:
    make_folder(tmp_path, {"10": 1, "2": 1, "@eaDir": 1, "lost+found": 1, "2/@eaDir/x.jpg": 1})
    source = ImageFolder(str(tmp_path))
    assert source.class_names == ("2", "10") and len(source.files) == 2
    assert "@eaDir" in "; ".join(source.remarks) and "lost+found" in "; ".join(source.remarks)


def test_imagenets_flat_validation_images_have_their_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/n01751748": 2, "train/n09193705": 2})
    for number in (1, 2, 3):
        save(tmp_path / f"val/ILSVRC2012_val_{number:08d}.JPEG", noise(number))
    source = ImageFolder(str(tmp_path))
    found = {file.path[-9:-5]: file.class_name for file in source.files if file.split == "validation"}
    assert found == {"0001": "n01751748", "0002": "n09193705"}
    assert "1 validation images of ILSVRC-2012" in "; ".join(source.remarks)


def test_each_class_of_three_images_has_one_in_each_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "s", {"many": 60, "three": 3, "five": 5})
    dataset = prepared(root, tmp_path / "p", validation_fraction=0.1, test_fraction=0.1)
    for records in dataset.splits.values():
        assert set(records.labels.tolist()) == {0, 1, 2}
    printed = capsys.readouterr().out
    assert "five 5, many 60, three 3" in printed and "one mistake is" in printed


def test_camera_raw_files_and_notes_beside_photographs_are_no_images(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat/IMG_1.NEF").write_bytes(b"II*\0" + bytes(99))
    (tmp_path / "cat/notes.txt").write_text("P1 is the first")
    source = ImageFolder(str(tmp_path))
    assert len(source.files) == 4 and {"1 files that are no images (.nef)", "1 files that are no images (.txt)"} <= {
        remark.removeprefix("ignored: ") for remark in source.remarks
    }


def test_links_are_followed_and_broken_ones_counted(tmp_path: Path) -> None:
    make_folder(tmp_path / "elsewhere", {"b": 1})
    folder = make_folder(tmp_path / "images", {"a": 1})
    (folder / "b").symlink_to(tmp_path / "elsewhere/b")
    (folder / "broken").symlink_to("nowhere")
    (folder / "loop").symlink_to(folder)
    ignored = Counter[str]()
    assert [Path(path).parent.name for path in images_below(folder, ignored)] == ["a", "b"]
    assert ignored == {"broken links": 1, f"link to a folder above it ({folder / 'loop'})": 1}


def test_a_test_split_alone_is_enough_to_evaluate_and_not_to_train(tmp_path: Path) -> None:
    make_folder(tmp_path, {"test/cat": 2, "test/dog": 1})
    assert "no train/" in refused(lambda: ImageFolder(str(tmp_path)))
    assert counts(ImageFolder(str(tmp_path), is_for_training=False)) == {("test", "cat"): 2, ("test", "dog"): 1}


def test_an_error_of_the_machine_does_not_change_the_splits_of_small_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    make_folder(tmp_path, {"cat": 3, "dog": 3})
    monkeypatch.setattr(splitting, "read_original", fail)
    with pytest.raises(OSError, match="Input/output error"):
        splitting.Splitting(ImageFolder(str(tmp_path)), {"test": 0.1, "validation": 0.1}, 1e6)


def test_data_with_labels_of_their_own_take_no_others(tmp_path: Path) -> None:
    options = StorageOptions(8, "raw", 90, 0.25, 0.1, 0.01, 100.0)
    message = refused(lambda: get_dataset("digits", "", str(tmp_path), 0, options, "outer"))
    assert "config.data.labels='outer': digits" in message
