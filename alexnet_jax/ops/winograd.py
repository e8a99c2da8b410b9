"""Convolution by Winograd's minimal filtering algorithm, and its gradients.

Lavin and Gray 2016 ("Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308): 3 x 3 outputs are computed
from one tile of pixels. Small matrices transform tile and kernel, after which a 3x3 kernel needs 3.2 times fewer
multiplications than direct convolution, and a 5x5 kernel 4.6 times fewer, all of them in matrix products.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float
from numpy.polynomial.polynomial import polyfromroots

from alexnet_jax.ops.platforms import chunks, map_chunks
from alexnet_jax.ops.precision import sum_type
from alexnet_jax.ops.windows import NHWC, Extents, Kernel, Padding, pad_maps

Matrix = tuple[tuple[float, ...], ...]
Tiles = Float[Array, "columns rows group _tiles _channel"]
"""Transformed tiles: one matrix per tile position and group. Transformed kernels have channels x features instead."""

OUTPUTS = 3
"""Outputs of a tile along each axis. More outputs save more multiplications and lose more precision."""

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)
"""Interpolation points of the polynomials, besides infinity; a kernel of n rows uses the first n + 1."""

MAX_ROWS = len(POINTS) - 1
"""Most rows of a kernel; larger ones would lose too much precision."""

NO_PADDING: Padding = ((0, 0), (0, 0))


def conv_by_tiles(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """`convolution.conv` by Winograd's algorithm, for kernels of up to MAX_ROWS * stride rows."""
    if stride > 1:
        x, kernel = fold_stride(x, kernel, stride, padding, groups)
        padding = NO_PADDING
    return _unit_conv(x, kernel, padding, groups)


