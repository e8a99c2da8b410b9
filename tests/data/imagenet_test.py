"""ILSVRC-2012 from small tar files of the official layout."""

import dataclasses
import io
import os
import random
import resource
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax.data import imagenet
from alexnet_jax.data.dataset import Dataset, get_dataset, open_prepared
from alexnet_jax.data.imagenet import ImageNet
from alexnet_jax.data.images import resize_image
from alexnet_jax.data.preparation import StorageOptions
from alexnet_jax.data.sources import Original
from alexnet_jax.errors import MissingSourceError, UserError
from tests.conftest import REPOSITORY

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
TEXTS = tfds.core.tfds_path("datasets/imagenet2012")
SYNSETS = (TEXTS / "labels.txt").read_text().split()
OFFICIAL = (TEXTS / "validation_labels.txt").read_text().split()
VALIDATION_IMAGES = 60
PRINTED, MISNAMED, THRICE = SYNSETS[9], SYNSETS[7], SYNSETS[500]  # classes with a CMYK JPEG, a PNG, three images
STORING = StorageOptions(16, "raw", 90, 0.1, 0.1, 0.0, 100.0)
Files = list[tuple[str, bytes]]


def colour(number: int) -> tuple[int, int, int]:
    """A colour for each number below 1,000, distinct even in a JPEG."""
    return number // 32 * 8, number % 32 * 8, 128


def number_of(pixels: np.ndarray) -> int:
    """The inverse of `colour`."""
    red, green, _ = (round(mean / 8) for mean in pixels.mean(axis=(0, 1)))
    return red * 32 + green


def picture(rgb: tuple[int, int, int], mode: str = "RGB", kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 18), rgb).convert(mode).save(stream, kind, quality=95)
    return stream.getvalue()


def write_tar(path: Path | io.BytesIO, files: Files) -> bytes:
    stream = path.open("wb") if isinstance(path, Path) else path
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    if isinstance(stream, io.BytesIO):
        return stream.getvalue()
    stream.close()
    return b""


def train_files(photographs: Mapping[str, bytes] | None = None) -> dict[str, Files]:
    """Each class's images; all but the photographs have the colour of their label."""
    files = {synset: [(f"{synset}_12.JPEG", picture(colour(label)))] for label, synset in enumerate(SYNSETS)}
    files[PRINTED].append((f"{PRINTED}_7.JPEG", picture((250, 20, 10), "CMYK")))
    files[MISNAMED].append((f"{MISNAMED}_2933.JPEG", picture((10, 240, 30), kind="PNG")))
    files[THRICE] += [(f"{THRICE}_{number}.JPEG", picture(colour(500))) for number in (3, 4)]
    files |= {synset: [(f"{synset}_1.JPEG", photo)] for synset, photo in (photographs or {}).items()}
    return files


def write_train(path: Path, files: Mapping[str, Files]) -> None:
    """Writes the training file, with classes and images in no order."""
    inner = [(f"{synset}.tar", write_tar(io.BytesIO(), images)) for synset, images in files.items()]
    write_tar(path, random.Random(0).sample(inner, len(inner)))


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "VALIDATION_IMAGES", VALIDATION_IMAGES)
    monkeypatch.setattr(imagenet, "TRAIN_IMAGES", len(SYNSETS) + 4)


