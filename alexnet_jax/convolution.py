"""Convolution in two formulations: XLA's own on accelerators, matrix products over cache-sized pieces on the CPU.

XLA's convolution on the CPU is up to 20 times off the pace in groups, in gradients and in a first layer of few
channels. Here each convolution and both of its gradients become products with rows of patches that are made, used and
forgotten while they lie in the cache. `benchmarks/train_step.py` measures what that gains.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "batch _height _width _channel"]
Kernel = Float[Array, "_rows _columns _channel_of_group _feature"]
Padding = tuple[tuple[int, int], tuple[int, int]]

PIECE_BYTES = 2 << 20
"""Patches made at a time: few enough for the cache, enough for a matrix product to be efficient."""

MIN_DEPTH = 96
"""The shortest sum of products that a matrix product of its own is worth; shorter ones are joined to one."""


def conv(x: Images, kernel: Kernel, stride: int, padding: Padding, groups: int) -> Images:
    """Correlates images with a kernel, as networks mean by convolution.

    Args:
      x: images or maps.
      kernel: a square window; the g-th part of the features sees the g-th part of the channels.
      stride: pixels between windows, in both directions.
      padding: rows of zeros above and below, columns left and right.
      groups: parts into which channels and features are split.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(conv_by_products, stride=stride, padding=padding, groups=groups),
        default=functools.partial(conv_by_xla, stride=stride, padding=padding, groups=groups),
    )


