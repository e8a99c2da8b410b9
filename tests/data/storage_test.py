"""Prepared images on disk: all formats read the same, TFDS reads them too, damage is detected."""

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax.data import preparation
from alexnet_jax.data.dataset import open_prepared
from alexnet_jax.data.images import PreparedImage, ResizedImage, decode_jpeg, encode_jpeg
from alexnet_jax.data.storage import InMemoryRecords, JpegRecords, JpegWriter, PixelRecords, PixelWriter, Records
from alexnet_jax.errors import UserError
from tests.helpers.pictures import SIZE, contents, images_of, make_folder, noise, prepared, save

COUNTS = (5, 1, 7, 3)
LABELS = np.arange(sum(COUNTS), dtype=np.int32)


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return [encode_jpeg(noise(seed, SIZE, SIZE), 90) for seed in range(sum(COUNTS))]


@pytest.fixture(scope="module")
def pixels(jpegs: list[bytes]) -> np.ndarray:
    """The pixels of the JPEG images."""
    images = np.empty((len(jpegs), SIZE, SIZE, 3), np.uint8)
    for jpeg, image in zip(jpegs, images, strict=True):
        decode_jpeg(jpeg, image)
    return images


def in_memory(folder: Path, jpegs: list[bytes], pixels: np.ndarray) -> Records:
    return InMemoryRecords(pixels.copy(), LABELS)


def image_of(pixels: np.ndarray, jpeg: bytes | None = None, label: int = 0) -> PreparedImage:
    return PreparedImage("train", label, f"{label}", bytes(32), ResizedImage(pixels, jpeg=jpeg))


def as_pixels(folder: Path, jpegs: list[bytes], pixels: np.ndarray) -> Records:
    paths, images = [folder / f"{number}.npy" for number in range(len(COUNTS))], iter(pixels)
    for path, count in zip(paths, COUNTS, strict=True):
        writer = PixelWriter(path, SIZE)
        for _ in range(count):
            writer.write(image_of(next(images)))
        writer.close()
    return PixelRecords(list(zip(paths, COUNTS, strict=True)), LABELS, SIZE)


def as_jpegs(folder: Path, jpegs: list[bytes], pixels: np.ndarray) -> Records:
    paths, images = [folder / f"{number}.array_record" for number in range(len(COUNTS))], iter(jpegs)
    for path, count in zip(paths, COUNTS, strict=True):
        writer = JpegWriter(path, quality=90)
        for index in range(count):
            writer.write(image_of(np.zeros(0, np.uint8), next(images), index))
        writer.close()
    return JpegRecords(list(zip(paths, COUNTS, strict=True)), LABELS, SIZE)


Make = Callable[[Path, list[bytes], np.ndarray], Records]
every_kind = pytest.mark.parametrize("make", [in_memory, as_pixels, as_jpegs])


@every_kind
@pytest.mark.parametrize(
    "indices",
    [range(16), [15, 0, 7, 7, 7, 4, 5, 6, 12, 13, 0], np.array([3], np.int64), np.arange(16)[::-3], []],
    ids=["all", "repeated", "one", "backwards", "none"],
)
def test_images_are_read_in_any_order(
    tmp_path: Path, jpegs: list[bytes], pixels: np.ndarray, make: Make, indices: list[int]
) -> None:
    records = make(tmp_path, jpegs, pixels)
    out = np.full((len(indices), SIZE, SIZE, 3), 77, np.uint8)
    records.read(indices, out)
    np.testing.assert_array_equal(out, pixels[np.array(indices, np.int64)])
    assert records.image_size == SIZE and len(records.labels) == 16
    assert records.is_compressed is (make is as_jpegs)


@every_kind
def test_many_threads_may_read_at_once(tmp_path: Path, jpegs: list[bytes], pixels: np.ndarray, make: Make) -> None:
    records = make(tmp_path, jpegs, pixels)

    def read(seed: int) -> bool:
        indices = np.random.default_rng(seed).integers(0, 16, 40)
        out = np.empty((40, SIZE, SIZE, 3), np.uint8)
        records.read(indices, out)
        return np.array_equal(out, pixels[indices])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(64)))


@every_kind
def test_a_part_of_a_larger_array_can_be_filled(
    tmp_path: Path, jpegs: list[bytes], pixels: np.ndarray, make: Make
) -> None:
    batch = np.zeros((4, SIZE, SIZE, 3), np.uint8)
    make(tmp_path, jpegs, pixels).read([9, 2], batch[1:3])
    np.testing.assert_array_equal(batch[1:3], pixels[[9, 2]])
    assert not batch[0].any() and not batch[3].any()


