"""Local response normalisation, across channels and within each channel.

The sources "paper", "CHM" and "Caffe" are explained in `models/presets.py`.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax.ops.platforms import by_platform, map_chunks
from alexnet_jax.ops.precision import sum_type
from alexnet_jax.ops.windows import NHWC

Window = tuple[int, int, int]
"""Rows, columns and channels of the window centred on each activation; odd numbers."""

Towers = Float[Array, "batch _rows _columns towers _channel"]
"""Maps with the channels of each tower along an axis of their own."""

HERE: Window = (0, 0, 0)
"""The place of an activation itself."""


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
    return _normalize(x, (1, 1, lrn.size), lrn.k, lrn.alpha, towers if lrn.per_tower else 1)


@jax.named_scope("map_norm")
def within_map_norm(x: NHWC, size: int, alpha: float) -> NHWC:
    """Normalises over a size x size window within each channel, zero-padded: a / (1 + alpha * sum a^2)^(3/4).

    The "rnorm" layer of the 2012 source (CHM layer.py:1183: the nominal scale divided by size squared).
    """
    return _normalize(x, (size, size, 1), 1.0, alpha, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _normalize(x: NHWC, window: Window, k: float, alpha: float, towers: int) -> NHWC:
    """x / d^(3/4) with d = k + alpha * (sum of x^2 over the window around each activation), in float32."""

    def in_chunks(x: NHWC) -> NHWC:
        wide = _wide(x)
        _, factor = _energy_and_factor(wide, window, k, alpha)
        return (wide * factor).astype(x.dtype)

    def in_one_pass(x: Towers) -> Towers:
        energy = k + alpha * _sum_of_squares(x, window)
        return (_wide(x) * _power(energy, 3)).astype(x.dtype)

    return _each_tower(in_chunks, in_one_pass, towers, x)


def _normalize_backward(window: Window, k: float, alpha: float, towers: int, x: NHWC, dy: NHWC) -> tuple[NHWC]:
    """dx = dy / d^(3/4) - 3/2 alpha x * (sum of dy x / d^(7/4) over the window); recomputes d from x."""

    def in_chunks(x: NHWC, dy: NHWC) -> NHWC:
        wide, dy = _wide(x), _wide(dy)
        energy, factor = _energy_and_factor(wide, window, k, alpha)
        dx = dy * factor - 1.5 * alpha * wide * _window_sum(dy * wide * factor / energy, window)
        return dx.astype(x.dtype)

    def in_few_passes(x: Towers, dy: Towers) -> Towers:
        x = lax.optimization_barrier(x)  # or XLA would keep the sums of the forward pass, in float32

        def term(place: tuple[int, ...] = HERE) -> Towers:
            energy = k + alpha * _sum_of_squares(x, window, place)
            return _shifted(dy, place) * _shifted(x, place) * _power(energy, 7)

        if window[2] > 1:  # one pass: the terms of neighbouring channels are computed again
            terms = [term(place) for place in _places(window)]
        else:  # too many to compute again
            whole = lax.optimization_barrier(term())
            x = lax.optimization_barrier(x)
            terms = [_shifted(whole, place) for place in _places(window)]
        factor = _power(k + alpha * _sum_of_squares(x, window), 3)
        dx = _wide(dy) * factor - 1.5 * alpha * _wide(x) * functools.reduce(jnp.add, terms)
        return dx.astype(x.dtype)

    return (_each_tower(in_chunks, in_few_passes, towers, x, dy),)


_normalize.defvjp(lambda x, *options: (_normalize(x, *options), x), _normalize_backward)


def _each_tower(in_chunks: Callable[..., NHWC], in_one_pass: Callable[..., Towers], towers: int, *arrays: NHWC) -> NHWC:
    """Applies a function to the channels of each tower.

    On the CPU it is `in_chunks`, image by image in chunks that fit into the cache, one tower after the other. Elsewhere
    it is `in_one_pass`, which XLA compiles into one kernel that reads each array once, if every sum over a window is
    written as a sum of shifted arrays.
    """
    shape = arrays[0].shape

    def cpu(*arrays: NHWC) -> NHWC:
        image_bytes = 8 * math.prod(shape[1:]) // towers * arrays[0].itemsize
        by_tower = zip(*(jnp.split(array, towers, axis=-1) for array in arrays), strict=True)
        return jnp.concatenate([map_chunks(in_chunks, image_bytes, *maps) for maps in by_tower], axis=-1)

    def default(*arrays: NHWC) -> NHWC:
        return in_one_pass(*(array.reshape(*shape[:3], towers, -1) for array in arrays)).reshape(shape)

    return by_platform(*arrays, cpu=cpu, default=default)


def _wide(x: Array) -> Array:
    """x in float32, or wider if it is wider."""
    return x.astype(sum_type(x))


def _places(window: Window) -> Iterator[tuple[int, ...]]:
    """The distances in rows, columns and channels from the centre of a window to each of its activations."""
    return itertools.product(*(range(-(side // 2), side // 2 + 1) for side in window))


def _shifted(x: Towers, place: tuple[int, ...]) -> Towers:
    """For each activation the one at that distance, 0 outside of the maps, in float32."""
    rows, columns, channels = ((-distance, distance, 0) for distance in place)
    return _wide(lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), rows, columns, (0, 0, 0), channels)))


def _sum_of_squares(x: Towers, window: Window, place: tuple[int, ...] = HERE) -> Towers:
    """For each activation the sum of squares over the window around the one at that distance."""
    squares = [jnp.square(_shifted(x, tuple(map(operator.add, place, offset)))) for offset in _places(window)]
    return functools.reduce(jnp.add, squares)


def _power(energy: Array, quarters: int) -> Array:
    """energy^(-3/4) or energy^(-7/4)."""
    root = lax.rsqrt(energy)
    fourth = lax.rsqrt(energy * root)
    return root * fourth if quarters == 3 else root**3 * fourth


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