def conv_by_xla(x: Images, kernel: Kernel, stride: int, padding: Padding, groups: int) -> Images:
    """`conv` as one XLA operation."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=dimensions, feature_group_count=groups
    )


def conv_by_products(x: Images, kernel: Kernel, stride: int, padding: Padding, groups: int) -> Images:
    """`conv` as matrix products, with gradients as matrix products."""
    if stride > 1:
        x, kernel = _fold_stride(x, kernel, stride, padding, groups)
        padding = ((0, 0), (0, 0))
    return _unit_conv(x, kernel, padding, groups)


def _fold_stride(x: Images, kernel: Kernel, stride: int, padding: Padding, groups: int) -> tuple[Images, Kernel]:
    """Moves stride x stride squares of pixels into channels: what was a stride is then a step to the next pixel."""
    size = kernel.shape[0]
    cells = -(-size // stride)
    config: list[tuple[int, int, int]] = [(0, 0, 0)]
    for extent, (before, after) in zip(x.shape[1:3], padding, strict=True):
        outputs = (extent + before + after - size) // stride + 1
        config.append((before, (outputs + cells - 1) * stride - extent - before, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), (*config, (0, 0, 0)))
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // stride, stride, width // stride, stride, groups, channels // groups)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6).reshape(batch, height // stride, width // stride, -1)
    missing = cells * stride - size
    kernel = jnp.pad(kernel, ((0, missing), (0, missing), (0, 0), (0, 0)))
    kernel = kernel.reshape(cells, stride, cells, stride, *kernel.shape[2:])
    return x, kernel.transpose(0, 2, 1, 3, 4, 5).reshape(cells, cells, -1, kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _unit_conv(x: Images, kernel: Kernel, padding: Padding, groups: int) -> Images:
    """A convolution of stride 1."""
    return _correlate(_pad(x, padding), kernel, groups)


def _unit_conv_forward(
    x: Images, kernel: Kernel, padding: Padding, groups: int
) -> tuple[Images, tuple[Images, Kernel]]:
    return _unit_conv(x, kernel, padding, groups), (x, kernel)


def _unit_conv_backward(
    padding: Padding, groups: int, saved: tuple[Images, Kernel], dy: Images
) -> tuple[Images, Kernel]:
    """The gradient of the images is a convolution of dy with the kernel turned around and its channels exchanged."""
    x, kernel = saved
    rows, columns, channels, features = kernel.shape
    turned = kernel[::-1, ::-1].reshape(rows, columns, channels, groups, features // groups)
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(rows, columns, features // groups, groups * channels)
    above, left = rows - 1 - padding[0][0], columns - 1 - padding[1][0]
    below = x.shape[1] + rows - 1 - dy.shape[1] - above
    right = x.shape[2] + columns - 1 - dy.shape[2] - left
    dx = _correlate(_pad(dy, ((above, below), (left, right))), turned, groups)
    return dx, _kernel_gradient(_pad(x, padding), dy, kernel.shape, groups)


_unit_conv.defvjp(_unit_conv_forward, _unit_conv_backward)


def _correlate(x: Images, kernel: Kernel, groups: int) -> Images:
    """A convolution without padding: the sum over rows of the kernel of patches of that row times its weights."""
    rows, columns, _, features = kernel.shape
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    joined = _joined_rows(kernel.shape)
    weights = jnp.split(kernel.reshape(rows // joined, -1, features), groups, axis=-1)

    def of_piece(piece: Images) -> Images:
        outputs = [
            sum(_product(band, of_band) for band, of_band in zip(bands, of_group, strict=True))
            for bands, of_group in zip(_bands(piece, kernel.shape, groups), weights, strict=True)
        ]
        return jnp.concatenate(outputs, axis=-1).astype(x.dtype).reshape(-1, height, width, features)

    pieces = _pieces(x, kernel.shape)
    outputs = lax.map(of_piece, pieces) if len(pieces) > 1 else of_piece(x)
    return outputs.reshape(-1, height, width, features)


def _kernel_gradient(x: Images, dy: Images, shape: tuple[int, ...], groups: int) -> Kernel:
    """For each row of the kernel its patches, transposed, times dy; summed over the pieces of the batch."""
    rows, columns, channels, features = shape

    def add(total: list[Array], piece: tuple[Images, Images]) -> tuple[list[Array], None]:
        parts = jnp.split(piece[1].reshape(-1, features), groups, axis=-1)
        products = [
            _product(band.T, part)
            for bands, part in zip(_bands(piece[0], shape, groups), parts, strict=True)
            for band in bands
        ]
        return jax.tree.map(jnp.add, total, products), None

    pieces = _pieces(x, shape)
    bands_of_group = rows // _joined_rows(shape)
    depth = rows * columns * channels // bands_of_group
    zero = jnp.zeros((depth, features // groups), _sum_type(x))
    totals, _ = lax.scan(
        add, [zero] * (groups * bands_of_group), (pieces, dy.reshape(*pieces.shape[:2], *dy.shape[1:]))
    )
    of_groups = [jnp.concatenate(totals[g * bands_of_group : (g + 1) * bands_of_group]) for g in range(groups)]
    return jnp.concatenate(of_groups, axis=-1).reshape(shape).astype(x.dtype)


def _bands(x: Images, shape: tuple[int, ...], groups: int) -> list[list[Float[Array, "windows depth"]]]:
    """For each group, for each row of the kernel (or for all at once): what the windows see through it, flat."""
    rows, columns, channels, _ = shape
    joined = _joined_rows(shape)
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    patches = [
        jnp.concatenate(
            [
                x[:, row : row + x.shape[1] - joined + 1, column : column + width, g * channels : (g + 1) * channels]
                for row in range(joined)
                for column in range(columns)
            ],
            axis=-1,
        )
        for g in range(groups)
    ]
    # Without the barrier XLA would make the patches anew for each row of the kernel.
    patches = lax.optimization_barrier(patches)
    return [
        [of_group[:, row : row + height].reshape(-1, of_group.shape[-1]) for row in range(0, rows, joined)]
        for of_group in patches
    ]


def _joined_rows(shape: tuple[int, ...]) -> int:
    """Rows of the kernel that one matrix product takes: one or all."""
    rows, columns, channels, _ = shape
    return 1 if columns * channels >= MIN_DEPTH else rows


def _pieces(x: Images, shape: tuple[int, ...]) -> Float[Array, "pieces images height width channel"]:
    """The batch in equal pieces whose patches take about PIECE_BYTES."""
    rows_of_patches = x.shape[1] - _joined_rows(shape) + 1
    of_image = rows_of_patches * (x.shape[2] - shape[1] + 1) * shape[1] * _joined_rows(shape) * x.shape[3] * x.itemsize
    images = max(1, min(len(x), PIECE_BYTES // of_image))
    images = next(size for size in range(images, 0, -1) if len(x) % size == 0)
    return x.reshape(-1, images, *x.shape[1:])


def _product(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    return lax.dot(a, b, preferred_element_type=_sum_type(a))


def _sum_type(x: Array) -> Any:
    """The type in which products are added up: at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _pad(x: Images, padding: Padding) -> Images:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
