"""Max and average pooling, and the arithmetic of windows that convolution shares."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.errors import UserError
from alexnet_jax.ops.convolution import Images


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


def pool(x: Images, kind: str, size: int, stride: int, ceil: bool) -> Float[Array, "batch rows columns channel"]:
    """Max or average pooling. An average counts the pixels inside the map alone, as cuda-convnet and Caffe do.

    Of equal maxima in a window the first one, row by row, gets the gradient, as in XLA and in torch.
    """
    padding = [window_padding(extent, size, stride, 0, ceil) for extent in x.shape[1:3]]
    if kind == "max":
        return _max_pool(x, size, stride, (padding[0][1], padding[1][1]), x.shape[1:3])
    return nn.avg_pool(x, window_shape=(size, size), strides=(stride, stride), padding=padding, count_include_pad=False)


Sides = tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x: Images, size: int, stride: int, overhang: Sides, extents: Sides) -> Images:
    """Maxima of windows that hang over the end by `overhang`; XLA's own are slow, and their gradient ten times."""
    return functools.reduce(jnp.maximum, _places(x, size, stride, overhang))


def _max_pool_forward(x: Images, size: int, stride: int, overhang: Sides, extents: Sides) -> tuple[Images, Array]:
    """The maxima, and which place in its window each has."""
    maximum, *others = _places(x, size, stride, overhang)
    place = jnp.zeros(maximum.shape, jnp.int8)
    for number, values in enumerate(others, start=1):
        place = jnp.where(values > maximum, jnp.int8(number), place)
        maximum = jnp.maximum(maximum, values)
    return maximum, place


def _max_pool_backward(
    size: int, stride: int, overhang: Sides, extents: Sides, place: Array, dy: Images
) -> tuple[Images]:
    """Each pixel adds up dy of the windows in which it was the maximum.

    Pixels at the same offset from a multiple of the stride lie at the same places of their windows: one plane for each.
    """
    cells = [-(-extent // stride) for extent in extents]
    reach = (size - 1) // stride  # windows before the one at its own cell that a pixel may lie in
    config = [(0, 0, 0), *((reach, cell - n, 0) for cell, n in zip(cells, dy.shape[1:3], strict=True)), (0, 0, 0)]
    dy, place = lax.pad(dy, jnp.zeros((), dy.dtype), config), lax.pad(place, jnp.int8(-1), config)

    def plane(row: int, column: int) -> Array:
        total = jnp.zeros((), dy.dtype)
        for up in range((size - 1 - row) // stride + 1):
            for left in range((size - 1 - column) // stride + 1):
                windows = np.s_[:, reach - up : reach - up + cells[0], reach - left : reach - left + cells[1]]
                number = (row + up * stride) * size + column + left * stride
                total = total + jnp.where(place[windows] == number, dy[windows], 0)
        return total

    planes = lax.optimization_barrier([[plane(row, column) for column in range(stride)] for row in range(stride)])
    dx = jnp.stack([jnp.stack(columns, axis=3) for columns in planes], axis=2)
    dx = dx.reshape(len(dx), cells[0] * stride, cells[1] * stride, -1)
    return (dx[:, : extents[0], : extents[1]],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _places(x: Images, size: int, stride: int, overhang: Sides) -> list[Array]:
    """For each place in a window, row by row, what all windows have there."""
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *((0, after, 0) for after in overhang), (0, 0, 0)])
    rows, columns = ((extent - size) // stride * stride + 1 for extent in x.shape[1:3])
    return [
        x[:, row : row + rows : stride, column : column + columns : stride]
        for row in range(size)
        for column in range(size)
    ]