@pytest.fixture(scope="session")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two tar files; each validation image has the colour of its number."""
    folder = tmp_path_factory.mktemp("imagenet")
    write_train(folder / TRAIN, train_files())
    numbers = random.Random(1).sample(range(1, VALIDATION_IMAGES + 1), VALIDATION_IMAGES)
    write_tar(folder / VALIDATION, [(f"ILSVRC2012_val_{n:08d}.JPEG", picture(colour(n))) for n in numbers])
    return folder


@pytest.fixture
def own_tars(tars: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tars, tmp_path / "tars"))


def open_imagenet(folder: Path, prepared: Path, storing: StorageOptions = STORING) -> Dataset:
    return get_dataset("imagenet2012", str(folder), str(prepared), 0, storing)


def originals(folder: Path) -> list[Original]:
    source = ImageNet(str(folder))
    return [original for chunk in source.chunks() for original in source.read(chunk)]


def images(dataset: Dataset, split: str) -> np.ndarray:
    records = dataset.splits[split]
    out = np.empty((len(records.labels), records.image_size, records.image_size, 3), np.uint8)
    records.read(range(len(out)), out)
    return out


def test_classes_are_the_sorted_synsets(tars: Path) -> None:
    names = ImageNet(str(tars)).class_names
    assert len(names) == 1000 and list(names) == sorted(set(names)) == SYNSETS
    known = {0: "n01440764", 1: "n01443537", 151: "n02085620", 281: "n02123045", 999: "n15075141"}
    assert {label: names[label] for label in known} == known


def test_the_official_list_is_what_imagenet_published() -> None:
    first = "n01751748 n09193705 n02105855 n04263257 n03125729 n01735189 n02346627 n02776631 n03794056 n02328150"
    assert OFFICIAL[:10] == first.split()
    assert Counter(OFFICIAL) == dict.fromkeys(SYNSETS, 50)


def test_validation_labels_follow_the_numbers_in_the_names(tars: Path) -> None:
    validation = [original for original in originals(tars) if original.split == "validation"]
    numbers = [int(original.file[-13:-5]) for original in validation]
    assert sorted(numbers) == list(range(1, VALIDATION_IMAGES + 1)) != numbers
    for number, original in zip(numbers, validation, strict=True):
        assert SYNSETS[original.label] == OFFICIAL[number - 1]
        assert isinstance(original.content, bytes)
        assert number_of(resize_image(original.content, 16, 1e6).pixels) == number


def test_training_labels_follow_the_names_of_the_inner_tars(tars: Path) -> None:
    train = [original for original in originals(tars) if original.split == "train"]
    expected = {name: content for files in train_files().values() for name, content in files}
    assert {original.file.rsplit("/", 1)[-1]: original.content for original in train} == expected
    assert len(train) == len(SYNSETS) + 4
    assert all(Path(original.file).name.startswith(SYNSETS[original.label]) for original in train)


def test_chunks_are_the_same_each_time_and_can_be_read_in_any_order(tars: Path) -> None:
    source = ImageNet(str(tars))
    chunks = source.chunks()
    assert [chunk[:2] for chunk in chunks] == [chunk[:2] for chunk in ImageNet(str(tars)).chunks()]
    backwards = [[original.file for original in source.read(chunk)] for chunk in reversed(chunks)]
    assert [file for files in reversed(backwards) for file in files] == [original.file for original in originals(tars)]


def test_the_fingerprint_changes_with_either_tar(own_tars: Path) -> None:
    before = ImageNet(str(own_tars)).fingerprint()
    assert ImageNet(str(own_tars)).fingerprint() == before
    for name in (TRAIN, VALIDATION):
        os.utime(own_tars / name, (1, 1))
        after = ImageNet(str(own_tars)).fingerprint()
        assert after != before
        before = after


def test_imagenet_is_prepared_from_the_tars_where_they_lie_and_works_without_them(
    own_tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_imagenet(own_tars, tmp_path / "data")
    assert set(dataset.splits) == {"train", "validation"} and dataset.class_names == tuple(SYNSETS)
    pixels, labels = images(dataset, "train"), dataset.splits["train"].labels
    several = {PRINTED: 2, MISNAMED: 2, THRICE: 3}
    assert np.bincount(labels).tolist() == [several.get(synset, 1) for synset in SYNSETS]
    numbers = np.array([number_of(image) for image in pixels])
    assert (numbers != labels).sum() == 2
    odd = {SYNSETS[label]: pixels[i].mean((0, 1)) for i, label in enumerate(labels) if numbers[i] != label}
    np.testing.assert_allclose(odd[PRINTED], (250, 20, 10), atol=8)
    np.testing.assert_allclose(odd[MISNAMED], (10, 240, 30), atol=1)
    shown = [number_of(image) for image in images(dataset, "validation")]
    assert sorted(shown) == list(range(1, VALIDATION_IMAGES + 1))
    assert [SYNSETS[label] for label in dataset.splits["validation"].labels] == [OFFICIAL[n - 1] for n in shown]

    assert sorted(path.name for path in own_tars.iterdir()) == [TRAIN, VALIDATION]
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.name != "info.json"]
    assert not [path for path in files if path.suffix not in (".npy", ".json", ".tsv", ".lock")]
    assert sum(path.stat().st_size for path in files if path.name.startswith(("train-", "validation-"))) < 2e6

    capsys.readouterr()
    for name in (TRAIN, VALIDATION):
        (own_tars / name).unlink()
    again = open_imagenet(own_tars, tmp_path / "data")
    assert again.directory == dataset.directory and again.content == dataset.content
    warning = capsys.readouterr().out.replace("\n", "")
    assert "warning" in warning and str(own_tars / TRAIN) in warning and "prepared copy" in warning
    np.testing.assert_array_equal(images(again, "train"), pixels)


@pytest.mark.parametrize("storage", ["jpeg", "raw"])
def test_reading_imagenet_takes_fewer_open_files_than_systems_allow(storage: str, tars: Path, tmp_path: Path) -> None:
    prepared = open_imagenet(tars, tmp_path, dataclasses.replace(STORING, storage=storage))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))  # the usual limit of 1,024 serves a run as well
    try:
        labels = [number_of(image) for image in images(open_prepared(prepared.directory), "train")]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(labels) == len(SYNSETS) + 4


def test_photographs_end_up_with_their_synsets(tmp_path: Path, tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = REPOSITORY.parent / "shared" / "data" / "imagenet-samples-200.tar"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    photographs = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if file := tar.extractfile(member):
                photographs[Path(member.name).name[:9]] = file.read()
    assert len(photographs) == 200
    files = train_files(photographs)
    monkeypatch.setattr(imagenet, "TRAIN_IMAGES", sum(map(len, files.values())))
    write_train(tmp_path / TRAIN, files)
    shutil.copy(tars / VALIDATION, tmp_path)
    dataset = open_imagenet(tmp_path, tmp_path / "data")
    synsets = {resize_image(photo, 16, 1e8).pixels.tobytes(): synset for synset, photo in photographs.items()}
    labelled = zip(images(dataset, "train"), dataset.splits["train"].labels, strict=True)
    found = {synsets[image.tobytes()]: SYNSETS[label] for image, label in labelled if image.tobytes() in synsets}
    assert found == {synset: synset for synset in photographs}


def inner(path: Path, synset: str) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return tar.getmember(f"{synset}.tar")


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def cut_inside(path: Path, number: int) -> None:
    """Cuts a tar file in the middle of a member's content."""
    with tarfile.open(path) as tar:
        member = tar.getmembers()[number]
    os.truncate(path, member.offset_data + member.size // 2)


def cut_between(path: Path, number: int) -> None:
    """Cuts a tar file before the header of a member."""
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmembers()[number].offset)


