"""2-D convolution: XLA's operation on accelerators, Winograd's algorithm on the CPU where it is faster.

On the CPU, XLA's convolution is 5 to 10 times slower than necessary for grouped convolutions and for a first layer with
few channels. `benchmarks/train_step.py` measures the gain.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from alexnet_jax.ops.platforms import by_platform
from alexnet_jax.ops.windows import NHWC, Kernel, Padding, pad_maps
from alexnet_jax.ops.winograd import MAX_ROWS, NO_PADDING, conv_by_tiles, fold_stride

MIN_INPUTS = 432
"""Fewest inputs of an output, 3 x 3 pixels of 48 channels, for which Winograd's algorithm is faster than XLA."""

MAX_CHANNELS_OF_BLOCKS = 6
"""Most channels for which several columns of outputs at a time are faster than one."""

_convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """Computes a 2-D convolution (cross-correlation).

    Args:
      x: images or feature maps.
      kernel: a square kernel; the g-th group of features sees the g-th group of channels.
      stride: the stride in both directions, in pixels.
      padding: rows of zeros to add above and below, columns to add left and right.
      groups: number of equal groups of channels and features.
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "groups": groups}
    cpu, default = functools.partial(conv_on_cpu, **options), functools.partial(conv_on_accelerators, **options)
    return by_platform(x, kernel, cpu=cpu, default=default)


def conv_on_accelerators(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """`conv_by_xla`, of a stride as large as the kernel allows after moving blocks of pixels into few channels.

    Matrix units multiply 8 to 128 channels at a time: images, of 3, would leave most of them idle.
    """
    if stride > 1 and groups == 1 and kernel.shape[2] <= MAX_CHANNELS_OF_BLOCKS:
        x, kernel = fold_stride(x, kernel, stride, padding, groups)
        stride, padding = 1, NO_PADDING
    return conv_by_xla(x, kernel, stride, padding, groups)


def conv_by_xla(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """`conv` as a single XLA operation."""
    return _convolve(x, kernel, (stride, stride), padding, feature_group_count=groups)


def conv_on_cpu(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """`conv` by Winograd's algorithm, or by XLA one group at a time where that is faster."""
    steps = -(-kernel.shape[0] // stride)  # rows of the kernel once stride x stride blocks of pixels are channels
    if 2 <= steps <= MAX_ROWS and kernel.shape[2] * (steps * stride) ** 2 >= MIN_INPUTS:
        return conv_by_tiles(x, kernel, stride, padding, groups)
    if groups == stride == 1 and kernel.shape[2] <= MAX_CHANNELS_OF_BLOCKS:
        return _conv_by_columns(x, kernel, padding, columns=max(1, min(4, 128 // kernel.shape[3])))
    by_group = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([_conv_in_loops(*group, stride, padding) for group in by_group], axis=-1)


def conv_local(x: NHWC, kernels: Array, size: int, stride: int, padding: Padding) -> NHWC:
    """Computes a convolution with kernels of its own at each place: one matrix product per place.

    Args:
      x: feature maps.
      kernels: [rows, columns, channels x size x size, features], by rows and columns of the output.
      size: side of a kernel in pixels.
      stride, padding: as for `conv`.
    """
    rows, columns, inputs, features = kernels.shape
    x = pad_maps(x, padding).transpose(1, 2, 0, 3)
    pixels = [
        x[row : row + (rows - 1) * stride + 1 : stride, column : column + (columns - 1) * stride + 1 : stride]
        for row in range(size)
        for column in range(size)
    ]
    by_pixel = kernels.reshape(rows, columns, -1, size * size, features).swapaxes(2, 3)
    maps = jnp.concatenate(pixels, axis=-1) @ by_pixel.reshape(rows, columns, inputs, features)
    return maps.transpose(2, 0, 1, 3)


def _conv_by_columns(x: NHWC, kernel: Kernel, padding: Padding, columns: int) -> NHWC:
    """`conv_by_xla` of stride 1 that computes adjacent columns of outputs as features of one wider kernel.

    Adjacent columns of pixels become channels. The matrix products are then several times as wide, which for few
    channels and features outweighs the zeros around the shifted kernels.
    """
    size, channels, features = kernel.shape[0], kernel.shape[2], kernel.shape[3]
    (above, below), (left, right) = padding
    outputs = x.shape[2] + left + right - size + 1
    cells, reach = -(-outputs // columns), -(-(size + columns - 1) // columns)
    width = (cells + reach - 1) * columns
    x = pad_maps(x, [(above, below), (left, width - left - x.shape[2])])
    x = x.reshape(*x.shape[:2], width // columns, columns * channels)
    shifted = [
        jnp.pad(kernel, ((0, 0), (column, reach * columns - size - column), (0, 0), (0, 0)))
        for column in range(columns)
    ]
    wide = jnp.stack(shifted, axis=3).reshape(size, reach, columns * channels, columns * features)
    maps = _conv_in_loops(x, wide, 1, NO_PADDING)
    return maps.reshape(*maps.shape[:2], cells * columns, features)[:, :, :outputs]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_in_loops(x: NHWC, kernel: Kernel, stride: int, padding: Padding) -> NHWC:
    """`conv_by_xla` of one group, with gradients that are as fast inside a loop as outside.

    XLA's fast CPU convolution requires NHWC operands. XLA transposes the operands of other convolutions only outside
    loops; JAX's gradients are such convolutions, and are 20 times slower inside a loop.
    """
    return conv_by_xla(x, kernel, stride, padding, 1)


def _conv_in_loops_forward(x: NHWC, kernel: Kernel, stride: int, padding: Padding) -> tuple[NHWC, tuple[NHWC, Kernel]]:
    return _conv_in_loops(x, kernel, stride, padding), (x, kernel)


def _conv_in_loops_backward(stride: int, padding: Padding, saved: tuple[NHWC, Kernel], dy: NHWC) -> tuple[NHWC, Kernel]:
    """Both gradients as NHWC convolutions: dy with the rotated kernel, and x with dy as the kernel."""
    x, kernel = saved
    around_dy, around_x = [], []
    for size, extent, outputs, (before, _) in zip(kernel.shape[:2], x.shape[1:3], dy.shape[1:3], padding, strict=True):
        missing = (outputs - 1) * stride + size - extent  # pixels by which the last window exceeds the image
        around_dy.append((size - 1 - before, size - 1 - missing + before))
        around_x.append((before, missing - before))
    strides = (stride, stride)
    dx = _convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), around_dy, lhs_dilation=strides)
    dkernel = _convolve(x.swapaxes(0, 3), dy.transpose(1, 2, 0, 3), (1, 1), around_x, rhs_dilation=strides)
    return dx, dkernel.transpose(1, 2, 0, 3)


_conv_in_loops.defvjp(_conv_in_loops_forward, _conv_in_loops_backward)
