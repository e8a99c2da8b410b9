"""What suits a folder of images on this machine's CPU: the time that a run will take, and what would be faster."""

import contextlib
import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from alexnet_jax.experiment import Experiment
from alexnet_jax.system import console
from alexnet_jax.system.files import expand_home
from alexnet_jax.system.machine import compute_threads

MATRIX_SIDE, ROUNDS, EFFICIENCY = 512, 8, 0.75
"""Side of the matrices whose product is timed, repetitions, and what part of that speed a training step has: from 0.7
for `medium` to 0.95 for a full-size network, on two processors."""

SAMPLED_FILES = 25
"""Files whose size is looked at."""

LONG_SECONDS = 1200.0
"""A run that takes longer, and twice as long as what is proposed, is worth a proposal."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A way to train the preset `medium`.

    Attributes:
      from_side: the shorter side of images, in pixels, from which on it is proposed.
      choices: what is put on the command line.
      macs: multiply-accumulates of an image.
    """

    from_side: int
    choices: str
    macs: int


SIZES = (
    Size(64, "`:folder,medium`", 88_771_072),
    Size(0, "`:folder,medium` --config.data.image_size=72 --config.data.crop=64", 39_455_232),
)

IMAGES_IN_ALL, FEWEST_EPOCHS, MOST_EPOCHS = 100_000, 15, 150
"""Images that a run of `medium` is to see, if epochs allow: with few images more epochs, with many fewer."""


def propose(experiment: Experiment) -> str:
    """One line on the time of a run on a folder of images, and on what would be faster; "" if there is nothing to say.

    The time is that of training alone, estimated from multiply-accumulates and the speed of a matrix product.
    """
    config, splits = experiment.config, experiment.dataset.splits
    if config.data.name != "folder" or not experiment.devices.on_cpu or config.max_steps or config.init_from:
        return ""
    images, cores = len(splits["train"].labels), compute_threads()
    side = typical_side(Path(expand_home(config.data.dir)), experiment.dataset.directory)
    per_mac = 6 / (EFFICIENCY * cores * matrix_flops())  # forward, and twice as much backward
    macs = sum(layer.macs for layer in experiment.layers)
    seconds = macs * images * config.epochs * per_mac
    text = f"{sum(len(records.labels) for records in splits.values()):,} images"
    text += f" of about {side} x {side}" if side else ""
    text += f" on {cores} core{'s' if cores > 1 else ''}: {config.epochs:g} epochs of {config.model.preset} take about "
    text += console.duration(seconds)
    size = next(size for size in SIZES if (side or SIZES[0].from_side) >= size.from_side)
    epochs = suitable_epochs(images)
    proposed = size.macs * images * epochs * per_mac
    is_medium = config.model.preset == "medium"
    if not is_medium and seconds > max(LONG_SECONDS, 2 * proposed):
        text += f"; {size.choices} --config.epochs={epochs} about {console.duration(proposed)}"
    elif is_medium and not epochs / 2 < config.epochs < 2 * epochs:
        why = "is enough" if epochs < config.epochs else "suits so few images"
        text += f"; --config.epochs={epochs} {why}"
    return text


def suitable_epochs(images: int) -> int:
    """Epochs in which `medium` learns so many training images well."""
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(IMAGES_IN_ALL / images)))


def typical_side(folder: Path, prepared: Path) -> int:
    """The median of the shorter sides of some training images in a folder, JPEG or PNG; 0 if none can be read."""
    sides = []
    with contextlib.suppress(OSError, ValueError):
        names = json.loads((prepared / "train_files.json").read_text())
        for name in names[:: -(-len(names) // SAMPLED_FILES)]:
            with contextlib.suppress(Exception), Image.open(folder / name, formats=("JPEG", "PNG")) as picture:
                sides.append(min(picture.size))  # from the header alone
    return round(statistics.median(sides)) if sides else 0


def matrix_flops() -> float:
    """FLOP/s of a matrix product in float32 on one core, the best of a few."""
    matrix, times = np.ones((MATRIX_SIDE, MATRIX_SIDE), np.float32), []
    with threadpool_limits(1, "blas"):
        for _ in range(ROUNDS):
            began = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - began)
    return 2 * MATRIX_SIDE**3 / min(times)