def lose(path: Path, number: int) -> None:
    """Rewrites a tar without a member."""
    files = files_of(path)
    write_tar(path, files[:number] + files[number + 1 :])


def repeat(path: Path, number: int, name: str = "") -> None:
    """Rewrites a tar with a member once more, by another name if one is given."""
    files = files_of(path)
    write_tar(path, [*files, (name or files[number][0], files[number][1])])


def claiming(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a file that claims a size, or, as `kind`, is sparse or describes another file."""
    header = bytearray(tarfile.TarInfo("n01440764_1.JPEG").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = kind
    for field in (slice(124, 136), slice(483, 495)):  # size, and that of a sparse file without its holes
        header[field] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


CLAIMS = {
    "claims terabytes": claiming(2**41),
    "claims exabytes": claiming(2**62),
    "claims less than nothing": claiming(-512),
    "is sparse": claiming(2**41, tarfile.GNUTYPE_SPARSE),
    "has a name of terabytes": claiming(2**41, tarfile.GNUTYPE_LONGNAME),
    "has pax headers of terabytes": claiming(2**41, tarfile.XHDTYPE),
    "is described again and again": claiming(0, tarfile.GNUTYPE_LONGNAME) * 3000,
}


@pytest.mark.parametrize("case", CLAIMS)
def test_what_a_header_claims_is_not_believed(case: str, tmp_path: Path) -> None:
    """In either tar file, and in the tar of a class."""
    (tmp_path / TRAIN).write_bytes(CLAIMS[case] + bytes(10_240))
    (tmp_path / VALIDATION).write_bytes(CLAIMS[case] + bytes(10_240))
    source = ImageNet(str(tmp_path))
    for read in (
        source.chunks,
        source._validation_chunks,
        lambda: list(source._read_class(SYNSETS[0], 0, len(CLAIMS[case]) + 10_240)),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_huge_validation_image_is_not_read(own_tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "_MOST_READ", 512)  # at least, to read headers
    with pytest.raises(UserError, match=rf"{VALIDATION}.*_val_\d{{8}}\.JPEG claims \d+ bytes"):
        ImageNet(str(own_tars)).chunks()


def files_of(path: Path) -> Files:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


BEFOREHAND: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder missing": (lambda folder: shutil.rmtree(folder), TRAIN),
    "train missing": (lambda folder: (folder / TRAIN).unlink(), TRAIN),
    "validation missing": (lambda folder: (folder / VALIDATION).unlink(), VALIDATION),
    "train is text": (lambda folder: (folder / TRAIN).write_text("no tar" * 999), TRAIN),
    "validation is text": (lambda folder: (folder / VALIDATION).write_text("no tar" * 999), VALIDATION),
    "train is empty": (lambda folder: os.truncate(folder / TRAIN, 0), TRAIN),
    "validation is zeros": (lambda folder: (folder / VALIDATION).write_bytes(bytes(20_480)), VALIDATION),
    "train cut in a class": (lambda folder: cut_inside(folder / TRAIN, 500), TRAIN),
    "train cut in the last class": (lambda folder: cut_inside(folder / TRAIN, 999), TRAIN),
    "train cut between classes": (lambda folder: cut_between(folder / TRAIN, 500), TRAIN),
    "train cut in a header": (
        lambda folder: os.truncate(folder / TRAIN, inner(folder / TRAIN, THRICE).offset + 99),
        TRAIN,
    ),
    "validation cut in an image": (lambda folder: cut_inside(folder / VALIDATION, 30), VALIDATION),
    "validation cut in the last image": (lambda folder: cut_inside(folder / VALIDATION, -1), VALIDATION),
    "validation cut between images": (lambda folder: cut_between(folder / VALIDATION, 30), VALIDATION),
    "train is validation": (lambda folder: shutil.copy(folder / VALIDATION, folder / TRAIN), TRAIN),
    "validation is train": (lambda folder: shutil.copy(folder / TRAIN, folder / VALIDATION), VALIDATION),
    "something else": (lambda folder: write_tar(folder / TRAIN, [("README", b"text")]), TRAIN),
    "999 classes": (lambda folder: lose(folder / TRAIN, 700), TRAIN),
    "a class twice": (lambda folder: repeat(folder / TRAIN, 700), TRAIN),
    "an unknown class": (lambda folder: repeat(folder / TRAIN, 700, "n99999999.tar"), TRAIN),
    "a number lacks": (lambda folder: lose(folder / VALIDATION, 7), VALIDATION),
    "a header is garbage": (lambda f: overwrite(f / TRAIN, inner(f / TRAIN, THRICE).offset, b"\xa5" * 512), TRAIN),
}


@pytest.mark.parametrize("case", BEFOREHAND)
def test_tars_that_are_not_whole_are_named_before_anything_is_prepared(
    case: str, own_tars: Path, tmp_path: Path
) -> None:
    damage, name = BEFOREHAND[case]
    damage(own_tars)
    with pytest.raises(UserError) as caught:
        open_imagenet(own_tars, tmp_path / "data")
    message = str(caught.value)
    assert str(own_tars / name) in message and "\n" not in message and len(message) < 400
    assert isinstance(caught.value, MissingSourceError) == ("missing" in case)
    assert not list((tmp_path / "data").glob("*/*"))


class Wound(NamedTuple):
    """Bytes that overwrite a class's tar: which, and where it begins, in its blocks of 512 bytes."""

    content: bytes
    block: int


# Block 0 is the first image's header, its content is of two blocks.
WOUNDS = {
    "all garbage": Wound(b"\xa5" * 10_240, 0),
    "all zeros": Wound(bytes(10_240), 0),  # as a download that went wrong leaves it
    "text": Wound(b"no tar" * 1_700, 0),
    "second header garbage": Wound(b"\xa5" * 512, 3),
    "second header zeros": Wound(bytes(512), 3),
}


def wound(train: Path, case: str) -> None:
    member = inner(train, THRICE)
    assert len(picture(colour(500))) in range(513, 1025) and member.size == 10_240
    overwrite(train, member.offset_data + 512 * WOUNDS[case].block, WOUNDS[case].content[: member.size])


@pytest.mark.parametrize("case", WOUNDS)
def test_a_damaged_class_is_named(case: str, own_tars: Path) -> None:
    wound(own_tars / TRAIN, case)
    with pytest.raises(UserError) as caught:
        originals(own_tars)
    message = str(caught.value)
    assert str(own_tars / TRAIN) in message and THRICE in message and "\n" not in message


def test_a_damaged_class_stops_the_preparation(own_tars: Path, tmp_path: Path) -> None:
    wound(own_tars / TRAIN, "all garbage")
    with pytest.raises(UserError, match=THRICE):
        open_imagenet(own_tars, tmp_path / "data")
    assert not list((tmp_path / "data").glob("*/info.json"))


def test_without_a_folder_it_says_which_key_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--config\.data\.dir=DIR with {TRAIN} and {VALIDATION}"):
        get_dataset("imagenet2012", "", str(tmp_path), 0, STORING)
