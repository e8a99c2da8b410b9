"""Convolution in two formulations: XLA's own on accelerators, Winograd's tiles on the CPU where they pay.

XLA's convolution on the CPU is 5 to 10 times slower than it could be in groups and in a first layer of few channels.
`benchmarks/train_step.py` measures what the tiles gain.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.ops.platforms import by_platform
from alexnet_jax.ops.windows import NHWC, Kernel, Padding
from alexnet_jax.ops.winograd import MAX_ROWS, conv_by_tiles

MIN_CHANNELS = 48
"""Channels of a group that fill a processor's vectors and the sums of a product; with fewer XLA is faster."""

_convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """Correlates images with a kernel, as networks mean by convolution.

    Args:
      x: images or feature maps.
      kernel: a square window; the g-th group of features sees the g-th group of channels.
      stride: pixels between windows, in both directions.
      padding: rows of zeros above and below, columns left and right.
      groups: into which channels and features are divided equally.
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "groups": groups}
    cpu, default = functools.partial(conv_on_cpu, **options), functools.partial(conv_by_xla, **options)
    return by_platform(x, kernel, cpu=cpu, default=default)


def conv_by_xla(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """`conv` as one XLA operation."""
    return _convolve(x, kernel, (stride, stride), padding, feature_group_count=groups)


def conv_on_cpu(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """`conv` by tiles, or by XLA group by group where tiles do not pay."""
    steps = -(-kernel.shape[0] // stride)  # rows of the kernel once each stride x stride square is one pixel
    if 2 <= steps <= MAX_ROWS and kernel.shape[2] * stride**2 >= MIN_CHANNELS:
        return conv_by_tiles(x, kernel, stride, padding, groups)
    by_group = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([_conv_in_loops(*group, stride, padding) for group in by_group], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_in_loops(x: NHWC, kernel: Kernel, stride: int, padding: Padding) -> NHWC:
    """`conv_by_xla` of one group with gradients that are as fast inside a loop as outside.

    XLA's fast convolution on the CPU wants images, rows, columns, channels in this order. Outside loops alone XLA turns
    the operands of other convolutions around; JAX's gradients are such, and 20 times slower inside.
    """
    return conv_by_xla(x, kernel, stride, padding, 1)


def _conv_in_loops_forward(x: NHWC, kernel: Kernel, stride: int, padding: Padding) -> tuple[NHWC, tuple[NHWC, Kernel]]:
    return _conv_in_loops(x, kernel, stride, padding), (x, kernel)


def _conv_in_loops_backward(stride: int, padding: Padding, saved: tuple[NHWC, Kernel], dy: NHWC) -> tuple[NHWC, Kernel]:
    """Both gradients as convolutions: of dy with the turned kernel, and of x with dy, its windows."""
    x, kernel = saved
    around_dy, around_x = [], []
    for size, extent, outputs, (before, _) in zip(kernel.shape[:2], x.shape[1:3], dy.shape[1:3], padding, strict=True):
        missing = (outputs - 1) * stride + size - extent  # pixels that the windows reach beyond the images
        around_dy.append((size - 1 - before, size - 1 - missing + before))
        around_x.append((before, missing - before))
    strides = (stride, stride)
    dx = _convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), around_dy, lhs_dilation=strides)
    dkernel = _convolve(x.swapaxes(0, 3), dy.transpose(1, 2, 0, 3), (1, 1), around_x, rhs_dilation=strides)
    return dx, dkernel.transpose(1, 2, 0, 3)


_conv_in_loops.defvjp(_conv_in_loops_forward, _conv_in_loops_backward)