def fold_stride(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> tuple[NHWC, Kernel]:
    """Moves stride x stride blocks of pixels into channels, so that the convolution has stride 1."""
    size = kernel.shape[0]
    cells = -(-size // stride)
    whole_cells = []
    for extent, (before, after) in zip(x.shape[1:3], padding, strict=True):
        outputs = (extent + before + after - size) // stride + 1
        whole_cells.append((before, (outputs + cells - 1) * stride - extent - before))
    x = pad_maps(x, whole_cells)
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // stride, stride, width // stride, stride, groups, channels // groups)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6).reshape(batch, height // stride, width // stride, -1)
    missing = cells * stride - size
    kernel = jnp.pad(kernel, ((0, missing), (0, missing), (0, 0), (0, 0)))
    kernel = kernel.reshape(cells, stride, cells, stride, *kernel.shape[2:])
    return x, kernel.transpose(0, 2, 1, 3, 4, 5).reshape(cells, cells, -1, kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _unit_conv(x: NHWC, kernel: Kernel, padding: Padding, groups: int) -> NHWC:
    """A convolution of stride 1 by Winograd's algorithm."""
    size = kernel.shape[0]
    extents = (x.shape[1] + sum(padding[0]) - size + 1, x.shape[2] + sum(padding[1]) - size + 1)
    output_matrix, kernel_matrix, pixel_matrix = winograd(OUTPUTS, size)
    kernels = _on_both_sides(kernel_matrix, _split_groups(kernel, groups))

    def conv_chunk(chunk: NHWC) -> NHWC:
        products = _transform_tiles(chunk, pixel_matrix, padding, groups, extents) @ kernels
        planes = _on_both_sides(output_matrix, products)
        return _assemble(planes, extents).astype(x.dtype)

    return map_chunks(conv_chunk, _image_bytes(kernel, groups, extents), x)


def _unit_conv_forward(x: NHWC, kernel: Kernel, padding: Padding, groups: int) -> tuple[NHWC, tuple[NHWC, Kernel]]:
    return _unit_conv(x, kernel, padding, groups), (x, kernel)


def _unit_conv_backward(padding: Padding, groups: int, saved: tuple[NHWC, Kernel], dy: NHWC) -> tuple[NHWC, Kernel]:
    """Both gradients; dx is a convolution of dy with the kernel rotated and its channels and features exchanged."""
    x, kernel = saved
    rows, columns, channels, features = kernel.shape
    rotated = kernel[::-1, ::-1].reshape(rows, columns, channels, groups, features // groups)
    rotated = rotated.transpose(0, 1, 4, 3, 2).reshape(rows, columns, features // groups, groups * channels)
    above, left = rows - 1 - padding[0][0], columns - 1 - padding[1][0]
    below = x.shape[1] + rows - 1 - dy.shape[1] - above
    right = x.shape[2] + columns - 1 - dy.shape[2] - left
    dx = _unit_conv(dy, rotated, ((above, below), (left, right)), groups)
    return dx, _kernel_gradient(x, dy, kernel, padding, groups)


_unit_conv.defvjp(_unit_conv_forward, _unit_conv_backward)


def _kernel_gradient(x: NHWC, dy: NHWC, kernel: Kernel, padding: Padding, groups: int) -> Kernel:
    """The kernel's gradient: transposed tiles of x times tiles of dy, summed over chunks of the batch."""
    output_matrix, kernel_matrix, pixel_matrix = winograd(OUTPUTS, kernel.shape[0])
    extents = dy.shape[1:3]

    def add(total: Array, chunk: tuple[NHWC, ...]) -> tuple[Array, None]:
        tiles = _transform_tiles(chunk[0], pixel_matrix, padding, groups, extents)
        d_tiles = _transform_tiles(chunk[1], _transposed(output_matrix), NO_PADDING, groups, extents)
        return total + jnp.swapaxes(tiles, -1, -2) @ d_tiles, None

    size, channels, features = len(pixel_matrix), kernel.shape[2], kernel.shape[3]
    zero = jnp.zeros((size, size, groups, channels, features // groups), sum_type(x))
    total, _ = lax.scan(add, zero, chunks(_image_bytes(kernel, groups, extents), x, dy))
    gradient = _on_both_sides(_transposed(kernel_matrix), total)
    return gradient.transpose(1, 0, 3, 2, 4).reshape(kernel.shape).astype(kernel.dtype)


@functools.cache
def winograd(outputs: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """Matrices A, G, B with which A ((G g) * (B d)) is the 1-D correlation of pixels d with a kernel g.

    The Toom-Cook algorithm: d and g are coefficients of polynomials, which are multiplied at POINTS and at infinity. A
    tile has outputs + taps - 1 pixels; G and B have as many rows, A as many columns. Only quotients in G are rounded.

    Args:
      outputs: outputs of a tile.
      taps: numbers of the kernel.

    Returns:
      A, G and B.
    """
    at = POINTS[: outputs + taps - 2]
    others = [[q for q in at if q != p] for p in at]
    output_matrix = [(*(p**power for p in at), float(power == outputs - 1)) for power in range(outputs)]
    scales = [math.prod(p - q for q in rest) for p, rest in zip(at, others, strict=True)]
    kernel_matrix = [tuple(p**power / scale for power in range(taps)) for p, scale in zip(at, scales, strict=True)]
    kernel_matrix.append(tuple(float(power == taps - 1) for power in range(taps)))
    pixel_matrix = [(*polyfromroots(rest).tolist(), 0.0) for rest in others] + [tuple(polyfromroots(at).tolist())]
    return tuple(output_matrix), tuple(kernel_matrix), tuple(pixel_matrix)


def _materialized(*static_argnames: str) -> Callable[[Any], Any]:
    """Decorator that keeps XLA from fusing a stage into its consumers, where it would recompute results many times."""

    def mark(stage: Callable) -> Callable:
        compiled = jax.jit(stage, static_argnames=static_argnames)

        @functools.wraps(stage)
        def call(*args: Any) -> Any:
            with set_xla_metadata(inlineable="false"):
                return compiled(*args)

        return call

    return mark


@_materialized("groups")
def _split_groups(kernel: Kernel, groups: int) -> Tiles:
    """The kernel split by group, in the type of sums."""
    rows, columns, channels, features = kernel.shape
    kernel = kernel.reshape(rows, columns, channels, groups, features // groups)
    return kernel.transpose(1, 0, 3, 2, 4).astype(sum_type(kernel))


def _transform_tiles(x: NHWC, matrix: Matrix, padding: Padding, groups: int, outputs: Extents) -> Tiles:
    """Transforms the tiles that cover `outputs` rows and columns: windows at every OUTPUTS-th pixel."""
    counts = _tile_counts(outputs)
    grouped = _cover(x, len(matrix[0]), padding, groups, counts)
    rows = _transform_windows(grouped, matrix, 1, counts[0])
    tiles = _transform_windows(rows, matrix, 3, counts[1])
    return tiles.reshape(*tiles.shape[:2], groups, -1, tiles.shape[-1])


def _cover(
    x: NHWC, size: int, padding: Padding, groups: int, counts: Extents
) -> Float[Array, "batch_of_groups height width channel"]:
    """Images padded to whole tiles of size x size, with groups moved into the batch, in the type of sums."""
    whole_tiles = [
        (before, (count - 1) * OUTPUTS + size - extent - before)
        for extent, count, (before, _) in zip(x.shape[1:3], counts, padding, strict=True)
    ]
    x = pad_maps(x.astype(sum_type(x)), whole_tiles)
    return jnp.concatenate(jnp.split(x, groups, axis=-1))


@_materialized("matrix", "axis", "count")
def _transform_windows(x: Array, matrix: Matrix, axis: int, count: int) -> Array:
    """Transforms `count` windows along an axis, OUTPUTS apart; the new first axis has a row of the matrix each."""
    starts = range(len(matrix[0]))
    span = (count - 1) * OUTPUTS + 1
    return _combine(matrix, [lax.slice_in_dim(x, start, start + span, OUTPUTS, axis) for start in starts])


def _on_both_sides(matrix: Matrix, x: Float[Array, "columns rows ..."]) -> Float[Array, "columns_out rows_out ..."]:
    """matrix @ x @ matrix.T, where each element of x is an array."""
    return _transform_rows(_transform_rows(x, matrix), matrix)


@_materialized("matrix")
def _transform_rows(x: Float[Array, "columns rows ..."], matrix: Matrix) -> Float[Array, "rows_out columns ..."]:
    """Transforms the second axis and moves it to the front; applied twice, it transforms both axes."""
    return _combine(matrix, [lax.index_in_dim(x, row, 1, keepdims=False) for row in range(x.shape[1])])


def _combine(matrix: Matrix, arrays: list[Array]) -> Array:
    """One weighted sum of the arrays per row of the matrix; zero weights are skipped."""
    sums = [sum(w * array for w, array in zip(row, arrays, strict=True) if w) for row in matrix]
    return jnp.stack(sums)


@_materialized("extents")
def _assemble(planes: Tiles, extents: Extents) -> NHWC:
    """Reassembles maps from planes that each hold one position of every tile."""
    columns, rows, groups, _, features = planes.shape
    counts = _tile_counts(extents)
    planes = planes.reshape(columns, rows, groups, -1, *counts, features).transpose(3, 4, 1, 5, 0, 2, 6)
    maps = planes.reshape(-1, counts[0] * rows, counts[1] * columns, groups * features)
    return maps[:, : extents[0], : extents[1]]


def _tile_counts(extents: Extents) -> Extents:
    """Rows and columns of tiles that cover the outputs."""
    return -(-extents[0] // OUTPUTS), -(-extents[1] // OUTPUTS)


def _image_bytes(kernel: Kernel, groups: int, extents: Extents) -> int:
    """Memory of the transformed tiles of one image and of its outputs, in bytes."""
    size, _, channels, features = kernel.shape
    return math.prod(_tile_counts(extents)) * (OUTPUTS + size - 1) ** 2 * (groups * channels + features) * 4


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
