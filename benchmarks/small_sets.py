"""Small sets of images as folders: the preset `medium` beside the tutorial's CNN; prints a table.

    python -m benchmarks.small_sets --cifar10=CIFAR10.zip --photographs=PHOTOGRAPHS

CIFAR10.zip holds train/CLASS/*.jpg and test/CLASS/*.jpg, PHOTOGRAPHS (a folder or a tar) JPEGs; sets whose flag is
missing are left out. Both networks train and are tested on the same images; validation images are those that the data
set `folder` holds out, and nothing is chosen by test images. The tutorial's CNN (benchmarks/tutorial_cnn.py) has the
learning rate with the lowest validation error of the first seed, and of each run the epoch with the lowest. Runs that
the results file already holds are not repeated.
"""

import argparse
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from alexnet_jax.data.storage import read_images
from alexnet_jax.experiment import open_dataset
from alexnet_jax.experiments.results import write_results
from alexnet_jax.run.metrics_log import read_metrics
from benchmarks.photographs import read_photographs
from benchmarks.tables import best_learning_rate, small_sets
from configs import alexnet

SEEDS = (0, 1, 2)
LEARNING_RATES = (0.0003, 0.001, 0.003)
TUTORIAL_EPOCHS = 30
PATCHES, PATCH, CELL = 4, 64, 72
"""Patches of a photograph along each axis, their side in pixels, and the distance between their corners."""

Files = Iterator[tuple[str, bytes]]
"""Path, SPLIT/CLASS/NAME, and content of each image."""


def main() -> None:
    """Makes the folders, does the missing runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--networks", nargs="+", choices=("ours", "tutorial"), default=["ours", "tutorial"])
    parser.add_argument("--workdir", type=Path, default=Path("runs/small_sets"), help="folder of images and runs")
    parser.add_argument("--output", type=Path, default=Path("results/small_sets.json"))
    options = parser.parse_args()
    results = json.loads(options.output.read_text())["results"] if options.output.exists() else {}
    for name in options.sets:
        small_set = SETS[name]
        originals = getattr(options, small_set.flag) if small_set.flag else Path()
        if originals is None:
            continue
        folder = options.workdir / "images" / name
        if not folder.exists():
            _write_files(small_set.files(originals), folder)
        about = {"what": small_set.what, "side": small_set.side, "words": list(small_set.words)}
        result = results.setdefault(name, {**about, "ours": [], "tutorial": []})
        runs = {"ours": _our_runs, "tutorial": _tutorial_runs}
        for network in options.networks:
            for run in runs[network](options.workdir, folder, result):
                result[network].append(run)
                print(name, network, run, flush=True)
                _write_results(options.output, results)
    print("\n".join(small_sets(results)))


def cifar10(archive: Path) -> Files:
    """The first 500 training images of each class of CIFAR-10, and all test images."""
    with zipfile.ZipFile(archive) as images:
        names = sorted(name for name in images.namelist() if name.endswith(".jpg"))
        for folder, group in itertools.groupby(names, lambda name: name.rpartition("/")[0]):
            *_, split, label = folder.split("/")
            for name in itertools.islice(group, 500 if split == "train" else None):
                yield f"{split}/{label}/{name.rpartition('/')[2]}", images.read(name)


def patches(photographs: Path) -> Files:
    """Patches of photographs: each photograph is a class, and no pixel of it is in two patches.

    The central square of a photograph is scaled to 288 pixels and divided into 4 x 4 cells; of each the middle 64 x 64
    pixels are a patch, so that patches are 8 pixels apart. One cell of each row and column is for testing.
    """
    for number, content in enumerate(read_photographs(photographs)):
        picture = ImageOps.fit(Image.open(io.BytesIO(content)).convert("RGB"), (PATCHES * CELL,) * 2)
        for row, column in itertools.product(range(PATCHES), repeat=2):
            left, top = (place * CELL + (CELL - PATCH) // 2 for place in (column, row))
            split = "test" if column == (1, 3, 0, 2)[row] else "train"
            patch = picture.crop((left, top, left + PATCH, top + PATCH))
            yield f"{split}/photograph{number:03d}/{row}{column}.png", _png(patch)


def digits(_: Path) -> Files:
    """The 1,797 scanned digits that scikit-learn ships, 8 x 8 pixels; every fourth is for testing."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    for number, (levels, label) in enumerate(zip(scans.images, scans.target, strict=True)):
        split = "train" if number % 4 else "test"
        yield f"{split}/{label}/{number:04d}.png", _png(Image.fromarray(np.uint8(levels * (255 / 16))))


