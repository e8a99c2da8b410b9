"""Small sets of images as folders: the preset `medium` beside the tutorial's CNN; prints a table.

    python -m benchmarks.small_sets --cifar10=CIFAR10.zip --photographs=PHOTOGRAPHS --fashion-mnist=FOLDER

CIFAR10.zip holds train/CLASS/*.jpg and test/CLASS/*.jpg, PHOTOGRAPHS (a folder or a tar) JPEGs, FOLDER the four .gz
files of Fashion-MNIST; sets whose flag is missing are left out. Both networks train and are tested on the same images;
validation images are those that the data set `folder` holds out, and nothing is chosen by test images. Of the tutorial's
CNN (benchmarks/tutorial_cnn.py) the learning rate with the lowest validation error counts, and of each of its runs the
epoch with the lowest. Runs that the results file already holds are not repeated.
"""

import argparse
import gzip
import io
import itertools
import json
import multiprocessing
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.photographs import read_photographs

SEEDS = (0, 1, 2)
LEARNING_RATES = (0.0003, 0.001, 0.003)
TUTORIAL_EPOCHS = 30
PATCHES, PATCH, CELL = 5, 64, 72
"""Patches of a photograph along each axis, their side in pixels, and the distance between their corners."""

Files = Iterator[tuple[str, bytes]]
"""Path, SPLIT/CLASS/NAME, and content of each image."""


def main() -> None:
    """Makes the folders, does the missing runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar10", "photographs", "fashion-mnist"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--workdir", type=Path, default=Path("runs/small_sets"), help="folder of images and runs")
    parser.add_argument("--output", type=Path, default=Path("results/small_sets.json"))
    options = parser.parse_args()
    results = json.loads(options.output.read_text())["results"] if options.output.exists() else {}
    for name in options.sets:
        flag, side, words, files = SETS[name]
        if (given := getattr(options, flag)) is None:
            continue
        folder = options.workdir / "images" / name
        if not folder.exists():
            _write_files(files(given), folder)
        result = results.setdefault(name, {"side": side, "words": list(words), "ours": [], "tutorial": []})
        for run in _missing_runs(options.workdir, name, folder, result):
            print(name, run, flush=True)
            _write_results(options.output, results)
    from benchmarks.tables import table

    print("\n".join(table(options.output)))


def cifar10(archive: Path, train: int = 500, classes: tuple[str, ...] = ()) -> Files:
    """The first training images of each class of CIFAR-10, and all test images."""
    with zipfile.ZipFile(archive) as images:
        names = sorted(name for name in images.namelist() if name.endswith(".jpg"))
        for folder, group in itertools.groupby(names, lambda name: name.rpartition("/")[0]):
            *_, split, label = folder.split("/")
            if not classes or label in classes:
                for name in itertools.islice(group, train if split == "train" else None):
                    yield f"{split}/{label}/{name.rpartition('/')[2]}", images.read(name)


def cats_and_dogs(archive: Path) -> Files:
    """The first 1,000 training images of CIFAR-10's cats and dogs, and all test images of theirs."""
    return cifar10(archive, 1000, ("cat", "dog"))