@pytest.mark.parametrize("count", [0, 1, 11, 1234])
def test_numpy_reads_what_pixel_writer_writes(tmp_path: Path, count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 3, 3), dtype=np.uint8)
    writer = PixelWriter(tmp_path / "x.npy", 3)
    for image in images:
        writer.write(image_of(image))
    writer.close()
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), images)


def test_the_jpeg_writer_stores_bytes_as_they_are(tmp_path: Path, jpegs: list[bytes], pixels: np.ndarray) -> None:
    records = as_jpegs(tmp_path, jpegs, pixels)
    assert isinstance(records, JpegRecords)
    assert [records.read_jpeg(index) for index in range(len(jpegs))] == jpegs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chunks of images, so two shards of each split; some are JPEG files that are stored unchanged."""
    root = make_folder(tmp_path_factory.mktemp("shards") / "source", {"train/a cat": 20, "train/dog": 14})
    make_folder(root, {"val/a cat": 3, "val/dog": 4, "test/dog": 2}, seed=50)
    save(root / "train/dog/exact.jpg", noise(900, SIZE, SIZE), quality=60)
    save(root / "train/dog/grey.jpg", noise(901, SIZE, SIZE)[:, :, 0], quality=60)
    save(root / "train/dog/progressive.jpg", noise(902, SIZE, SIZE), quality=60, progressive=True, subsampling=0)
    save(root / "train/dog/wide.jpg", noise(903, SIZE, SIZE + 1), quality=60)
    return root


def position_of(directory: Path, file: str) -> int:
    return json.loads((directory / "train_files.json").read_text()).index(file)


@pytest.mark.parametrize("name", ["exact.jpg", "grey.jpg", "progressive.jpg"])
def test_a_jpeg_of_the_right_size_is_stored_unchanged(source: Path, tmp_path: Path, name: str) -> None:
    dataset = prepared(source, tmp_path, storage="jpeg")
    records, index = dataset.splits["train"], position_of(dataset.directory, f"train/dog/{name}")
    assert isinstance(records, JpegRecords)
    original = (source / "train/dog" / name).read_bytes()
    assert records.read_jpeg(index) == original
    theirs = np.asarray(Image.open(io.BytesIO(original)).convert("RGB"), np.int16)
    assert np.abs(images_of(records)[index] - theirs).max() <= 3  # decoders differ in rounding


def test_a_jpeg_of_another_size_is_stored_anew(source: Path, tmp_path: Path) -> None:
    dataset = prepared(source, tmp_path, storage="jpeg")
    records = dataset.splits["train"]
    assert isinstance(records, JpegRecords)
    jpeg = records.read_jpeg(position_of(dataset.directory, "train/dog/wide.jpg"))
    assert jpeg != (source / "train/dog/wide.jpg").read_bytes()
    assert Image.open(io.BytesIO(jpeg)).size == (SIZE, SIZE)


def test_raw_and_jpeg_hold_the_same_images(source: Path, tmp_path: Path) -> None:
    raw = prepared(source, tmp_path, storage="raw")
    jpeg = prepared(source, tmp_path, storage="jpeg", jpeg_quality=100)
    assert raw.content == jpeg.content and raw.class_names == jpeg.class_names
    assert list(raw.splits) == list(jpeg.splits) == ["train", "validation", "test"]
    for split in raw.splits:
        np.testing.assert_array_equal(raw.splits[split].labels, jpeg.splits[split].labels)
    # Noise loses much of its colour in a JPEG, a smooth image would not.
    difference = np.abs(images_of(raw.splits["train"]).astype(int) - images_of(jpeg.splits["train"]))
    assert difference.mean() < 60


@pytest.mark.parametrize("place", ["plain", "with spaces [0:1] {x} *", "Größe"])
def test_tfds_opens_a_jpeg_folder(source: Path, tmp_path: Path, place: str) -> None:
    dataset = prepared(source, tmp_path / place, storage="jpeg")
    builder = tfds.builder_from_directory(dataset.directory)
    assert builder.info.features["label"].names == ["a_cat", "dog"]
    for split, records in dataset.splits.items():
        ours, theirs = images_of(records), builder.as_data_source(split=split)
        files = json.loads((dataset.directory / f"{split}_files.json").read_text())
        assert len(theirs) == len(ours) == builder.info.splits[split].num_examples
        for image, label, file, record in zip(ours, records.labels, files, theirs, strict=True):
            assert (record["label"], record["file_name"].decode()) == (label, file)
            assert np.abs(image - record["image"].astype(np.int16)).max() <= 3


def test_no_file_mentions_the_folder_it_was_made_in(source: Path, tmp_path: Path) -> None:
    dataset = prepared(source, tmp_path, storage="jpeg")
    assert not [name for name, data in contents(dataset.directory).items() if b".partial" in data]
    moved = dataset.directory.rename(tmp_path / "moved")
    np.testing.assert_array_equal(images_of(open_prepared(moved).splits["test"])[1].shape, (SIZE, SIZE, 3))
    assert len(tfds.builder_from_directory(moved).as_data_source(split="test")) == 2


@pytest.mark.parametrize(("limit", "storage"), [(preparation.RAW_LIMIT, "raw"), (1000.0, "jpeg")])
def test_auto_stores_pixels_of_small_sets_and_jpegs_of_large_ones(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, storage: str
) -> None:
    monkeypatch.setattr(preparation, "RAW_LIMIT", limit)
    dataset = prepared(source, tmp_path, storage="auto")
    assert json.loads((dataset.directory / "info.json").read_text())["storage"] == storage
    assert dataset.splits["train"].is_compressed is (storage == "jpeg")


def read_all(directory: Path) -> None:
    for records in open_prepared(directory).splits.values():
        images_of(records)


def shard_of(directory: Path, storage: str) -> Path:
    return sorted(directory.glob("train-*.npy" if storage == "raw" else "*train.array_record-*"))[-1]


Damage = Callable[[Path, str], object]
DAMAGES: dict[str, Damage] = {
    "shard cut by one byte": lambda d, s: cut(shard_of(d, s), 1),
    "shard cut in half": lambda d, s: cut(shard_of(d, s), shard_of(d, s).stat().st_size // 2),
    "shard cut to its beginning": lambda d, s: cut(shard_of(d, s), shard_of(d, s).stat().st_size - 20),
    "empty shard": lambda d, s: shard_of(d, s).write_bytes(b""),
    "garbled shard": lambda d, s: shard_of(d, s).write_bytes(b"?" * shard_of(d, s).stat().st_size),
    "missing shard": lambda d, s: shard_of(d, s).unlink(),
    "info.json that is no JSON": lambda d, s: (d / "info.json").write_text("{"),
    "empty info.json": lambda d, s: (d / "info.json").write_text(""),
    "info.json of zeros": lambda d, s: (d / "info.json").write_bytes(bytes(500)),
    "info.json that is no text": lambda d, s: (d / "info.json").write_bytes(b"\xff\xfe{"),
    "info.json of another kind": lambda d, s: (d / "info.json").write_text("[]"),
    "info.json without keys": lambda d, s: (d / "info.json").write_text('{"source": "x"}'),
    "missing labels": lambda d, s: (d / "validation_labels.npy").unlink(),
    "cut labels": lambda d, s: cut(d / "train_labels.npy", 4),
    "labels of another split": lambda d, s: (d / "train_labels.npy").write_bytes(
        (d / "validation_labels.npy").read_bytes()
    ),
    "empty labels": lambda d, s: (d / "train_labels.npy").write_bytes(b""),
    "missing mean image": lambda d, s: (d / "mean_image.npy").unlink(),
    "garbled mean image": lambda d, s: (d / "mean_image.npy").write_bytes(b"?" * 100),
}


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line(source: Path, tmp_path: Path, storage: str, damage: str) -> None:
    directory = prepared(source, tmp_path, storage=storage).directory
    DAMAGES[damage](directory, storage)
    with pytest.raises(UserError) as caught:
        read_all(directory)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


@pytest.mark.parametrize("content", ["{", "", "[]", "{}", "\0" * 500])
def test_a_garbled_info_is_told_in_one_line_by_the_training_command_too(
    source: Path, tmp_path: Path, content: str
) -> None:
    directory = prepared(source, tmp_path).directory
    (directory / "info.json").write_text(content)
    with pytest.raises(UserError) as caught:
        prepared(source, tmp_path)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


def test_other_folders_are_no_data_sets(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no prepared data set"):
            open_prepared(folder)
