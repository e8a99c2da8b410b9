"""Convolution by Winograd's tiles, and its gradients.

Lavin and Gray 2016 ("Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308) compute 3 x 3 outputs at
once from one tile of pixels. Tile and kernel are transformed by small matrices; then 3.2 times fewer multiplications
are left for a 3x3 kernel, and 4.6 for a 5x5 one. They are matrix products, which XLA does well.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float
from numpy.polynomial.polynomial import polyfromroots

from alexnet_jax.ops.platforms import chunks, map_chunks
from alexnet_jax.ops.windows import NHWC, Extents, Kernel, Padding, pad_maps

Matrix = tuple[tuple[float, ...], ...]
Tiles = Float[Array, "columns rows group _tiles _channel"]
"""One matrix for each place in a tile and each group; of a kernel, channels times features."""

OUTPUTS = 3
"""Outputs of a tile in each direction. More save more products and lose more digits."""

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)
"""Where the polynomials of a tile are evaluated, beside infinity; a kernel of n rows takes n + 1 of them."""

MAX_ROWS = len(POINTS) - 1
"""Of a kernel; matrices for larger ones would lose digits."""

NO_PADDING: Padding = ((0, 0), (0, 0))


def conv_by_tiles(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """`convolution.conv` by tiles. The kernel may have MAX_ROWS times `stride` rows."""
    if stride > 1:
        x, kernel = _fold_stride(x, kernel, stride, padding, groups)
        padding = NO_PADDING
    return _unit_conv(x, kernel, padding, groups)


def _fold_stride(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> tuple[NHWC, Kernel]:
    """Moves stride x stride squares of pixels into channels: what was a stride is then a step to the next pixel."""
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
    """A convolution of stride 1 by tiles."""
    size = kernel.shape[0]
    extents = (x.shape[1] + sum(padding[0]) - size + 1, x.shape[2] + sum(padding[1]) - size + 1)
    to_outputs, of_kernel, of_pixels = winograd(OUTPUTS, size)
    kernels = _on_both_sides(of_kernel, _split_groups(kernel, groups))

    def conv_chunk(chunk: NHWC) -> NHWC:
        products = _transform_tiles(chunk, of_pixels, padding, groups, extents) @ kernels
        planes = _on_both_sides(to_outputs, products)
        return _assemble(planes, extents).astype(x.dtype)

    return map_chunks(conv_chunk, _image_bytes(kernel, groups, extents), x)


def _unit_conv_forward(x: NHWC, kernel: Kernel, padding: Padding, groups: int) -> tuple[NHWC, tuple[NHWC, Kernel]]:
    return _unit_conv(x, kernel, padding, groups), (x, kernel)


def _unit_conv_backward(padding: Padding, groups: int, saved: tuple[NHWC, Kernel], dy: NHWC) -> tuple[NHWC, Kernel]:
    """The gradient of the images is a convolution of dy with the kernel turned around and its channels exchanged."""
    x, kernel = saved
    rows, columns, channels, features = kernel.shape
    turned = kernel[::-1, ::-1].reshape(rows, columns, channels, groups, features // groups)
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(rows, columns, features // groups, groups * channels)
    above, left = rows - 1 - padding[0][0], columns - 1 - padding[1][0]
    below = x.shape[1] + rows - 1 - dy.shape[1] - above
    right = x.shape[2] + columns - 1 - dy.shape[2] - left
    dx = _unit_conv(dy, turned, ((above, below), (left, right)), groups)
    return dx, _kernel_gradient(x, dy, kernel, padding, groups)


_unit_conv.defvjp(_unit_conv_forward, _unit_conv_backward)


def _kernel_gradient(x: NHWC, dy: NHWC, kernel: Kernel, padding: Padding, groups: int) -> Kernel:
    """The transformed tiles of x, transposed, times those of dy; summed over the chunks of the batch."""
    to_outputs, of_kernel, of_pixels = winograd(OUTPUTS, kernel.shape[0])
    extents = dy.shape[1:3]

    def add(total: Array, chunk: tuple[NHWC, ...]) -> tuple[Array, None]:
        tiles = _transform_tiles(chunk[0], of_pixels, padding, groups, extents)
        d_tiles = _transform_tiles(chunk[1], _transposed(to_outputs), NO_PADDING, groups, extents)
        return total + jnp.swapaxes(tiles, -1, -2) @ d_tiles, None

    size, channels, features = len(of_pixels), kernel.shape[2], kernel.shape[3]
    zero = jnp.zeros((size, size, groups, channels, features // groups), _sum_type(x))
    total, _ = lax.scan(add, zero, chunks(_image_bytes(kernel, groups, extents), x, dy))
    gradient = _on_both_sides(_transposed(of_kernel), total)
    return gradient.transpose(1, 0, 3, 2, 4).reshape(kernel.shape).astype(kernel.dtype)


@functools.cache
def winograd(outputs: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """Matrices A, G, B for which A ((G g) * (B d)) is the correlation of pixels d with a kernel g of `taps` numbers.

    Toom and Cook's: d and g stand for polynomials, which are multiplied at `POINTS` and at infinity. There are
    outputs + taps - 1 pixels, rows of G and of B, and columns of A. All but the quotients in G are exact.
    """
    at = POINTS[: outputs + taps - 2]
    others = [[q for q in at if q != p] for p in at]
    to_outputs = [(*(p**power for p in at), float(power == outputs - 1)) for power in range(outputs)]
    scales = [math.prod(p - q for q in rest) for p, rest in zip(at, others, strict=True)]
    of_kernel = [tuple(p**power / scale for power in range(taps)) for p, scale in zip(at, scales, strict=True)]
    of_kernel.append(tuple(float(power == taps - 1) for power in range(taps)))
    of_pixels = [(*polyfromroots(rest).tolist(), 0.0) for rest in others] + [tuple(polyfromroots(at).tolist())]
    return tuple(to_outputs), tuple(of_kernel), tuple(of_pixels)


def _materialized(*static_argnames: str) -> Callable[[Any], Any]:
    """Keeps XLA from fusing this stage into those that use its results, where it would compute each of them many times.

    The results are computed once and stored.
    """

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
    """The kernel of each group by itself, in the type of sums."""
    rows, columns, channels, features = kernel.shape
    kernel = kernel.reshape(rows, columns, channels, groups, features // groups)
    return kernel.transpose(1, 0, 3, 2, 4).astype(_sum_type(kernel))


def _transform_tiles(x: NHWC, matrix: Matrix, padding: Padding, groups: int, outputs: Extents) -> Tiles:
    """Transforms the tiles that cover `outputs` places: the windows at each OUTPUTS-th pixel of rows and columns."""
    counts = _tile_counts(outputs)
    grouped = _cover(x, len(matrix[0]), padding, groups, counts)
    rows = _transform_windows(grouped, matrix, 1, counts[0])
    tiles = _transform_windows(rows, matrix, 3, counts[1])
    return tiles.reshape(*tiles.shape[:2], groups, -1, tiles.shape[-1])


def _cover(
    x: NHWC, size: int, padding: Padding, groups: int, counts: Extents
) -> Float[Array, "batch_of_groups height width channel"]:
    """The images with all the pixels that tiles of size x size cover, group after group, in the type of sums."""
    whole_tiles = [
        (before, (count - 1) * OUTPUTS + size - extent - before)
        for extent, count, (before, _) in zip(x.shape[1:3], counts, padding, strict=True)
    ]
    x = pad_maps(x.astype(_sum_type(x)), whole_tiles)
    return jnp.concatenate(jnp.split(x, groups, axis=-1))


@_materialized("matrix", "axis", "count")
def _transform_windows(x: Array, matrix: Matrix, axis: int, count: int) -> Array:
    """Transforms `count` windows along an axis."""
    starts = range(len(matrix[0]))
    span = (count - 1) * OUTPUTS + 1
    return _combine(matrix, [lax.slice_in_dim(x, start, start + span, OUTPUTS, axis) for start in starts])


def _on_both_sides(matrix: Matrix, x: Float[Array, "columns rows ..."]) -> Float[Array, "columns_out rows_out ..."]:
    """matrix @ x @ matrix.T, where each number of x is an array."""
    return _transform_rows(_transform_rows(x, matrix), matrix)


@_materialized("matrix")
def _transform_rows(x: Float[Array, "columns rows ..."], matrix: Matrix) -> Float[Array, "rows_out columns ..."]:
    """Transforms the second axis and puts it first, so that twice makes both sides."""
    return _combine(matrix, [lax.index_in_dim(x, row, 1, keepdims=False) for row in range(x.shape[1])])


def _combine(matrix: Matrix, arrays: list[Array]) -> Array:
    """The weighted sums of arrays that the rows of the matrix ask for; most weights are 0."""
    sums = [sum(w * array for w, array in zip(row, arrays, strict=True) if w) for row in matrix]
    return jnp.stack(sums)


@_materialized("extents")
def _assemble(planes: Tiles, extents: Extents) -> NHWC:
    """Maps out of planes that each hold one place of every tile."""
    columns, rows, groups, _, features = planes.shape
    counts = _tile_counts(extents)
    planes = planes.reshape(columns, rows, groups, -1, *counts, features).transpose(3, 4, 1, 5, 0, 2, 6)
    maps = planes.reshape(-1, counts[0] * rows, counts[1] * columns, groups * features)
    return maps[:, : extents[0], : extents[1]]


def _tile_counts(extents: Extents) -> Extents:
    """Rows and columns of tiles for that many outputs."""
    return -(-extents[0] // OUTPUTS), -(-extents[1] // OUTPUTS)


def _image_bytes(kernel: Kernel, groups: int, extents: Extents) -> int:
    """Memory that the transformed tiles of one image and of its outputs take."""
    size, _, channels, features = kernel.shape
    return math.prod(_tile_counts(extents)) * (OUTPUTS + size - 1) ** 2 * (groups * channels + features) * 4


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _sum_type(x: Array) -> Any:
    """The type in which products are added up: at least float32."""
    return np.promote_types(x.dtype, np.float32)
