"""Roofline of our training step: FLOPs, fewest bytes moved, and time when run alone, of each of its parts."""

import dataclasses
import functools
import itertools
import math
import string
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alexnet_jax.augment import training_images
from alexnet_jax.experiments.step_timing import RandomTraining
from alexnet_jax.models.alexnet import AlexNet, get_model
from alexnet_jax.models.summary import summarize

Call = tuple[Any, ...]
"""A function and its arguments."""


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The measured peaks of the device.

    Attributes:
      flops: FLOP/s of a large matrix product, by precision.
      bandwidth: bytes/s read and written of a large array.
    """

    flops: Mapping[str, float]
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a training step on the whole batch.

    Attributes:
      name: conv1, ... fc8 for a layer and the operations that follow it, "crops", or "optimizer".
      flops: FLOPs of forward and backward pass, two per multiply-accumulate of convolutions and matrix products.
      bytes: fewest bytes moved if nothing is recomputed and the operations after a product are fused into one pass.
    """

    name: str
    flops: float
    bytes: float


def measure_peaks(size: int, length: int, seconds: float) -> Peaks:
    """Measures the peaks with products of random size x size matrices, and by adding 1 to `length` numbers."""
    a, b = (jax.random.normal(key, (size, size)) for key in jax.random.split(jax.random.key(0)))

    def flops(dtype: Any, precision: str) -> float:
        multiply = functools.partial(jnp.matmul, precision=precision)
        return 2 * size**3 / seconds_of(multiply, a.astype(dtype), b.astype(dtype), at_least=seconds)

    numbers = jnp.arange(length, dtype=jnp.float32)
    return Peaks(
        flops={
            "bfloat16": flops(jnp.bfloat16, "default"),
            "float32": flops(jnp.float32, "default"),
            "float32, highest precision": flops(jnp.float32, "highest"),
        },
        bandwidth=2 * numbers.nbytes / seconds_of(lambda x: x + 1, numbers, at_least=seconds),
    )


def get_parts(config: ConfigDict) -> list[Part]:
    """All parts of the step except the loss, in order.

    Bytes of a layer: its input is read twice and the input's gradient written; its output is written and the output's
    gradient read; the product is written and read if pooling follows, otherwise the output is read again; parameters
    are read twice. All these are of the compute type. Parameter gradients and the optimizer's arrays are float32.
    """
    batch_size, itemsize = config.batch_size, jnp.dtype(config.model.compute_dtype).itemsize
    rows = summarize(get_model(config.model, config.model.num_classes), config.data.crop)
    pixels = math.prod(_image_shape(config))
    parts, parameters = [Part("crops", 0, pixels * (1 + itemsize))], 0
    values = pixels // batch_size
    for _, operations in itertools.groupby(rows, lambda row: row.name.strip(string.ascii_letters + "_")):
        product, *others = operations
        output = math.prod([product, *others][-1].shape)
        kept = 2 * math.prod(product.shape) if output != math.prod(product.shape) else output
        products = 2 if product is rows[0] else 3  # the gradient of the images is not needed
        activations = batch_size * (products * values + kept + 2 * output)
        moved = itemsize * (activations + 2 * product.parameters) + 4 * product.parameters
        parts.append(Part(product.name, products * 2 * product.macs * batch_size, moved))
        values, parameters = output, parameters + product.parameters
    return [*parts, Part("optimizer", 0, 5 * 4 * parameters)]  # three arrays read, two written


def time_parts(config: ConfigDict, seconds: float) -> list[float]:
    """Seconds of each part in `get_parts`, compiled and run alone."""
    training = RandomTraining(config)
    return [
        seconds_of(*_crops(training), at_least=seconds),
        *(seconds_of(*layer, at_least=seconds) for layer in _layers(training.experiment.model, config)),
        seconds_of(*_update(training), at_least=seconds),
    ]


def _crops(training: RandomTraining) -> Call:
    """Random crops, mirror images and mean subtraction."""

    def crops(batch: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), len(batch["id"]))
        return training_images(training.experiment.preprocessing, batch["image"], keys, batch["epoch"])

    return crops, jax.tree.map(lambda array: array[0], training.batch)


def _layers(model: AlexNet, config: ConfigDict) -> Iterator[Call]:
    """Forward pass and both gradients of each layer with the operations that follow it, as a network of its own."""
    key = jax.random.key(0)
    keys = jax.random.split(key, config.batch_size)
    like = jax.ShapeDtypeStruct(_image_shape(config), jnp.float32)
    for layer in model.layers:
        alone = model.clone(layers=(layer,))
        x = jax.random.normal(key, like.shape, like.dtype)
        params = jax.jit(alone.init)(key, x)["params"]
        forward = functools.partial(_forward, alone, keys)
        dy = jax.jit(forward)(params, x)
        yield functools.partial(_forward_and_backward, forward, layer is not model.layers[0]), params, x, dy
        like = dy


def _forward(model: AlexNet, keys: Any, params: Any, x: Any) -> Any:
    return model.apply({"params": params}, x, keys)[0]


def _forward_and_backward(forward: Callable[[Any, Any], Any], of_input: bool, params: Any, x: Any, dy: Any) -> Any:
    """The output, the gradient of the parameters and, if `of_input`, that of the input."""
    if of_input:
        y, gradients = jax.vjp(forward, params, x)
    else:
        y, gradients = jax.vjp(lambda params: forward(params, x), params)
    return y, gradients(dy)


def _update(training: RandomTraining) -> Call:
    """The optimizer's update, with a copy of the parameters as gradients."""
    state = training.state

    def update(gradients: Any, opt_state: Any, params: Any) -> Any:
        extra = {"learning_rates": state.learning_rates}
        updates, opt_state = training.experiment.optimizer.update(gradients, opt_state, params, **extra)
        return opt_state, optax.apply_updates(params, updates)

    return update, jax.tree.map(jnp.copy, state.params), state.opt_state, state.params


def _image_shape(config: ConfigDict) -> tuple[int, int, int, int]:
    return config.batch_size, config.data.crop, config.data.crop, 3


def seconds_of(function: Callable[..., Any], *arguments: Any, at_least: float) -> float:
    """Mean seconds of a compiled call, over as many calls as take about `at_least` seconds."""
    compiled = jax.jit(function)

    def run(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            results = compiled(*arguments)
        jax.block_until_ready(results)
        return (time.perf_counter() - began) / calls

    run(1)
    return run(max(1, round(at_least / run(3))))
