"""Data sets by name."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from alexnet_jax.datasets import Dataset, get_dataset
from alexnet_jax.errors import UserError
from alexnet_jax.input_pipeline import decode_image
from tests.conftest import REPOSITORY


def digits(prepared_dir: str) -> Dataset:
    return get_dataset("digits", prepared_dir, 0.1, 1)


def test_digits_are_scikit_learns_each_in_one_split(prepared_dir: str) -> None:
    dataset = digits(prepared_dir)
    assert {split: len(records) for split, records in dataset.splits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    assert dataset.class_names == tuple("0123456789")
    ours = sorted(
        (decode_image(record["image"], 8)[:, :, 0].tobytes(), int(record["label"]))
        for records in dataset.splits.values()
        for record in (records[index] for index in range(len(records)))
    )
    source = load_digits()
    grey = np.round(source.images * (255 / 16)).astype(np.uint8)
    assert ours == sorted((image.tobytes(), int(label)) for image, label in zip(grey, source.target, strict=True))


def test_digits_are_prepared_once(prepared_dir: str) -> None:
    digits(prepared_dir)
    files = {path: path.stat().st_mtime_ns for path in Path(prepared_dir).rglob("*.array_record*")}
    assert files
    digits(prepared_dir)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_a_half_made_data_set_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    leftover = tmp_path / "digits" / "incomplete.XYZ_1.0.0"
    leftover.mkdir(parents=True)
    (leftover / "digits-train.array_record-00000-of-00001").write_bytes(b"cut")
    assert len(digits(str(tmp_path)).splits["train"]) == 1257


def test_two_processes_may_prepare_at_once(tmp_path: Path) -> None:
    code = (
        "from alexnet_jax.datasets import get_dataset\n"
        f"print(len(get_dataset('digits', {str(tmp_path)!r}, 0.1, 1).splits['train']))"
    )
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == [b"1257\n"] * 3


class Greys(tfds.core.GeneratorBasedBuilder):
    """A stand-in for a stock data set that someone has prepared: grey images, no validation split."""

    VERSION = tfds.core.Version("1.0.0")
    TEST_LABEL: int | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(20), "test": self._generate_examples(5, self.TEST_LABEL)}

    def _generate_examples(self, count: int, label: int | None = None) -> Any:
        import io

        from PIL import Image

        for index in range(count):
            encoded = io.BytesIO()
            Image.fromarray(np.full((28, 28), index * 10, np.uint8)).save(encoded, format="PNG")
            encoded.seek(0)
            yield index, {"image": encoded, "label": index % 3 if label is None else label}


def test_a_prepared_tfds_data_set_is_found_and_split(tmp_path: Path) -> None:
    Greys(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    dataset = get_dataset("tfds:greys", str(tmp_path), 0.25, 1)
    assert {split: len(records) for split, records in dataset.splits.items()} == {
        "train": 15,
        "validation": 5,
        "test": 5,
    }
    shades = [
        decode_image(dataset.splits[split][i]["image"], 28)[0, 0, 0]
        for split in ("train", "validation")
        for i in range(5)
    ]
    assert len(set(shades)) == 10  # the two splits share no image
    assert decode_image(dataset.splits["train"][0]["image"], 32).shape == (32, 32, 3)


class Secrets(Greys):
    """As ImageNet: the labels of the test split are not given."""

    TEST_LABEL = -1


def test_a_test_split_without_labels_is_left_out(tmp_path: Path) -> None:
    Secrets(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    assert set(get_dataset("tfds:secrets", str(tmp_path), 0.25, 1).splits) == {"train", "validation"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", r"config\.data\.name='digit' is unknown; there are: digits, synthetic and tfds:NAME"),
        ("tfds:mnist", r"tfds:mnist': not found as ArrayRecord in .* tfds build mnist"),
        ("tfds:no_such_set", r"tfds:no_such_set': not found"),
    ],
)
def test_what_is_not_there_is_named(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=message):
        get_dataset(name, str(tmp_path), 0.1, 1)


def test_tensorflow_is_never_loaded(prepared_dir: str) -> None:
    code = (
        "import sys, alexnet_jax.train\n"
        "from alexnet_jax.datasets import get_dataset\n"
        f"get_dataset('digits', {prepared_dir!r}, 0.1, 1).splits['train'][0]\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_synthetic_classes_can_be_told_apart_and_splits_differ() -> None:
    dataset = get_dataset("synthetic", "", 0.1, 40)
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert (len(train), len(validation)) == (40, 5)
    means = np.array([train[index]["image"].mean(axis=(0, 1)) for index in range(40)]).reshape(4, 10, 3)
    assert means.std(axis=0).max() < 5 < np.ptp(means.mean(axis=0), axis=0).min()
    assert not np.array_equal(train[0]["image"], validation[0]["image"])
