"""The sliding windows of convolutions and pooling: how many fit, and the padding that they need."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.errors import UserError

NHWC = Float[Array, "batch _height _width _channel"]
"""Images or feature maps, NHWC."""

Kernel = Float[Array, "_rows _columns _channel_of_group _feature"]
"""The weights of a convolution, HWIO."""

Extents = tuple[int, ...]
"""Rows and columns."""

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Pixels to add above and below, left and right."""


def output_size(size: int, kernel: int, stride: int, pad: int, ceil: bool) -> int:
    """How many windows a row of `size` pixels holds: (size - kernel + 2 pad) / stride + 1, rounded.

    `ceil` lets the last window hang over the edge, as cuda-convnet does in convolutions and in pooling (CHM
    layer.py:1003) and Caffe in pooling: so 224 pixels give the 55 outputs of the paper, where rounding down needs 227.
    """
    span = size - kernel + 2 * pad
    return (math.ceil(span / stride) if ceil else math.floor(span / stride)) + 1


def window_padding(size: int, kernel: int, stride: int, pad: int, ceil: bool) -> tuple[int, int]:
    """Pixels to add before and after a row so that a VALID window visits `output_size` places.

    Raises UserError if not a single window fits.
    """
    outputs = output_size(size, kernel, stride, pad, ceil)
    if outputs < 1 or size + 2 * pad < kernel:
        raise UserError(
            f"a {kernel}x{kernel} window does not fit into a {size}x{size} map: "
            "make config.data.crop larger or choose a preset for small images"
        )
    overhang = (outputs - 1) * stride + kernel - size - 2 * pad
    return pad, pad + max(overhang, 0)


def pad_maps(x: Array, padding: Sequence[tuple[int, int]], value: int | float = 0) -> Array:
    """Adds rows and columns of a value around images or maps; a negative number takes some away."""
    rows, columns = padding
    return lax.pad(x, jnp.asarray(value, x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))