@dataclasses.dataclass(frozen=True)
class SmallSet:
    """A set of images.

    Attributes:
      what: its description.
      flag: the flag that names the originals; "" if there is none.
      side: of the images that the tutorial's CNN is given, in pixels.
      words: what our command is given.
      files: makes its files from the originals.
    """

    what: str
    flag: str
    side: int
    words: tuple[str, ...]
    files: Callable[[Path], Files]


SMALL = ("--config.data.image_size=72", "--config.data.crop=64")
SETS = {
    "cifar10_500": SmallSet("CIFAR-10, 500 a class", "cifar10", 32, (*SMALL, "--config.epochs=18"), cifar10),
    "patches": SmallSet(
        "patches of 200 photographs, 12 each", "photographs", 64, (*SMALL, "--config.epochs=25"), patches
    ),
    "digits": SmallSet("1,797 scanned digits", "", 32, (*SMALL, "--config.epochs=20"), digits),
}


def _our_runs(workdir: Path, folder: Path, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Runs the command of the documentation; see `_in_child` for its seconds."""
    for seed in SEEDS:
        if any(run["seed"] == seed for run in result["ours"]):
            continue
        run = workdir / "runs" / f"{folder.name}-{seed}"
        command = [f"--config.data.dir={folder}", f"--config.data.prepared_dir={workdir / 'prepared'}"]
        command += [f"--config.seed={seed}", f"--workdir={run}", *result["words"]]
        shutil.rmtree(run, ignore_errors=True)  # begun by a call that was interrupted
        program = [sys.executable, "main.py", "--config=configs/alexnet.py:folder,medium"]
        used = _cpu_seconds()
        subprocess.run([*program, *command], check=True, stdout=subprocess.DEVNULL)
        seconds = round(_cpu_seconds() - used)
        records = {record["kind"]: record for record in read_metrics(run)}
        validation, test = records["epoch"]["validation_top1_error"], records["test"]["top1_error"]
        yield {"seed": seed, "validation_error": validation, "test_error": test, "seconds": seconds}


def _tutorial_runs(workdir: Path, folder: Path, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Trains the tutorial's CNN with each learning rate, and with the other seeds at the best of them."""
    runs: list[dict[str, Any]] = result["tutorial"]

    def missing(about: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not any(about.items() <= run.items() for run in runs):
            yield {**about, **_in_child(_train_tutorial, workdir, folder, result["side"], about)}

    for rate in LEARNING_RATES:
        yield from missing({"seed": SEEDS[0], "learning_rate": rate})
    for seed in SEEDS[1:]:
        yield from missing({"seed": seed, "learning_rate": best_learning_rate(runs)})


def _train_tutorial(workdir: Path, folder: Path, side: int, about: dict[str, Any]) -> dict[str, Any]:
    """Trains the tutorial's CNN on the images at about their own size."""
    from benchmarks import tutorial_cnn  # here, as it imports torch

    config = alexnet.get_config("folder,medium")
    config.data.update({"dir": str(folder), "prepared_dir": str(workdir / "prepared"), "image_size": side})
    dataset = open_dataset(config.data)
    images = {
        split: (read_images(records, np.arange(len(records.labels))), records.labels)
        for split, records in dataset.splits.items()
    }
    return tutorial_cnn.train(images, dataset.num_classes, epochs=TUTORIAL_EPOCHS, **about)


def _in_child(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Calls a function in a process of its own, and adds the seconds that it computed, of all cores together.

    They include everything from the start of the program on; unlike time on a clock, other programs do not change them.
    """
    used = _cpu_seconds()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(function, args)
        pool.close()
        pool.join()
    return {**result, "seconds": round(_cpu_seconds() - used)}


def _cpu_seconds() -> float:
    """Seconds that all processes started here have computed, once they have ended."""
    times = os.times()
    return times.children_user + times.children_system


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
    data = f"folders of images; tutorial: {TUTORIAL_EPOCHS} epochs, best of {', '.join(map(str, LEARNING_RATES))}"
    command = ["-m", "benchmarks.small_sets", "--cifar10=cifar10.zip", "--photographs=photographs.tar"]
    write_results(path, command, data, SEEDS, results)


if __name__ == "__main__":
    main()
