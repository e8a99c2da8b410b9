"""The cost of a training step and the speed of the devices: FLOPs, bytes, and timings on random images."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.data.storage import InMemoryRecords, Records
from alexnet_jax.experiment import Experiment
from alexnet_jax.models.summary import LayerSummary
from alexnet_jax.parallel.devices import Devices

IMAGENET_CLASSES, IMAGENET_IMAGES = 1000, 1_281_167
"""Classes and training images of ILSVRC2012."""

MATRIX_SIDE, MATRIX_SIDE_ON_CPU = 8192, 2048
"""Side of the matrices timed: their product takes more than a millisecond, but not seconds."""

VECTOR_LENGTH = 2**26
"""Length of the vectors timed, too long for any processor cache."""

REPEATS, ROUNDS = 5, 4
"""Operations timed together, and rounds of them: the first compiles, the fastest counts."""


class RandomTraining:
    """The training step of an experiment on one batch of random images that is already on the devices.

    Attributes:
      experiment: the model, devices and optimizer.
      state, batch: the arguments of the step, on the devices; the step donates the state.
    """

    def __init__(self, config: ConfigDict):
        """Creates state and batch; without `config.model.num_classes` there are ImageNet's 1,000 classes."""
        config = config.copy_and_resolve_references()
        config.data.cache = "disk"  # pass the images of each batch to the step
        classes = IMAGENET_CLASSES if config.model.num_classes is None else config.model.num_classes
        self.experiment = Experiment.create(config, _random_dataset(config, classes))
        rates = self.experiment.make_learning_rates().at(0.0)
        self.state = self.experiment.with_learning_rates(self.experiment.init_state(), rates.by_parameter)
        batches = self.experiment.source.batches(0, batch_size=config.batch_size, seed=0, rows=slice(None))
        self.batch = self.experiment.devices.shard(next(batches))
        batches.close()

    def run(self, steps: int) -> list[float]:
        """Runs training steps and returns the seconds of each, once all results are ready."""
        ends, pending = [time.perf_counter()], None
        for _ in range(steps):
            self.state, sums = self.experiment.train_step(self.state, self.batch)
            if pending is not None:
                jax.device_get(pending)  # one step late, as in the training loop
                ends.append(time.perf_counter())
            pending = sums
        jax.block_until_ready((self.state, pending))
        ends.append(time.perf_counter())
        return [end - begin for begin, end in itertools.pairwise(ends)]


def training_flops(layers: Sequence[LayerSummary]) -> int:
    """Floating-point operations per image of a training step: 6 x MACs of all layers - 2 x MACs of the first.

    A multiply-accumulate (MAC) is two operations. Each MAC of the forward pass occurs again in the gradient of the
    kernel and in that of the layer's input, which the first layer does not need. All other operations are ignored.
    """
    macs = [layer.macs for layer in layers if layer.macs]
    return 6 * sum(macs) - 2 * macs[0]


def optimizer_bytes(layers: Sequence[LayerSummary]) -> int:
    """The fewest bytes that SGD with momentum moves per step, in float32.

    It reads parameters, gradients and velocity, and writes parameters and velocity: five arrays.
    """
    return 5 * 4 * sum(layer.parameters for layer in layers)


def matmul_flops(devices: Devices, dtype: Any) -> float:
    """Measures the FLOP/s of large matrix products in JAX's default precision, all devices together."""
    side = MATRIX_SIDE_ON_CPU if devices.on_cpu else MATRIX_SIDE
    return 2 * side**3 * len(devices.devices) / _seconds(devices, jnp.matmul, (side, side), dtype)


def memory_bandwidth(devices: Devices) -> float:
    """Measures the bytes/s that one device reads and writes in adding long vectors, while all devices do so."""
    return 3 * 4 * VECTOR_LENGTH / _seconds(devices, jnp.add, (VECTOR_LENGTH,), jnp.float32)


def _seconds(devices: Devices, operation: Callable[[Any, Any], Any], shape: tuple[int, ...], dtype: Any) -> float:
    """The shortest time of an operation on two arrays, with every device working on its own copy, in seconds."""

    def draw(batch: dict[str, Any]) -> Any:
        # Scaled so that repeated products neither grow nor vanish.
        return jax.random.normal(jax.random.key(batch["seed"][0]), shape, dtype) * shape[-1] ** -0.5

    def repeat(batch: dict[str, Any]) -> Any:
        return jax.lax.fori_loop(0, REPEATS, lambda _, x: operation(x, batch["array"]), batch["array"])

    repeated = devices.compile_map(repeat)
    array = devices.compile_map(draw)(devices.shard({"seed": np.arange(len(devices.devices))}))
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(repeated({"array": array}))
        times.append(time.perf_counter() - began)
    return min(times) / REPEATS


def _random_dataset(config: ConfigDict, classes: int) -> Dataset:
    """A data set of one batch of random images in memory, with statistics like those of photographs."""
    size, count = config.data.image_size, config.batch_size
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = generator.integers(0, min(classes, 10), count, dtype=np.int32)  # few classes are soon learned
    mean = (123.7, 116.3, 103.5)
    statistics = dataclasses.replace(
        Statistics.unknown(size),
        mean=mean,
        mean_image=np.full((size, size, 3), mean, np.float32),
        pca_std=(120.0, 40.0, 20.0),
        pca_vectors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    )
    splits: dict[str, Records] = {"train": InMemoryRecords(images, labels)}
    return Dataset(splits, tuple(map(str, range(classes))), statistics, content="", directory=Path())
