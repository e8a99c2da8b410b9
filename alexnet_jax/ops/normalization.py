"""Local response normalisation, across channels and within each channel.

The sources "paper", "CHM" and "Caffe" are explained in `models/presets.py`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.ops.platforms import by_platform, map_chunks
from alexnet_jax.ops.windows import NHWC

Window = tuple[int, int, int]
"""Rows, columns and channels of the window centred on each activation; odd numbers."""


@dataclasses.dataclass(frozen=True)
class LRN:
    """Local response normalisation across channels: b_i = a_i / (k + alpha * sum_j a_j^2)^(3/4), paper section 3.3.

    The sum runs over the `size` channels centred on i, clipped at the first and the last channel.

    Attributes:
      k: the constant of the denominator.
      alpha: the factor of squared activations, after division by the size in codes that divide it.
      size: number of channels in the window, odd.
      per_tower: windows do not cross from one tower to the other.
    """

    k: float
    alpha: float
    size: int = 5
    per_tower: bool = False


LRN_CONVENTIONS = {
    # CHM layers/layer-params-145.cfg: scale=0.0001 minDiv=2 pow=0.75; layer.py:1183 divides scale by size=5; one
    # [rnorm1a] and one [rnorm1b], so that no window crosses the towers.
    "source": LRN(k=2.0, alpha=1e-4 / 5, per_tower=True),
    # Paper section 3.3: k=2, n=5, alpha=1e-4, beta=0.75; N is the number of kernels in the layer.
    "paper": LRN(k=2.0, alpha=1e-4),
    # Caffe models/bvlc_alexnet/train_val.prototxt: alpha 1e-4, local_size 5; lrn_layer.cpp divides alpha by the size;
    # k keeps its default 1 (caffe.proto).
    "caffe": LRN(k=1.0, alpha=1e-4 / 5),
}


def cross_map_norm(x: NHWC, lrn: LRN, towers: int = 1) -> NHWC:
    """Normalises over neighbouring channels at the same position; see `LRN` for the formula.

    Args:
      x: activations.
      lrn: the constants.
      towers: number of towers whose channels x holds.
    """
    if lrn.per_tower and towers > 1:
        by_tower = jnp.split(x, towers, axis=-1)
        return jnp.concatenate([cross_map_norm(maps, lrn) for maps in by_tower], axis=-1)
    return _normalize(x, (1, 1, lrn.size), lrn.k, lrn.alpha)


def within_map_norm(x: NHWC, size: int, alpha: float) -> NHWC:
    """Normalises over a size x size window within each channel, zero-padded: a / (1 + alpha * sum a^2)^(3/4).

    The "rnorm" layer of the 2012 source (CHM layer.py:1183: the nominal scale divided by size squared).
    """
    return _normalize(x, (size, size, 1), 1.0, alpha)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _normalize(x: NHWC, window: Window, k: float, alpha: float) -> NHWC:
    """x / d^(3/4) with d = k + alpha * (sum of x^2 over the window around each activation), in float32."""

    def forward(x: NHWC) -> NHWC:
        wide = x.astype(np.promote_types(x.dtype, np.float32))
        _, factor = _energy_and_factor(wide, window, k, alpha)
        return (wide * factor).astype(x.dtype)

    return _each_image(forward, x)


def _normalize_backward(window: Window, k: float, alpha: float, x: NHWC, dy: NHWC) -> tuple[NHWC]:
    """dx = dy / d^(3/4) - 3/2 alpha x * (sum of dy x / d^(7/4) over the window); recomputes d from x."""

    def backward(x: NHWC, dy: NHWC) -> NHWC:
        wide, dy = (array.astype(np.promote_types(x.dtype, np.float32)) for array in (x, dy))
        energy, factor = _energy_and_factor(wide, window, k, alpha)
        dx = dy * factor - 1.5 * alpha * wide * _window_sum(dy * wide * factor / energy, window)
        return dx.astype(x.dtype)

    return (_each_image(backward, x, dy),)


_normalize.defvjp(lambda x, *options: (_normalize(x, *options), x), _normalize_backward)


def _energy_and_factor(x: NHWC, window: Window, k: float, alpha: float) -> tuple[NHWC, NHWC]:
    """d and d^(-3/4); the power by square roots, which is as exact as `pow` and much faster."""
    energy = k + alpha * _window_sum(x * x, window)
    root = lax.rsqrt(energy)
    return energy, root * jnp.sqrt(root)


def _window_sum(x: NHWC, window: Window) -> NHWC:
    """The sum over a zero-padded window around each position, one axis after the other."""
    for axis, size in enumerate(window, start=1):
        config = [(size // 2, size // 2, 0) if number == axis else (0, 0, 0) for number in range(x.ndim)]
        padded, extent = lax.pad(x, jnp.zeros((), x.dtype), config), x.shape[axis]
        shifted = [lax.slice_in_dim(padded, start, start + extent, axis=axis) for start in range(size)]
        x = functools.reduce(jnp.add, shifted)
    return x


def _each_image(function: Callable[..., NHWC], *arrays: NHWC) -> NHWC:
    """Applies a function that treats each image separately; on the CPU in chunks that fit into its cache."""
    image_bytes = 8 * math.prod(arrays[0].shape[1:]) * arrays[0].itemsize
    return by_platform(*arrays, cpu=functools.partial(map_chunks, function, image_bytes), default=function)
