"""The inventory and the report of a preparation; unreadable images."""

import csv
import shutil
import struct
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import preparation
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.images import PreparedImage, ResizedImage, resize_image
from alexnet_jax.data.inventory import Inventory, write_table
from alexnet_jax.system import console
from tests.helpers.pictures import (
    assert_whole,
    contents,
    images_of,
    make_folder,
    noise,
    prepared,
    refused,
    save,
    watch_reads,
)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is broken."""
    monkeypatch.setattr(console._console, "_width", 5000)


def table(dataset: Dataset, name: str) -> list[list[str]]:
    """Rows of a table without its header."""
    with (dataset.directory / name).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


def test_an_inventory_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    inventory = Inventory(4)
    odd, other = ResizedImage(noise(0, 4, 4), frozenset({"grey", "tiny"})), ResizedImage(noise(1, 4, 4))
    inventory.add(PreparedImage("train", 3, "a\udce9 \t'猫'.png", bytes(range(200, 232)), odd))
    inventory.add(PreparedImage("test", 0, "b.png", b"\xff" * 32, other))
    inventory.quarantine.append(("train", "c.png", "broken\nfor\tgood"))
    inventory.save(tmp_path / "part.npz")
    loaded = Inventory.load(tmp_path / "part.npz")
    for name in ("split", "label", "file", "digest", "traits", "quarantine"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(inventory, name))
    for name in ("pixels", "products"):
        np.testing.assert_array_equal(getattr(loaded.sums, name), getattr(inventory.sums, name))
    assert isinstance(loaded.traits, Counter) and loaded.content() == inventory.content()
    assert [path.name for path in tmp_path.iterdir()] == ["part.npz"]


def test_a_table_has_one_line_a_row_whatever_the_names(tmp_path: Path) -> None:
    write_table(tmp_path / "t.tsv", ("a", "b"), [("x\ty", "1\n2\r\n3"), ("\udce9", 5)])
    assert (tmp_path / "t.tsv").read_bytes() == b"a\tb\nx y\t1 2 3\n\\udce9\t5\n"
    write_table(tmp_path / "t.tsv", ("a", "b"), [("=1+1", -5), ("-5", "\t@x")])
    assert (tmp_path / "t.tsv").read_text() == "a\tb\n'=1+1\t-5\n-5\t'@x\n"


def test_copies_in_different_splits_are_listed(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "s", {f"{split}/{name}": 3 for split in ("train", "val", "test") for name in "ab"})
    shutil.copy(source / "train/a/001.png", source / "val/a/copy.png")
    shutil.copy(source / "train/a/001.png", source / "test/b/copy.png")
    shutil.copy(source / "train/b/002.png", source / "train/a/inside.png")
    shutil.copy(source / "val/a/000.png", source / "test/a/copy.png")
    assert sorted(table(prepared(source, tmp_path / "p"), "duplicates.tsv")) == [
        ["train", "train/a/001.png", "test", "test/b/copy.png"],
        ["train", "train/a/001.png", "validation", "val/a/copy.png"],
        ["validation", "val/a/000.png", "test", "test/a/copy.png"],
    ]


def test_splits_taken_from_train_share_no_image(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "s", {"a": 30, "b": 30})
    for number in range(30):
        shutil.copy(source / f"a/{number:03d}.png", source / f"b/copy-{number:03d}.png")
    dataset = prepared(source, tmp_path / "p")
    assert table(dataset, "duplicates.tsv") == []
    seen = [{image.tobytes() for image in images_of(records)} for records in dataset.splits.values()]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 60


def test_the_classes_of_each_split_are_counted(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "s", {"train/a b": 2, "train/猫": 3, "val/猫": 1, "test/a b": 4})
    assert table(prepared(source, tmp_path / "p"), "classes.tsv") == [["a b", "2", "0", "4"], ["猫", "3", "1", "0"]]


def make_odd_folder(root: Path) -> Path:
    """An image with each unusual property, two of them grey and tiny."""
    make_folder(root, {"train/a": 3, "train/b": 4, "val/a": 2, "val/b": 1})
    for seed in range(2):
        save(root / f"train/a/grey-{seed}.png", noise(70 + seed, 5, 9)[:, :, 0])
    save(root / "train/a/see-through.png", np.dstack([noise(72), noise(73)[:, :, :1]]))
    turned = Image.Exif()
    turned[0x0112] = 6
    save(root / "train/b/turned.jpg", noise(74), exif=turned)
    save(root / "train/b/small.png", noise(75, 16, 15))
    Image.fromarray(noise(76)).convert("CMYK").save(root / "train/b/print.jpg")
    frames = [Image.fromarray(noise(77 + number)) for number in range(3)]
    frames[0].save(root / "val/b/moving.gif", save_all=True, append_images=frames[1:])
    return root


def test_the_report_tells_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_odd_folder(tmp_path / "s")
    (source / "train/empty").mkdir()
    (source / "train/a/broken.png").write_bytes(b"")
    shutil.copy(source / "train/a/000.png", source / "val/a/copy.png")
    dataset = prepared(source, tmp_path / "p", max_quarantined=0.5)
    report = capsys.readouterr().out
    assert "18 images of 2 classes" in report and str(dataset.directory) in report
    assert "train 13 (6 to 7 per class)" in report and "validation 5 (2 to 3 per class)" in report
    for count in ("2 grey", "1 CMYK", "1 transparent", "1 animated", "1 rotated", "3 tiny"):
        assert count in report
    assert "16 x 16 raw" in report and "classes.tsv" in report
    assert "1; see quarantine.tsv" in report and "1 of them in another split; see duplicates.tsv" in report
    assert "train/empty" in report and "images/s" in report
    assert "mean " + " ".join(f"{level:.1f}" for level in dataset.statistics.mean) in report


def test_a_class_that_lost_all_training_images_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_folder(tmp_path / "s", {"train/a": 9, "train/b": 1, "val/a": 2, "val/b": 1})
    (source / "train/b/000.png").write_bytes(b"?")
    dataset = prepared(source, tmp_path / "p", max_quarantined=0.5)
    assert "no training image of 'b'" in capsys.readouterr().out
    assert dataset.class_names == ("a", "b")


def png_of_zeros(size: int) -> bytes:
    """A black image of one bit per pixel: a small file that decodes to many pixels."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0), b"IDAT": b"", b"IEND": b""}
    chunks[b"IDAT"] = zlib.compress(bytes((size // 8 + 1) * size), 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def make_broken(root: Path) -> dict[str, str]:
    """Writes files that cannot be read; returns a part of the reason by name."""
    good = save(root / "train/a/good.jpg", noise(1, 64, 64)).read_bytes()
    (root / "train/a/truncated.jpg").write_bytes(good[: len(good) // 2])
    (root / "train/a/zero.png").write_bytes(b"")
    (root / "train/b/text.jpg").write_text("this is no image\nat all\t")
    save(root / "train/b/large.png", np.zeros((101, 100), np.uint8))
    (root / "train/b/dangling.png").symlink_to(root / "nowhere")
    (root / "train/b/secret.png").write_bytes(good)
    return {
        "train/a/truncated.jpg": "truncated",
        "train/a/zero.png": "empty",
        "train/b/text.jpg": "not an image",
        "train/b/large.png": "100 x 101 pixels",
        "train/b/dangling.png": "No such file",
        "train/b/secret.png": "Permission denied",
    }


def quarantined(table: Path) -> dict[str, str]:
    header, *rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert header == ["split", "file", "reason"] and {row[0] for row in rows} <= {"train", "validation"}
    return {file: reason for _, file, reason in rows}


def test_files_that_cannot_be_read_go_to_quarantine_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "s", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    reasons, real = make_broken(root), Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "secret.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    dataset = prepared(root, tmp_path / "p", max_quarantined=0.6, max_megapixels=0.01)
    found = quarantined(dataset.directory / "quarantine.tsv")
    assert found.keys() == reasons.keys()
    assert [file for file in reasons if reasons[file] not in found[file]] == []
    assert "max_megapixels" in found["train/b/large.png"]
    assert len(dataset.splits["train"].labels) == len(images_of(dataset.splits["train"])) == 7


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "s", {"train/a": 3, "train/b": 3, "val/a": 1})
    (root / "train/a/bomb.png").write_bytes(png_of_zeros(30_000))
    began = time.monotonic()
    dataset = prepared(root, tmp_path / "p", max_quarantined=0.5, max_megapixels=100.0)
    assert time.monotonic() - began < 1
    assert "30000 x 30000" in quarantined(dataset.directory / "quarantine.tsv")["train/a/bomb.png"]


def test_too_many_unreadable_stop_and_a_larger_limit_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "s", {"train/a": 40, "train/b": 40, "val/a": 1})
    for number in range(3):
        (root / f"train/a/{number:03d}.png").write_bytes(b"?")
    message = refused(lambda: prepared(root, tmp_path / "p", max_quarantined=0.03))
    assert "3 of 81" in message and "config.data.max_quarantined=0.03" in message
    assert len(quarantined(Path(message.split("see ")[1].split(" (")[0]))) == 3
    reads = watch_reads(monkeypatch)
    dataset = prepared(root, tmp_path / "p", max_quarantined=0.04)
    assert not reads and "continuing the preparation" in capsys.readouterr().out
    assert len(quarantined(dataset.directory / "quarantine.tsv")) == 3
    assert_whole(tmp_path / "p", contents(prepared(root, tmp_path / "other", max_quarantined=0.9).directory))


def test_a_folder_of_broken_files_alone_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"s/{name}").mkdir(parents=True)
        (tmp_path / f"s/{name}/x.jpg").write_bytes(b"?")
    assert "2 of 2" in refused(lambda: prepared(tmp_path / "s", tmp_path / "p", max_quarantined=0.99))


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "s", {"a": 1, "b": 1})
    message = refused(lambda: prepared(root, tmp_path / "p", validation_fraction=0.001, test_fraction=0.0))
    assert "validation split" in message and "config.data.validation_fraction" in message


class Ordered(frozenset[str]):
    """A set with an order, which Python's own sets change from one process to the next."""

    backwards = False

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(sorted(super().__iter__(), reverse=self.backwards))


def test_the_order_of_sets_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ordered(*args: object) -> ResizedImage:
        resized = resize_image(*args)  # type: ignore[arg-type]
        return ResizedImage(resized.pixels, Ordered(resized.properties), resized.jpeg)

    monkeypatch.setattr(preparation, "resize_image", ordered)
    source, infos = make_odd_folder(tmp_path / "s"), []
    for backwards in (False, True):
        monkeypatch.setattr(Ordered, "backwards", backwards)
        infos.append((prepared(source, tmp_path / str(backwards)).directory / "info.json").read_bytes())
    assert infos[0] == infos[1]
