"""The table of a network's layers: shapes, parameters and multiply-accumulates."""

import bisect
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alexnet_jax.errors import UserError
from alexnet_jax.models.alexnet import AlexNet

LARGEST_NEEDED = 512
"""Every network bears smaller crops than this one."""


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """A row of the layer table.

    Attributes:
      name: name of the operation, like "conv1" or "pool1".
      shape: output shape for one image.
      parameters: number of parameters.
      macs: multiply-accumulates for one image.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@functools.lru_cache(maxsize=4)
def trace_shapes(model: AlexNet, crop: int) -> tuple[Any, Mapping[str, tuple[int, ...]]]:
    """Traces the shapes of variables and activations for one crop x crop image, without computing anything.

    Cached, as a run needs the shapes of the same network several times before its first step.

    Returns:
      The variables as a tree of shapes, and the shapes of all activations by name, in order.

    Raises UserError if a window is larger than its map; it names the smallest crop that the network bears.
    """
    try:
        return _trace(model, crop)
    except UserError as error:
        larger = range(crop + 1, LARGEST_NEEDED)
        if not larger or not _bears(model, larger[-1]):
            raise
        smallest = larger[bisect.bisect_left(larger, True, key=functools.partial(_bears, model))]
        raise UserError(
            f"config.data.crop={crop} is too small for the network, which needs {smallest} pixels: increase it, and "
            "config.data.image_size, or choose a preset for small images"
        ) from error


def _bears(model: AlexNet, crop: int) -> bool:
    try:
        _trace(model, crop)
    except UserError:
        return False
    return True


def _trace(model: AlexNet, crop: int) -> tuple[Any, Mapping[str, tuple[int, ...]]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def init(images: Array) -> Any:
        (_, activations), variables = model.init_with_output(jax.random.key(0), images)
        shapes.update({name: activation.shape[1:] for name, activation in activations.items()})
        return variables

    return jax.eval_shape(init, jax.ShapeDtypeStruct((1, crop, crop, 3), jnp.float32)), shapes


def summarize(model: AlexNet, crop: int) -> list[LayerSummary]:
    """Lists the operations that have parameters or change the shape, for one crop x crop image.

    A convolution counts one multiply-accumulate per kernel weight and output position, padding included.
    """
    variables, shapes = trace_shapes(model, crop)
    rows: list[LayerSummary] = []
    previous: tuple[int, ...] = (crop, crop, 3)
    for name, shape in shapes.items():
        parameters = variables["params"].get(name, {})
        macs = parameters["kernel"].size if "kernel" in parameters else 0
        if name.startswith("conv"):
            macs *= shape[0] * shape[1]
        if parameters or shape != previous or name.startswith(("lrn", "map_norm")):
            rows.append(LayerSummary(name, shape, sum(leaf.size for leaf in parameters.values()), macs))
        previous = shape
    return rows
