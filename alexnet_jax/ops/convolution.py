"""2-D convolution: XLA's operation on accelerators, Winograd's algorithm on the CPU where it is faster.

On the CPU, XLA's convolution is 5 to 10 times slower than necessary for grouped convolutions and for a first layer with
few channels. `benchmarks/train_step.py` measures the gain.
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
"""Fewest channels per group for which Winograd's algorithm is faster than XLA."""

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
    cpu, default = functools.partial(conv_on_cpu, **options), functools.partial(conv_by_xla, **options)
    return by_platform(x, kernel, cpu=cpu, default=default)


def conv_by_xla(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """`conv` as a single XLA operation."""
    return _convolve(x, kernel, (stride, stride), padding, feature_group_count=groups)


def conv_on_cpu(x: NHWC, kernel: Kernel, stride: int, padding: Padding, groups: int) -> NHWC:
    """`conv` by Winograd's algorithm, or by XLA one group at a time where that is faster."""
    steps = -(-kernel.shape[0] // stride)  # rows of the kernel once stride x stride blocks of pixels are channels
    if 2 <= steps <= MAX_ROWS and kernel.shape[2] * stride**2 >= MIN_CHANNELS:
        return conv_by_tiles(x, kernel, stride, padding, groups)
    by_group = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([_conv_in_loops(*group, stride, padding) for group in by_group], axis=-1)


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
