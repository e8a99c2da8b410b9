"""Damage to a prepared folder: it is noticed when the folder is opened, when an image is read, or by `verify`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax.cli import verify
from alexnet_jax.data import preparation
from alexnet_jax.data.dataset import open_prepared
from alexnet_jax.errors import UserError
from tests.helpers.pictures import images_of, make_folder, prepared, refused

STORAGES = ("raw", "jpeg")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train/cat": 6, "train/dog": 6, "val/cat": 2, "val/dog": 2, "test/cat": 1, "test/dog": 1}
    return make_folder(tmp_path_factory.mktemp("manifest") / "source", counts)


@pytest.fixture(scope="module")
def originals(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A prepared folder, by storage."""
    folder = tmp_path_factory.mktemp("prepared")
    return {storage: prepared(source, folder / storage, storage=storage).directory for storage in STORAGES}


@pytest.fixture
def folder(originals: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a prepared folder: raw, or as a test says."""
    return shutil.copytree(originals[getattr(request, "param", "raw")], tmp_path / "a set")


every_storage = pytest.mark.parametrize("folder", STORAGES, indirect=True)


def read_all(folder: Path) -> tuple[object, ...]:
    """Everything that a run uses of a folder."""
    dataset = open_prepared(folder)
    pixels = {split: (images_of(records).tobytes(), list(records.labels)) for split, records in dataset.splits.items()}
    statistics = {name: np.asarray(value).tolist() for name, value in vars(dataset.statistics).items()}
    return pixels, statistics, dataset.class_names, dataset.content, dataset.prepared


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_label_is_noticed_and_named_with_the_remedy(folder: Path) -> None:
    labels = np.load(folder / "test_labels.npy")
    np.save(folder / "test_labels.npy", labels[::-1])
    message = refused(lambda: open_prepared(folder))
    assert f"{folder} is damaged: test_labels.npy" in message and f"`rm -r '{folder}'`" in message


def test_an_edited_mean_is_noticed(folder: Path) -> None:
    info = json.loads((folder / "info.json").read_text())
    info["statistics"]["mean"][0] += 1.0
    (folder / "info.json").write_text(json.dumps(info, indent=2))
    assert "info.json" in refused(lambda: open_prepared(folder))


def test_an_image_of_zeros_is_noticed_when_it_is_read(folder: Path) -> None:
    (shard,) = folder.glob("train-*.npy")
    np.load(shard, mmap_mode="r+")[7] = 0
    records, out = open_prepared(folder).splits["train"], np.zeros((1, 16, 16, 3), np.uint8)
    records.read([6], out)
    for _ in range(2):
        message = refused(lambda: records.read([7], out))
        assert shard.name in message and "image 7" in message


@pytest.mark.parametrize(
    ("before", "after"), [(b", 3)", b", 3 "), (b"(12", b"(11"), (b"|u1", b"|i1"), (b"NUM", b"XXX")]
)
def test_a_damaged_header_of_a_shard_is_noticed(folder: Path, before: bytes, after: bytes) -> None:
    (shard,) = folder.glob("train-*.npy")
    content = shard.read_bytes()
    assert content[:128].count(before) == 1
    shard.write_bytes(content.replace(before, after, 1))
    assert shard.name in refused(lambda: open_prepared(folder))


@every_storage
def test_no_flipped_byte_is_silent(folder: Path) -> None:
    """Bytes that tell nothing, such as padding between records, may differ: then everything read is the same."""
    expected, kept = read_all(folder), {}
    random = np.random.default_rng(0)
    for path in sorted(path for path in folder.iterdir()):
        kept[path] = path.read_bytes()
        for place in random.integers(len(kept[path]), size=3):
            flip(path, place)
            try:
                assert read_all(folder) == expected, (path, place)
            except UserError as error:
                assert path.name in str(error) or "image " in str(error)
            path.write_bytes(kept[path])
    assert read_all(folder) == expected


@every_storage
def test_verify_reads_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify.main([str(folder)])
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    assert f"all {len(files)} files" in capsys.readouterr().out.replace("\n", " ")
    for path in files:
        flip(path, path.stat().st_size // 2)
        assert f"1 of {len(files)} files: {path.name} (" in refused(lambda: verify.main([str(folder)]))
        flip(path, path.stat().st_size // 2)
    for path in files[:2]:
        path.unlink()
    message = refused(lambda: verify.main([str(folder)]))
    assert f"2 of {len(files)} files" in message and all(path.name in message for path in files[:2])


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"digest": "", "files": {}}', '{"digest": "", "files": [1]}', "[" * 5000]
)
def test_a_damaged_manifest_is_told(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    for act in (lambda: open_prepared(folder), lambda: verify.main([str(folder)])):
        assert "manifest.json" in refused(act)


def test_what_an_earlier_version_has_prepared_opens_with_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = read_all(folder)
    for path in (folder / "manifest.json", *folder.glob("*_checksums.npy")):
        path.unlink()
    assert capsys.readouterr().out == ""
    assert read_all(folder)[:-1] == expected[:-1] and open_prepared(folder).prepared == ""
    assert "has no manifest.json" in capsys.readouterr().out.replace("\n", " ")
    assert "has no manifest.json" in refused(lambda: verify.main([str(folder)]))


def test_the_digest_is_of_what_is_stored(source: Path, originals: dict[str, Path], tmp_path: Path) -> None:
    again = prepared(source, tmp_path).prepared
    assert again == open_prepared(originals["raw"]).prepared != open_prepared(originals["jpeg"]).prepared


def test_everything_is_on_the_disk_before_the_folder_has_its_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[str] = set()
    rename: Callable[[Path, Path], Path] = Path.rename

    def publish(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            assert {file.name for file in path.iterdir()} | {path.name} <= flushed
            flushed.clear()
        return rename(path, target)

    monkeypatch.setattr(preparation, "flush", lambda path: flushed.add(path.name))
    monkeypatch.setattr(Path, "rename", publish)
    directory = prepared(source, tmp_path).directory
    assert flushed == {tmp_path.name} and directory.is_dir()
