"""Output sizes and padding of the sliding windows of convolution and pooling."""

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
    """The number of windows along one axis: (size - kernel + 2 pad) / stride + 1, rounded down or up.

    Rounding up (`ceil`) lets the last window overhang the edge, as in cuda-convnet's convolution and pooling (CHM
    layer.py:1003) and Caffe's pooling. So 224 pixels give the paper's 55 outputs, for which rounding down needs 227.

    Args:
      size: pixels along the axis.
      kernel: pixels of a window.
      stride: pixels between windows.
      pad: zeros added at both ends.
      ceil: round up.
    """
    span = size - kernel + 2 * pad
    return (math.ceil(span / stride) if ceil else math.floor(span / stride)) + 1


def window_padding(size: int, kernel: int, stride: int, pad: int, ceil: bool) -> tuple[int, int]:
    """Padding before and after an axis with which a VALID window has `output_size` positions.

    See `output_size` for the arguments. Raises UserError if no window fits.
    """
    outputs = output_size(size, kernel, stride, pad, ceil)
    if outputs < 1 or size + 2 * pad < kernel:
        raise UserError(
            f"a {kernel}x{kernel} window does not fit into a {size}x{size} map: "
            "increase config.data.crop or choose a preset for small images"
        )
    overhang = (outputs - 1) * stride + kernel - size - 2 * pad
    return pad, pad + max(overhang, 0)


def pad_maps(x: Array, padding: Sequence[tuple[int, int]], value: int | float = 0) -> Array:
    """Pads images or maps with rows and columns of a value; negative padding crops.

    Args:
      x: NHWC.
      padding: (before, after) for rows and for columns.
      value: the value of the padding.
    """
    rows, columns = padding
    return lax.pad(x, jnp.asarray(value, x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))
