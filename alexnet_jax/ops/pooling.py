"""Max and average pooling."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.ops.windows import NHWC, Extents, pad_maps, window_padding


def pool(
    x: NHWC, kind: str, size: int, stride: int, ceil: bool, pad: int = 0
) -> Float[Array, "batch rows columns channel"]:
    """Max or average pooling. Averages count only pixels inside the map, as in cuda-convnet and Caffe.

    If several pixels of a window are equal maxima, the first in row-major order gets the gradient, as in XLA and torch.

    Args:
      x: feature maps.
      kind: "max" or "avg".
      size: side of the window in pixels.
      stride: pixels between windows.
      ceil: the last window may overhang the edge; see `ops.windows.output_size`.
      pad: rows and columns around the map, which never are the maximum and no part of an average.
    """
    before = pad if kind == "avg" else 0
    if pad and kind == "max":
        x = pad_maps(x, [(pad, pad), (pad, pad)], -jnp.inf)
    padding = [window_padding(extent, size, stride, before, ceil) for extent in x.shape[1:3]]
    if kind == "max":
        return _max_pool(x, size, stride, (padding[0][1], padding[1][1]), x.shape[1:3])
    return nn.avg_pool(x, window_shape=(size, size), strides=(stride, stride), padding=padding, count_include_pad=False)


def pool_to_grid(x: NHWC, cells: int) -> Float[Array, "batch cells cells channel"]:
    """Averages over a grid of cells, which overlap if they do not divide the map; torch's AdaptiveAvgPool2d."""

    def averages(extent: int) -> Array:
        first = np.arange(cells) * extent // cells
        last = -(-np.arange(1, cells + 1) * extent // cells)
        inside = (np.arange(extent) >= first[:, None]) & (np.arange(extent) < last[:, None])
        return jnp.asarray(inside / inside.sum(axis=1, keepdims=True), x.dtype)

    rows, columns = map(averages, x.shape[1:3])
    return jnp.einsum("ir,brwc,jw->bijc", rows, x, columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x: NHWC, size: int, stride: int, overhang: Extents, extents: Extents) -> NHWC:
    """Max pooling with windows that overhang the end by `overhang`; XLA's is slower, its gradient ten times."""
    return functools.reduce(jnp.maximum, _pixels_by_index(x, size, stride, overhang))


def _max_pool_forward(x: NHWC, size: int, stride: int, overhang: Extents, extents: Extents) -> tuple[NHWC, Array]:
    """The maxima, and the index of each in its window."""
    maximum, *others = _pixels_by_index(x, size, stride, overhang)
    index = jnp.zeros(maximum.shape, jnp.int8)
    for number, values in enumerate(others, start=1):
        index = jnp.where(values > maximum, jnp.int8(number), index)
        maximum = jnp.maximum(maximum, values)
    return maximum, index


def _max_pool_backward(
    size: int, stride: int, overhang: Extents, extents: Extents, index: Array, dy: NHWC
) -> tuple[NHWC]:
    """Sums for each pixel the dy of the windows in which it is the maximum.

    Pixels with the same offset from a multiple of the stride have the same indices in their windows; each such set of
    pixels is computed as one plane.
    """
    cells = [-(-extent // stride) for extent in extents]
    reach = (size - 1) // stride  # windows that start in earlier cells and may contain a pixel
    padding = [(reach, cell - outputs) for cell, outputs in zip(cells, dy.shape[1:3], strict=True)]
    dy, index = pad_maps(dy, padding), pad_maps(index, padding, -1)

    def plane(row: int, column: int) -> Array:
        total = jnp.zeros((), dy.dtype)
        for up in range((size - 1 - row) // stride + 1):
            for left in range((size - 1 - column) // stride + 1):
                windows = np.s_[:, reach - up : reach - up + cells[0], reach - left : reach - left + cells[1]]
                number = (row + up * stride) * size + column + left * stride
                total = total + jnp.where(index[windows] == number, dy[windows], 0)
        return total

    planes = lax.optimization_barrier([[plane(row, column) for column in range(stride)] for row in range(stride)])
    dx = jnp.stack([jnp.stack(columns, axis=3) for columns in planes], axis=2)
    dx = dx.reshape(len(dx), cells[0] * stride, cells[1] * stride, -1)
    return (dx[:, : extents[0], : extents[1]],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _pixels_by_index(x: NHWC, size: int, stride: int, overhang: Extents) -> list[Array]:
    """The pixels of all windows at each index of a window, in row-major order."""
    x = pad_maps(x, [(0, after) for after in overhang], -jnp.inf)
    rows, columns = ((extent - size) // stride * stride + 1 for extent in x.shape[1:3])
    return [
        x[:, row : row + rows : stride, column : column + columns : stride]
        for row in range(size)
        for column in range(size)
    ]
