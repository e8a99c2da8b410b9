"""Data sets by name."""

import dataclasses
import hashlib
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from alexnet_jax.data.dataset import Dataset, find_prepared, get_dataset, open_prepared
from alexnet_jax.data.preparation import StorageOptions, prepare
from alexnet_jax.data.sources import SPLITS, Chunk, Original, Source
from alexnet_jax.errors import MissingSourceError, UserError
from tests.conftest import REPOSITORY

without_tensorflow = pytest.mark.skipif(find_spec("tensorflow") is not None, reason="TensorFlow is installed")
STORING = StorageOptions(8, "raw", 90, 0.25, 0.1, 0.01, 100.0)


def images(dataset: Dataset, split: str) -> np.ndarray:
    records = dataset.splits[split]
    out = np.empty((len(records.labels), records.image_size, records.image_size, 3), np.uint8)
    records.read(range(len(out)), out)
    return out


def sizes(dataset: Dataset) -> dict[str, int]:
    return {split: len(records.labels) for split, records in dataset.splits.items()}


def digits(prepared_dir: str | Path, **changes: Any) -> Dataset:
    return get_dataset("digits", "", str(prepared_dir), 0, dataclasses.replace(STORING, **changes))


def test_digits_are_scikit_learns_each_in_one_split(prepared_dir: str) -> None:
    dataset = digits(prepared_dir)
    assert sizes(dataset) == {"train": 1257, "validation": 180, "test": 360}
    assert dataset.class_names == tuple("0123456789") and dataset.num_classes == 10
    ours = []
    for split, records in dataset.splits.items():
        pixels = images(dataset, split)
        assert (pixels == pixels[..., :1]).all() and records.labels.dtype == np.int32
        ours += [(image[..., 0].tobytes(), label) for image, label in zip(pixels, records.labels.tolist(), strict=True)]
    source = load_digits()
    grey = np.round(source.images * (255 / 16)).astype(np.uint8)
    assert sorted(ours) == sorted((image.tobytes(), int(i)) for image, i in zip(grey, source.target, strict=True))


