"""Pooling against a float64 loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.ops import platforms
from alexnet_jax.ops.normalization import LRN_CONVENTIONS, cross_map_norm
from alexnet_jax.ops.pooling import pool, pool_to_grid
from alexnet_jax.ops.windows import window_padding
from tests.helpers.arrays import normal32

pytestmark = pytest.mark.cpu_kernels


def pool_loop(x: np.ndarray, kind: str, size: int, stride: int, ceil: bool) -> np.ndarray:
    """With `ceil`, windows continue until one reaches the edge; slicing clips what is outside."""

    def starts(extent: int) -> list[int]:
        starts = list(range(0, extent - size + 1, stride))
        return [*starts, starts[-1] + stride] if ceil and starts[-1] + size < extent else starts

    reduce = {"max": np.max, "avg": np.mean}[kind]
    rows, columns = starts(x.shape[1]), starts(x.shape[2])
    pooled = [[reduce(x[:, i : i + size, j : j + size], axis=(1, 2)) for j in columns] for i in rows]
    return np.array(pooled).transpose(2, 0, 1, 3)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("kernel_and_stride", [(3, 2), (2, 2)])
@pytest.mark.parametrize("height", range(5, 10))
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling_ignores_what_lies_outside(
    kind: str, height: int, kernel_and_stride: tuple[int, int], ceil: bool
) -> None:
    # Below zero everywhere, so that zeros outside the map would win each maximum and raise each average.
    x = -1 - np.abs(normal32(0, 2, height, 15 - height, 3))
    pooled = pool(jnp.asarray(x), kind, *kernel_and_stride, ceil)
    np.testing.assert_allclose(pooled, pool_loop(x.astype(np.float64), kind, *kernel_and_stride, ceil), rtol=1e-6)


@pytest.mark.parametrize("accelerators", [False, True])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(3, 2), (2, 2), (3, 1)])
@pytest.mark.parametrize("height", [7, 8])
def test_gradient_of_equal_maxima_goes_to_the_first_as_in_xla(
    height: int, size: int, stride: int, ceil: bool, accelerators: bool
) -> None:
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, height, 9, 3)), jnp.float32)

    def by_xla(x: jax.Array) -> jax.Array:
        padding = [window_padding(extent, size, stride, 0, ceil) for extent in x.shape[1:3]]
        window, strides = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, ((0, 0), *padding, (0, 0)))

    with platforms.fast_compilation(accelerators):
        pooled, pull_back = jax.vjp(lambda x: pool(x, "max", size, stride, ceil), x)
        dy = jnp.asarray(normal32(1, *pooled.shape))
        (dx,) = pull_back(dy)
    expected, pull_back_expected = jax.vjp(by_xla, x)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(dx, pull_back_expected(dy)[0], rtol=1e-6, atol=1e-6)


def test_what_is_computed_again_within_pooling_changes_nothing() -> None:
    normalize = functools.partial(cross_map_norm, lrn=LRN_CONVENTIONS["caffe"])
    x = jnp.asarray(-np.abs(normal32(0, 2, 6, 7, 4, std=300)))  # below zero, so that padding would win
    dy = jnp.asarray(normal32(1, 2, 4, 4, 4))

    @functools.partial(jax.jit, static_argnums=1)
    def pooled(x: jax.Array, again: bool) -> tuple[jax.Array, jax.Array]:
        def function(x: jax.Array) -> jax.Array:
            return pool(normalize(x), "max", 3, 2, True, 1, (x, normalize) if again else None)

        y, pull_back = jax.vjp(function, x)
        return y, pull_back(dy)[0]

    with platforms.fast_compilation():
        for found, expected in zip(pooled(x, True), pooled(x, False), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_no_part_of_an_average(stride: int) -> None:
    ones = jnp.ones((1, 5, 6, 2))
    pooled = pool(ones, "avg", 3, stride, False, pad=1)
    assert pooled.shape == pool(ones, "max", 3, stride, False, pad=1).shape
    np.testing.assert_allclose(pooled, 1.0, rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_never_is_the_maximum(stride: int) -> None:
    x = -1 - np.abs(normal32(0, 2, 6, 7, 3))
    around = np.pad(x.astype(np.float64), [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    pooled = pool(jnp.asarray(x), "max", 3, stride, False, pad=1)
    np.testing.assert_allclose(pooled, pool_loop(around, "max", 3, stride, False), rtol=1e-6)
    gradient = jax.grad(lambda x: pool(x, "max", 3, stride, False, pad=1).sum())(jnp.asarray(x))
    assert float(gradient.sum()) == pooled.size  # none of it is lost in the padding


def test_cells_of_a_grid_overlap_where_they_must() -> None:
    x = normal32(0, 2, 7, 8, 3)
    pooled = pool_to_grid(jnp.asarray(x), 4)
    rows, columns = [(0, 2), (1, 4), (3, 6), (5, 7)], [(0, 2), (2, 4), (4, 6), (6, 8)]
    expected = [[x[:, a:b, c:d].mean(axis=(1, 2)) for c, d in columns] for a, b in rows]
    np.testing.assert_allclose(pooled, np.array(expected).transpose(2, 0, 1, 3), atol=1e-6)
