"""Data sets read from the files that their authors publish, as tiny files of the same form."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet_jax.data.array_files import Cifar, Idx, read_idx
from alexnet_jax.data.array_pickle import read_pickle
from alexnet_jax.data.dataset import get_dataset
from alexnet_jax.data.preparation import StorageOptions
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import MissingSourceError, UserError

STORING = StorageOptions(8, "raw", 90, 0.25, 0.1, 0.01, 100.0)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ["airplane", "automobile", "bird"]


def idx(array: np.ndarray) -> bytes:
    sides = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sides + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, count: int = 20) -> np.ndarray:
    """Writes the four files, the images compressed, and returns the training images."""
    random = np.random.default_rng(0)
    for split, number in (("train", count), ("t10k", count // 2)):
        images = random.integers(0, 256, (number, 28, 28), np.uint8)
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.arange(number) % 10))
        if split == "train":
            kept = images
    return kept


def originals(source: Source) -> list[Any]:
    return [original for chunk in source.chunks() for original in source.read(chunk)]


def test_idx_files_are_read_where_they_lie(tmp_path: Path) -> None:
    images = write_mnist(tmp_path)
    source = Idx("fashion_mnist", str(tmp_path))
    found = originals(source)
    assert source.class_names[9] == "Ankle boot" and source.held_out == ("validation",)
    assert [original.split for original in found] == ["train"] * 20 + ["test"] * 10
    assert [original.label for original in found[:20]] == [*range(10), *range(10)]
    np.testing.assert_array_equal([original.content for original in found[:20]], images)
    before = source.fingerprint()
    write_mnist(tmp_path, count=30)
    assert Idx("fashion_mnist", str(tmp_path)).fingerprint() != before


def test_the_config_names_their_folder(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist")
    dataset = get_dataset("tfds:mnist", str(tmp_path / "mnist"), str(tmp_path / "data"), 0, STORING)
    counts = {split: len(records.labels) for split, records in dataset.splits.items()}
    assert counts["test"] == 10 and counts["train"] + counts["validation"] == 20 and counts["validation"] > 0
    again = get_dataset("tfds:mnist", str(tmp_path / "mnist"), str(tmp_path / "data"), 0, STORING)
    assert again.content == dataset.content and again.directory == dataset.directory


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist() -> None:
    labels = read_idx(DEBIAN / "t10k-labels-idx1-ubyte.gz", 1)
    images = read_idx(DEBIAN / "t10k-images-idx3-ubyte.gz", 3)
    assert images.shape == (10_000, 28, 28) and np.bincount(labels).tolist() == [1000] * 10
    assert labels[:3].tolist() == [9, 2, 1] and len(Idx("fashion_mnist", str(DEBIAN)).files) == 4


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (idx(np.zeros((20, 28, 28)))[:-5], r"20 x 28 x 28 = 15,680 numbers, but has 15,675"),
        (idx(np.zeros((20, 28, 28))) + b"0", r"15,680 numbers, but has more"),
        (idx(np.zeros(20)), "begins with 00000801, not 00000803"),
        (b"", "begins with nothing, not 00000803"),
        (idx(np.zeros((20, 28, 28)))[:9], "its header says 20 x 0 x 0 pixels"),
        (b"\xff" * 30, "begins with ffffffff"),
        (gzip.compress(idx(np.zeros((20, 28, 28))), mtime=0)[:-9], "cannot be read: Compressed file ended"),
        (b"\x1f\x8bnothing", "cannot be read"),
        (idx(np.zeros((0, 28, 28))), "0 train images, but 20 labels"),
        (idx(np.zeros((19, 28, 28))), "19 train images, but 20 labels"),
    ],
    ids=[
        "cut",
        "longer",
        "labels",
        "empty",
        "header-cut",
        "no-idx",
        "gzip-cut",
        "gzip-damaged",
        "no-images",
        "too-few-images",
    ],
)
def test_a_damaged_idx_file(content: bytes, what: str, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=what) as raised:
        Idx("mnist", str(tmp_path)).chunks()
    assert "train-images-idx3-ubyte.gz" in str(raised.value) and "\n" not in str(raised.value)


def test_no_images(tmp_path: Path) -> None:
    write_mnist(tmp_path, count=0)
    with pytest.raises(UserError, match="there are no train images"):
        Idx("mnist", str(tmp_path)).chunks()


def test_a_label_without_a_class(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(10, 10)))
    with pytest.raises(UserError, match="test labels are not 0 to 9"):
        Idx("mnist", str(tmp_path)).chunks()


def test_a_file_that_is_missing_or_there_twice(tmp_path: Path) -> None:
    with pytest.raises(MissingSourceError, match=r"train-images-idx3-ubyte\(\.gz\) not found.*dataset-fashion-mnist"):
        Idx("fashion_mnist", str(tmp_path))
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"both train-labels-idx1-ubyte and train-labels-idx1-ubyte\.gz"):
        Idx("mnist", str(tmp_path))


class OldArray:
    """Pickles as NumPy arrays do in the files of CIFAR."""

    def __init__(self, array: np.ndarray):
        self._array = array

    def __reduce__(self) -> Any:
        return self._array.__reduce__()


def cifar_files(kind: str) -> dict[str, bytes]:
    """The files of CIFAR-10 with two images each; the first pixel of each tells its label."""
    files = {}
    for number in range(6):
        labels = [number % 3, (number + 1) % 3]
        pixels = np.random.default_rng(number).integers(0, 256, (2, 3072), np.uint8)
        pixels[:, 0] = labels
        name = "test_batch" if number == 5 else f"data_batch_{number + 1}"
        if kind == "python":
            entries = {b"data": pixels, b"labels": labels, b"filenames": [b"a.png", b"b.png"]}
            files[name] = pickle.dumps(entries, protocol=2)
        else:
            files[f"{name}.bin"] = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1).tobytes()
    if kind == "python":
        files["batches.meta"] = pickle.dumps({"label_names": CLASSES}, protocol=0)
    else:
        files["batches.meta.txt"] = "\n".join([*CLASSES, ""]).encode()
    return files


def write_cifar(folder: Path, kind: str, packed: str, files: dict[str, bytes]) -> None:
    inner = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}[kind]
    if packed:
        with tarfile.open(
            folder / f"cifar-10-{kind}.{packed}", f"w:{packed.removeprefix('tar').strip('.')}"
        ) as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"{inner}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        (folder / inner).mkdir()
        for name, content in files.items():
            (folder / inner / name).write_bytes(content)


@pytest.mark.parametrize("packed", ["tar.gz", "tar", ""])
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar(kind: str, packed: str, tmp_path: Path) -> None:
    write_cifar(tmp_path, kind, packed, cifar_files(kind))
    source = Cifar("cifar10", str(tmp_path))
    found = originals(source)
    assert source.class_names == tuple(CLASSES)
    assert [original.split for original in found] == ["train"] * 10 + ["test"] * 2
    assert [original.label for original in found] == [original.content[0, 0, 0] for original in found]
    pixels = np.random.default_rng(2).integers(0, 256, (2, 3072), np.uint8)
    np.testing.assert_array_equal(found[4].content[5, 7], pixels[0].reshape(3, 32, 32)[:, 5, 7])


def test_the_hundred_classes_of_cifar_are_the_fine_ones(tmp_path: Path) -> None:
    row = bytes([1, 2]) + bytes(3072)
    files = {"train.bin": row * 3, "test.bin": row, "fine_label_names.txt": "\n".join(map(str, range(100))).encode()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert [original.label for original in originals(Cifar("cifar100", str(tmp_path)))] == [2] * 4


class Trap:
    """Pickles as a call."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        (Trap(), "asks for '?__builtin__.exec"),
        ({"data": Trap()}, "asks for"),
        ({"data": np.zeros(3, np.float64)}, "not one of bytes"),
        ({"data": np.array([None])}, "not one of bytes"),
        ({"data": np.zeros((3, 4), np.uint8, order="F")}, "row by row"),
        ([1, 2], "no dictionary"),
        ({1: 2}, "no dictionary"),
    ],
)
def test_a_pickle_of_anything_else_runs_nothing(entries: Any, what: str) -> None:
    with pytest.raises(UserError, match=rf"^here cannot be read as a pickle: .*{what}"):
        read_pickle(pickle.dumps(entries, protocol=2), "here")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (pickle.PROTO + b"\5" + pickle.BYTEARRAY8 + (2**40).to_bytes(8, "little"), ""),
        (b"c_codecs\nencode\n}S'leak'\nI1\nsb.", "sets attributes"),
    ],
)
def test_a_pickle_takes_no_memory_that_it_lacks_and_changes_nothing(content: bytes, what: str) -> None:
    with pytest.raises(UserError, match=rf"^here cannot be read as a pickle: .*{what}"):
        read_pickle(content, "here")


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_damaged_cifar(kind: str, tmp_path: Path) -> None:
    with pytest.raises(MissingSourceError, match=r"cifar-10-python\.tar\.gz or cifar-10-binary\.tar\.gz: download"):
        Cifar("cifar10", str(tmp_path))
    files, batch = cifar_files(kind), {"python": "data_batch_3", "binary": "data_batch_3.bin"}[kind]
    write_cifar(tmp_path, kind, "", {**files, batch: files[batch][:-1]})
    with pytest.raises(UserError, match=batch):
        Cifar("cifar10", str(tmp_path)).chunks()
    write_cifar(tmp_path, kind, "tar.gz", {name: content for name, content in files.items() if name != batch})
    (tmp_path / {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}[kind]).rename(tmp_path / "away")
    with pytest.raises(UserError, match=rf"has no {batch}"):
        Cifar("cifar10", str(tmp_path)).chunks()
    packed = tmp_path / f"cifar-10-{kind}.tar.gz"
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"cifar-10-{kind}\.tar\.gz cannot be read"):
        Cifar("cifar10", str(tmp_path)).chunks()