def test_digits_are_prepared_once(prepared_dir: str) -> None:
    first = digits(prepared_dir)
    files = {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")}
    assert first.directory == Path(prepared_dir) / "digits-8-13384020"  # so that earlier versions' are found
    assert files
    second = digits(prepared_dir)
    assert second.directory == first.directory and second.content == first.content
    assert {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")} == files


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_of_no_class_is_told_in_a_line(label: int, tmp_path: Path) -> None:
    path = digits(tmp_path).directory / "train_labels.npy"
    labels = np.load(path)
    labels[5] = label
    np.save(path, labels)
    with pytest.raises(UserError, match=path.parent.name) as caught:
        digits(tmp_path)
    assert "\n" not in str(caught.value)


def test_statistics_are_of_the_training_images(prepared_dir: str) -> None:
    dataset = digits(prepared_dir)
    pixels = images(dataset, "train").astype(np.float64)
    statistics = dataset.statistics
    np.testing.assert_allclose(statistics.mean_image, pixels.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, pixels.std(axis=(0, 1, 2)), rtol=1e-6)
    # All of the variance lies along grey.
    np.testing.assert_allclose(statistics.pca_std, (3**0.5 * statistics.std[0], 0, 0), atol=1e-3)
    np.testing.assert_allclose(np.array(statistics.pca_vectors)[:, 0], 3**-0.5, rtol=1e-6)


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(tmp_path: Path) -> None:
    code = f"from tests.data.dataset_test import digits; print(len(digits({str(tmp_path)!r}).splits['train'].labels))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(2)
    ]
    assert [process.communicate()[0].split()[-1] for process in processes] == [b"1257"] * 2
    assert len(list(tmp_path.glob("*/info.json"))) == 1 and not list(tmp_path.glob("*.partial"))


def test_each_way_of_storing_has_a_folder_of_its_own(tmp_path: Path) -> None:
    changes = [{}, {"image_size": 9}, {"storage": "jpeg"}, {"storage": "auto"}, {"jpeg_quality": 80}]
    datasets = [digits(tmp_path, **change) for change in changes]
    assert len({dataset.directory for dataset in datasets}) == len(changes)
    assert digits(tmp_path, max_quarantined=0.5).directory == datasets[0].directory
    assert len({dataset.content for dataset in datasets}) == 1  # the same images in the same splits
    assert images(datasets[1], "test").shape == (360, 9, 9, 3)
    assert [records.is_compressed for records in (d.splits["test"] for d in datasets[:3])] == [False, False, True]
    off = images(datasets[2], "test").astype(float) - images(datasets[0], "test")
    assert 0 < np.abs(off).mean() < 5
    np.testing.assert_array_equal(images(datasets[3], "test"), images(datasets[0], "test"))


def test_a_prepared_copy_is_found_by_its_content_and_the_way_of_storing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, jpeg = digits(tmp_path), digits(tmp_path, storage="jpeg")
    cases: list[tuple[dict[str, Any], Dataset | None]] = [
        ({}, raw),
        ({"storage": "jpeg"}, jpeg),
        ({"storage": "auto"}, raw),
        ({"jpeg_quality": 80}, raw),
        ({"storage": "jpeg", "jpeg_quality": 80}, None),
        ({"image_size": 9}, None),
    ]
    for changes, expected in cases:
        found = find_prepared(str(tmp_path), raw.content, dataclasses.replace(STORING, **changes))
        assert (found and found.directory) == (expected and expected.directory), changes
    assert find_prepared(str(tmp_path), "other images", STORING) is None
    (raw.directory / "info.json").write_text("{")
    found = find_prepared(str(tmp_path), raw.content, dataclasses.replace(STORING, storage="auto"))
    assert found is not None and found.directory == jpeg.directory
    assert f"{raw.directory.name} is damaged: info.json" in capsys.readouterr().out.replace("\n", "")


def test_synthetic_classes_can_be_told_apart_and_splits_differ(tmp_path: Path) -> None:
    dataset = get_dataset("synthetic", "", str(tmp_path), 40, dataclasses.replace(STORING, image_size=32))
    assert sizes(dataset) == {"train": 40, "validation": 5, "test": 5} and dataset.num_classes == 10
    assert dataset.splits["train"].labels.tolist() == list(range(10)) * 4
    train, validation, test = (images(dataset, split).astype(float) for split in SPLITS)
    means = train.mean(axis=(1, 2)).reshape(4, 10, 3)
    assert means.std(axis=0).max() < 5 < np.ptp(means.mean(axis=0), axis=0).min()
    np.testing.assert_allclose(validation.mean(axis=(1, 2)), means[0, :5], atol=10)
    assert (train[0] != validation[0]).any() and (validation[0] != test[0]).any()
    assert sizes(get_dataset("synthetic", "", str(tmp_path), 8, STORING)) == {"train": 8, "validation": 1, "test": 1}


def grey_png(index: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((28, 28), index, np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


class Greys(tfds.core.GeneratorBasedBuilder):
    """A stand-in for a stock data set that someone has prepared: grey images, no validation split."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS: tuple[str, ...] = ("train", "test")
    TEST_LABEL: int | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        ranges = {"train": range(80), "validation": range(80, 90), "test": range(200, 205)}
        return {split: self._generate_examples(ranges[split], split) for split in self.SPLITS}

    def _generate_examples(self, shades: range, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for shade in shades:
            withheld = self.TEST_LABEL if split == "test" else None
            label = shade % 3 if withheld is None else withheld
            yield shade, {"image": io.BytesIO(grey_png(shade)), "label": label}


class Whole(Greys):
    SPLITS = SPLITS


class Secrets(Greys):
    """As in ILSVRC-2012, the labels of the test split are not public."""

    TEST_LABEL = -1


class Untaught(Greys):
    SPLITS = ("test",)


class Ages(Greys):
    """An image with a number that is no class."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


class Reviews(tfds.core.GeneratorBasedBuilder):
    """A class without an image."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield 0, {"text": "fine", "label": 1}


@pytest.fixture(autouse=True)
def no_other_tfds(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps TFDS from reading the user's own folder."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.getbasetemp() / "no_tfds"))


def build(builder: type[tfds.core.GeneratorBasedBuilder], folder: Path) -> Path:
    """As TFDS would, without TensorFlow."""
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def from_tfds(name: str, folder: Path, **changes: Any) -> Dataset:
    return get_dataset(f"tfds:{name}", "", str(folder), 0, dataclasses.replace(STORING, image_size=28, **changes))


def shades(dataset: Dataset, split: str) -> list[int]:
    pixels = images(dataset, split)
    assert (pixels == pixels[:, :1, :1, :1]).all()  # grey became RGB, and nothing was lost
    return pixels[:, 0, 0, 0].tolist()


def test_a_prepared_tfds_data_set_is_found_and_validation_is_taken_by_content(tmp_path: Path) -> None:
    dataset = from_tfds("greys", build(Greys, tmp_path))
    places = [int.from_bytes(hashlib.sha256(grey_png(shade)).digest()[:8], "big") / 2**64 for shade in range(80)]
    held_out = [shade for shade, place in enumerate(places) if place < 0.25]
    assert 10 < len(held_out) < 30
    assert sorted(shades(dataset, "validation")) == held_out
    assert sorted(shades(dataset, "train")) == sorted(set(range(80)) - set(held_out))
    assert sorted(shades(dataset, "test")) == list(range(200, 205))
    for split, records in dataset.splits.items():
        assert records.labels.tolist() == [shade % 3 for shade in shades(dataset, split)]
    assert dataset.class_names == ("0", "1", "2")


def test_a_validation_split_of_its_own_is_kept(tmp_path: Path) -> None:
    dataset = from_tfds("whole", build(Whole, tmp_path))
    assert sizes(dataset) == {"train": 80, "validation": 10, "test": 5}
    assert sorted(shades(dataset, "validation")) == list(range(80, 90))


def test_a_test_split_without_labels_is_left_out(tmp_path: Path) -> None:
    dataset = from_tfds("secrets", build(Secrets, tmp_path))
    assert set(dataset.splits) == {"train", "validation"} and sum(sizes(dataset).values()) == 80


def test_the_folder_of_tfds_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(build(Greys, tmp_path / "theirs")))
    dataset = from_tfds("greys:1.0.0", tmp_path / "ours")
    assert sum(sizes(dataset).values()) == 85 and dataset.directory.parent == tmp_path / "ours"


@without_tensorflow
@pytest.mark.parametrize("name", ["greys", "others"])
def test_a_copy_is_used_when_the_tfds_files_are_gone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TFDS knows "greys", since the class above registers it, and "others" from files alone."""
    (build(Greys, tmp_path) / "greys").rename(tmp_path / name)
    dataset = from_tfds(name, tmp_path)
    shutil.rmtree(tmp_path / name)
    capsys.readouterr()
    assert from_tfds(name, tmp_path).content == dataset.content
    assert "prepared copy" in capsys.readouterr().out.replace("\n", " ")


@without_tensorflow
@pytest.mark.parametrize("name", ["mnist", "cifar10:3.0.2", "imagenette", "coco"])
def test_without_tensorflow_it_says_what_to_install_or_where_files_go(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingSourceError) as caught:
        from_tfds(name, tmp_path)
    message = str(caught.value)
    assert f"'tfds:{name}' is not prepared in {tmp_path}" in message and "\n" not in message
    assert "install TensorFlow (python -m pip install -r requirements-tfds.txt)" in message
    assert f"put its ArrayRecord files in {tmp_path} or $TFDS_DATA_DIR" in message
    assert (REPOSITORY / "requirements-tfds.txt").is_file()


def test_a_folder_that_would_not_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.data\.dir='there': tfds:cifar10:3\.0\.2 is read by TFDS"):
        get_dataset("tfds:cifar10:3.0.2", "there", str(tmp_path), 0, STORING)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", r"config\.data\.name='digit' is unknown; there are: digits, folder, .*synthetic and tfds:NAME"),
        ("", r"config\.data\.name='' is unknown"),
        ("TFDS:mnist", r"'TFDS:mnist' is unknown"),
        ("tfds:", r"'tfds:' is neither prepared nor known"),
        ("tfds:no_such_set", r"'tfds:no_such_set' is neither prepared nor known to TFDS .*not found"),
        ("tfds:cifar10:9.9.9", r"'tfds:cifar10:9\.9\.9' is neither prepared nor known to TFDS .*only: 3\.0\.2"),
        ("tfds:a/b/c", r"'tfds:a/b/c' is neither prepared nor known"),
    ],
)
def test_what_is_not_there_is_named(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        get_dataset(name, "", str(tmp_path), 0, STORING)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("*/info.json"))


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (Reviews, r"'tfds:reviews' has no image with a class label, but text"),
        (Ages, r"'tfds:ages' has no image with a class label"),
        (Untaught, r"'tfds:untaught' has no training split, but test"),
    ],
)
def test_tfds_data_sets_that_cannot_be_learnt_are_refused(
    builder: type[tfds.core.GeneratorBasedBuilder], message: str, tmp_path: Path
) -> None:
    build(builder, tmp_path)
    with pytest.raises(UserError, match=message):
        from_tfds(builder.name, tmp_path)