def patches(photographs: Path) -> Files:
    """Patches of photographs: each photograph is a class, and no pixel of it is in two patches.

    The central square of a photograph is scaled to 360 pixels and divided into 5 x 5 cells; of each the middle 64 x 64
    pixels are a patch, so that patches are 8 pixels apart. One cell of each row and column is for testing.
    """
    for number, content in enumerate(read_photographs(photographs)):
        picture = ImageOps.fit(Image.open(io.BytesIO(content)).convert("RGB"), (PATCHES * CELL,) * 2)
        for row, column in itertools.product(range(PATCHES), repeat=2):
            left, top = (place * CELL + (CELL - PATCH) // 2 for place in (column, row))
            split = "test" if (row + 2 * column) % PATCHES == 0 else "train"
            patch = picture.crop((left, top, left + PATCH, top + PATCH))
            yield f"{split}/photograph{number:03d}/{row}{column}.png", _png(patch)


def fashion_mnist(folder: Path) -> Files:
    """The first 200 training images of each class of Fashion-MNIST, and the first 200 test images."""
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels = np.frombuffer(gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
        pixels = np.frombuffer(gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
        for label in range(10):
            for index in np.flatnonzero(labels == label)[:200]:
                picture = Image.fromarray(pixels.reshape(-1, 28, 28)[index])
                yield f"{split}/{label}/{index:05d}.png", _png(picture)


SMALL = ("--config.data.image_size=72", "--config.data.crop=64")
SETS: dict[str, tuple[str, int, tuple[str, ...], Callable[[Path], Files]]] = {
    "cifar10_500": ("cifar10", 32, SMALL, cifar10),
    "cats_and_dogs": ("cifar10", 32, SMALL, cats_and_dogs),
    "patches": ("photographs", 64, SMALL, patches),
    "fashion_200": ("fashion_mnist", 28, SMALL, fashion_mnist),
}
"""By name: the flag of the originals, the side of the images, what our command is given, and what makes the files."""


def _missing_runs(workdir: Path, name: str, folder: Path, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Does the runs of a set that its results lack, and adds each."""
    for seed in SEEDS:
        if not any(run["seed"] == seed for run in result["ours"]):
            run = {"seed": seed, **_train_ours(workdir, name, folder, seed, result["words"])}
            result["ours"].append(run)
            yield run
    for seed, rate in itertools.product(SEEDS, LEARNING_RATES):
        about = {"seed": seed, "learning_rate": rate}
        if not any(about.items() <= run.items() for run in result["tutorial"]):
            run = {**about, **_in_child(_train_tutorial, workdir, folder, result["side"], rate, seed)}
            result["tutorial"].append(run)
            yield run


def _train_ours(workdir: Path, name: str, folder: Path, seed: int, words: list[str]) -> dict[str, Any]:
    """Runs the command of the documentation; the seconds are those of the whole command, preparation included."""
    from alexnet_jax.run.metrics_log import read_metrics

    run = workdir / "runs" / f"{name}-{seed}"
    began = time.perf_counter()
    command = [f"--config.data.dir={folder}", f"--config.data.prepared_dir={workdir / 'prepared'}"]
    command += [f"--config.seed={seed}", f"--workdir={run}", *words]
    program = [sys.executable, "main.py", "--config=configs/alexnet.py:folder,medium"]
    subprocess.run([*program, *command], check=True, stdout=subprocess.DEVNULL)
    seconds = round(time.perf_counter() - began)
    records = {record["kind"]: record for record in read_metrics(run)}
    errors = {
        "validation_error": records["epoch"]["validation_top1_error"],
        "test_error": records["test"]["top1_error"],
    }
    return {**errors, "seconds": seconds}


def _train_tutorial(workdir: Path, folder: Path, side: int, learning_rate: float, seed: int) -> dict[str, Any]:
    """Trains the tutorial's CNN on the images at their own size."""
    from alexnet_jax.data.storage import read_images
    from alexnet_jax.experiment import open_dataset
    from benchmarks import tutorial_cnn
    from configs import alexnet

    config = alexnet.get_config("folder,medium")
    config.data.update({"dir": str(folder), "prepared_dir": str(workdir / "prepared"), "image_size": side})
    dataset = open_dataset(config.data)
    images = {
        split: (read_images(records, np.arange(len(records.labels))), records.labels)
        for split, records in dataset.splits.items()
    }
    return tutorial_cnn.train(images, dataset.num_classes, learning_rate, seed, TUTORIAL_EPOCHS)


def _in_child(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Calls a function in a process of its own, so that PyTorch's memory and threads end with it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def _write_files(files: Files, folder: Path) -> None:
    """Writes all files, or none."""
    partial = folder.with_name(folder.name + ".partial")
    for name, content in files:
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    partial.rename(folder)


def _write_results(path: Path, results: dict[str, Any]) -> None:
    from alexnet_jax.experiments.results import write_results

    data = f"folders of images; tutorial: {TUTORIAL_EPOCHS} epochs, best of {', '.join(map(str, LEARNING_RATES))}"
    command = ["-m", "benchmarks.small_sets", "--cifar10=cifar10.zip", "--photographs=imagenet-samples-200.tar"]
    write_results(path, [*command, "--fashion-mnist=fashion-mnist"], data, SEEDS, results)


if __name__ == "__main__":
    main()
