"""Max and average pooling."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.ops.platforms import by_platform
from alexnet_jax.ops.windows import NHWC, Extents, pad_maps, window_padding

Origin = tuple[NHWC, Callable[[NHWC], NHWC]]
"""Maps, and a function of them that treats each pixel by itself."""


@jax.named_scope("pool")
def pool(
    x: NHWC, kind: str, size: int, stride: int, ceil: bool, pad: int = 0, origin: Origin | None = None
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
      origin: the maps and the function that gave x. Except on the CPU, max pooling computes x from them again, within
        the same kernel, so that x need not be in memory.
    """
    before = pad if kind == "avg" else 0
    maps, function = origin or (x, None)
    if pad and kind == "max":
        x, maps = (pad_maps(array, [(pad, pad), (pad, pad)], -jnp.inf) for array in (x, maps))
    padding = [window_padding(extent, size, stride, before, ceil) for extent in x.shape[1:3]]
    if kind == "max":
        overhang = padding[0][1], padding[1][1]
        return _max_pool(x, maps, _Windows(size, stride, overhang, x.shape[1:3], function))
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


@dataclasses.dataclass(frozen=True)
class _Windows:
    """The windows of max pooling.

    Attributes:
      size, stride: see `pool`.
      overhang: rows and columns by which the last windows exceed the map.
      extents: rows and columns of the map.
      function: what gave the maps that are pooled; see `pool`.
    """

    size: int
    stride: int
    overhang: Extents
    extents: Extents
    function: Callable[[NHWC], NHWC] | None

    def pixels(self, x: NHWC, maps: NHWC) -> list[Array]:
        """The pixels of all windows at each index of a window, in row-major order."""
        if self.function is None:
            return self._pixels(x)
        return by_platform(x, maps, cpu=lambda x, _: self._pixels(x), default=lambda _, maps: self._computed(maps))

    def _pixels(self, x: NHWC) -> list[Array]:
        x = pad_maps(x, [(0, after) for after in self.overhang], -jnp.inf)
        rows, columns = ((extent - self.size) // self.stride * self.stride + 1 for extent in x.shape[1:3])
        return [
            x[:, row : row + rows : self.stride, column : column + columns : self.stride]
            for row, column in itertools.product(range(self.size), repeat=2)
        ]

    def _computed(self, maps: NHWC) -> list[Array]:
        assert self.function
        return [jnp.where(jnp.isneginf(pixels), pixels, self.function(pixels)) for pixels in self._pixels(maps)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _max_pool(x: NHWC, maps: NHWC, windows: _Windows) -> NHWC:
    """Max pooling; XLA's is slower on the CPU, its gradient ten times."""
    return functools.reduce(jnp.maximum, windows.pixels(x, maps))


def _max_pool_forward(x: NHWC, maps: NHWC, windows: _Windows) -> tuple[NHWC, Array]:
    """The maxima, and the index of each in its window."""
    maximum, *others = windows.pixels(x, maps)
    index = jnp.zeros(maximum.shape, jnp.int8)
    for number, values in enumerate(others, start=1):
        index = jnp.where(values > maximum, jnp.int8(number), index)
        maximum = jnp.maximum(maximum, values)
    return maximum, index


def _max_pool_backward(windows: _Windows, index: Array, dy: NHWC) -> tuple[NHWC, None]:
    """Sums for each pixel of x the dy of the windows in which it is the maximum."""
    cpu, default = (functools.partial(function, windows) for function in (_by_planes, _by_index))
    return by_platform(index, dy, cpu=cpu, default=default), None


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _by_index(windows: _Windows, index: Array, dy: NHWC) -> NHWC:
    """The gradient in one pass: at each index of a window the pixels there, a stride apart."""
    total = jnp.zeros((), dy.dtype)
    for number, place in enumerate(itertools.product(range(windows.size), repeat=2)):
        config = [(0, 0, 0)]
        for before, outputs, extent in zip(place, dy.shape[1:3], windows.extents, strict=True):
            after = extent - before - (outputs - 1) * windows.stride - 1  # negative where windows overhang
            config.append((before, after, windows.stride - 1))
        here = lax.pad(index, jnp.int8(-1), [*config, (0, 0, 0)]) == number
        total = total + jnp.where(here, lax.pad(dy, jnp.zeros((), dy.dtype), [*config, (0, 0, 0)]), 0)
    return total


def _by_planes(windows: _Windows, index: Array, dy: NHWC) -> NHWC:
    """The gradient in one pass for each place in a cell of stride x stride pixels; these have the same indices."""
    size, stride = windows.size, windows.stride
    reach = (size - 1) // stride  # windows that start in earlier cells and may contain a pixel
    rows, columns = (-(-extent // stride) for extent in windows.extents)
    padding = [(reach, cells - outputs) for cells, outputs in zip((rows, columns), dy.shape[1:3], strict=True)]
    dy, index = pad_maps(dy, padding), pad_maps(index, padding, -1)

    def plane(row: int, column: int) -> Array:
        total = jnp.zeros((), dy.dtype)
        for up in range((size - 1 - row) // stride + 1):
            for left in range((size - 1 - column) // stride + 1):
                cells = np.s_[:, reach - up : reach - up + rows, reach - left : reach - left + columns]
                number = (row + up * stride) * size + column + left * stride
                total = total + jnp.where(index[cells] == number, dy[cells], 0)
        return total

    planes = lax.optimization_barrier([[plane(row, column) for column in range(stride)] for row in range(stride)])
    dx = jnp.stack([jnp.stack(of_row, axis=3) for of_row in planes], axis=2)
    dx = dx.reshape(len(dx), rows * stride, columns * stride, -1)
    return dx[:, : windows.extents[0], : windows.extents[1]]