@pytest.mark.slow
def test_tensorflow_is_never_loaded(prepared_dir: str) -> None:
    code = (
        "import sys, alexnet_jax.train\nfrom tests.data.dataset_test import digits, images\n"
        f"images(digits({prepared_dir!r}, storage='jpeg'), 'train')\nsys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@dataclasses.dataclass(frozen=True)
class Noise(Source):
    """Ten pictures of two classes, the last two to validate."""

    labels: tuple[int, ...] = (0, 1) * 5
    seeds: tuple[int, ...] = tuple(range(10))
    class_names: tuple[str, ...] = ("dark", "bright")

    def fingerprint(self) -> str:
        return repr(self)

    def chunks(self) -> list[Chunk]:
        return [Chunk(5, 5, range(5)), Chunk(5, 5, range(5, 10))]

    def read(self, chunk: Chunk) -> Iterator[Original]:
        for number in chunk.where:
            pixels = np.random.default_rng(self.seeds[number]).integers(0, 256, (8, 8, 3), np.uint8)
            yield Original("train" if number < 8 else "validation", self.labels[number], f"{number}.png", pixels)


def content(folder: Path, source: Noise, **changes: Any) -> str:
    prepare(source, dataclasses.replace(STORING, **changes), folder)
    return open_prepared(folder).content


def test_the_digest_of_the_content_tells_data_sets_apart(tmp_path: Path) -> None:
    same = [content(tmp_path / "first", Noise()), content(tmp_path / "again", Noise())]
    same += [content(tmp_path / "jpeg", Noise(), storage="jpeg"), content(tmp_path / "first", Noise())]
    others = [Noise(labels=(1, 1) + (0, 1) * 4), Noise(labels=(0, 1) * 4 + (1, 1))]
    others += [Noise(seeds=(*range(9), 10)), Noise(seeds=(10, *range(1, 10))), Noise(seeds=(1, 0, *range(2, 10)))]
    digests = [content(tmp_path / str(number), source) for number, source in enumerate(others)]
    assert len(set(same)) == 1 and len({*same, *digests}) == 1 + len(others)


def test_a_changed_source_is_prepared_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(tmp_path / "set", Noise())
    assert content(tmp_path / "set", Noise(seeds=(*range(9), 10))) != before
    assert "images have changed" in capsys.readouterr().out.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.lock"]
