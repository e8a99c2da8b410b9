"""How much work a training step is, and how fast it and the devices are."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.statistics import Statistics
from alexnet_jax.experiment import make_preprocessing
from alexnet_jax.models.alexnet import LayerSummary, get_model, summarize
from alexnet_jax.optimizer import make_learning_rates, make_optimizer, scale_learning_rate
from alexnet_jax.parallel.devices import Devices, make_devices
from alexnet_jax.run_plan import RunPlan
from alexnet_jax.steps import make_train_step
from alexnet_jax.train_state import create_train_state, init_variables

IMAGENET_CLASSES, IMAGENET_IMAGES = 1000, 1_281_167
"""Of ILSVRC2012 and its training split."""

MATRIX_SIDE, MATRIX_SIDE_ON_CPU = 8192, 2048
"""Of matrices whose product takes a millisecond or more, and not seconds."""

VECTOR_LENGTH = 2**26
"""Of vectors that no cache holds."""

REPEATS, ROUNDS = 5, 4
"""Operations timed as one, and how often; the first round compiles, the fastest counts."""


class RandomTraining:
    """The training step as `train.py` compiles and feeds it, on random images that are on the devices already.

    Attributes:
      devices: where it runs.
      batch_size: images a step.
      model, layers, optimizer, preprocessing: what the step is made of.
      step, state, batch: on the devices; the step consumes the state.
    """

    def __init__(self, config: ConfigDict):
        """Without a data set there are as many classes as the config says, or else ImageNet's."""
        data = config.data
        classes = IMAGENET_CLASSES if config.model.num_classes is None else config.model.num_classes
        self.model = get_model(config.model, classes)
        self.devices = make_devices(config.parallel, self.model)
        self.batch_size = RunPlan.create(config, IMAGENET_IMAGES, self.devices.batch_parts).batch_size
        self.layers = summarize(self.model, data.crop)
        variables = init_variables(self.model, data.crop, config.seed)
        optimizer = scale_learning_rate(config.optimizer, self.batch_size)
        self.optimizer = make_optimizer(optimizer, variables["params"])
        rates = make_learning_rates(optimizer, variables["params"], config.epochs)(0.0, optimizer.learning_rate)
        self.preprocessing = make_preprocessing(data, _statistics(data.image_size))
        self.step = self.devices.compile_train_step(
            make_train_step(
                self.model,
                self.optimizer,
                self.preprocessing,
                self.devices.axes,
                config.parallel.micro_batches,
                config.label_smoothing,
            )
        )
        fresh = create_train_state(variables, self.optimizer, config.seed)
        state = dataclasses.replace(fresh, learning_rates=jax.tree.map(np.float32, rates))
        self.state = self.devices.place(state)
        self.batch = self.devices.shard(_random_batch(self.batch_size, data.image_size, classes))

    def run(self, steps: int) -> list[float]:
        """Does so many steps; returns the seconds of each, when the results of all are there."""
        ends, pending = [time.perf_counter()], None
        for _ in range(steps):
            self.state, sums = self.step(self.state, self.batch)
            if pending is not None:
                jax.device_get(pending)  # one step late, as the loop does
                ends.append(time.perf_counter())
            pending = sums
        jax.block_until_ready((self.state, pending))
        ends.append(time.perf_counter())
        return [end - begin for begin, end in itertools.pairwise(ends)]


def training_flops(layers: Sequence[LayerSummary]) -> int:
    """Floating point operations of one image in a training step: 6 x MACs of all layers - 2 x MACs of the first.

    A multiply-accumulate is two operations, and each of the forward pass has one for the gradient of the kernel and one
    for that of the layer's input, which the first layer does not need. Everything but products is left out.
    """
    macs = [layer.macs for layer in layers if layer.macs]
    return 6 * sum(macs) - 2 * macs[0]


def optimizer_bytes(layers: Sequence[LayerSummary]) -> int:
    """The least that the optimizer moves in a step, in float32.

    It reads parameters, gradients and velocity, and writes parameters and velocity.
    """
    return 5 * 4 * sum(layer.parameters for layer in layers)


def matmul_rate(devices: Devices, dtype: Any) -> float:
    """FLOP/s of products of large square matrices, in JAX's default precision as in the step; all devices together."""
    side = MATRIX_SIDE_ON_CPU if devices.on_cpu else MATRIX_SIDE
    return 2 * side**3 * len(devices.devices) / _seconds(devices, jnp.matmul, (side, side), dtype)


def memory_rate(devices: Devices) -> float:
    """Bytes/s that the sum of two long vectors reads and writes, of one device while all are at it."""
    return 3 * 4 * VECTOR_LENGTH / _seconds(devices, jnp.add, (VECTOR_LENGTH,), jnp.float32)


def _seconds(devices: Devices, operation: Callable[[Any, Any], Any], shape: tuple[int, ...], dtype: Any) -> float:
    """The shortest time of an operation on two arrays, which every device does with its own."""

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


def _statistics(image_size: int) -> Statistics:
    """Such as photographs have; any would do that give the network inputs of about the usual size."""
    mean = (123.7, 116.3, 103.5)
    return dataclasses.replace(
        Statistics.unknown(image_size),
        mean=mean,
        mean_image=np.full((image_size, image_size, 3), mean, np.float32),
        pca_std=(120.0, 40.0, 20.0),
        pca_vectors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    )


def _random_batch(batch_size: int, image_size: int, classes: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (batch_size, image_size, image_size, 3), dtype=np.uint8),
        "label": generator.integers(0, min(classes, 10), batch_size, dtype=np.int32),  # few are soon learned
        "id": np.arange(batch_size, dtype=np.int32),
        "epoch": np.zeros(batch_size, np.int32),
    }
