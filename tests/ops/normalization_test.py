"""Response normalisation against independent float64 loops, its gradient against autodiff."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.models.presets import PRESETS
from alexnet_jax.ops import normalization, platforms
from alexnet_jax.ops.normalization import LRN, LRN_CONVENTIONS, cross_map_norm, within_map_norm
from tests.helpers.arrays import normal32

pytestmark = pytest.mark.cpu_kernels


@pytest.fixture(autouse=True, params=["CPU", "accelerators"])
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests what the CPU computes, and what accelerators do."""
    with platforms.fast_compilation(request.param == "accelerators"):
        yield


def cross_map_loop(x: np.ndarray, k: float, alpha: float, size: int, towers: int) -> np.ndarray:
    """Normalises over the `size` channels around each channel, within its tower."""
    x, half, width = x.astype(np.float64), size // 2, x.shape[-1] // towers
    normalised = np.empty_like(x)
    for i in range(x.shape[-1]):
        first = i // width * width
        window = x[..., max(i - half, first) : min(i + half + 1, first + width)]
        normalised[..., i] = x[..., i] / (k + alpha * np.sum(window**2, axis=-1)) ** 0.75
    return normalised


# At a standard deviation of 500 the energy outweighs the constant in the denominator; at 1 the constant decides.
@pytest.mark.parametrize("std", [1, 500])
@pytest.mark.parametrize(
    ("lrn", "channels", "k", "alpha", "size", "separate_towers"),
    [
        pytest.param(LRN_CONVENTIONS["source"], 12, 2, 1e-4 / 5, 5, 2, id="source"),
        pytest.param(LRN_CONVENTIONS["source"], 6, 2, 1e-4 / 5, 5, 2, id="towers narrower than a window"),
        pytest.param(LRN_CONVENTIONS["paper"], 12, 2, 1e-4, 5, 1, id="paper"),
        pytest.param(LRN_CONVENTIONS["paper"], 13, 2, 1e-4, 5, 1, id="paper with an odd number of channels"),
        pytest.param(LRN_CONVENTIONS["caffe"], 13, 1, 1e-4 / 5, 5, 1, id="caffe"),
        pytest.param(PRESETS["cifar_11pct"]["lrn"], 13, 1, 1e-3 / 9, 9, 1, id="cifar_11pct"),
    ],
)
def test_cross_map_norm(
    lrn: LRN, channels: int, k: float, alpha: float, size: int, separate_towers: int, std: float
) -> None:
    x = normal32(0, 2, 3, 4, channels, std=std)
    # The network always tells how many towers it has; the convention decides whether that matters.
    normalised = cross_map_norm(jnp.asarray(x), lrn, towers=2)
    np.testing.assert_allclose(normalised, cross_map_loop(x, k, alpha, size, separate_towers), rtol=1e-6)


def test_cross_map_norm_of_the_source_with_one_tower() -> None:
    x = normal32(0, 2, 3, 4, 13, std=500)
    normalised = cross_map_norm(jnp.asarray(x), LRN_CONVENTIONS["source"], towers=1)
    np.testing.assert_allclose(normalised, cross_map_loop(x, 2, 1e-4 / 5, 5, towers=1), rtol=1e-6)


def within_map_loop(x: np.ndarray, size: int, alpha: float) -> np.ndarray:
    x, half = x.astype(np.float64), size // 2
    normalised = np.empty_like(x)
    for i, j in np.ndindex(x.shape[1:3]):
        window = x[:, max(i - half, 0) : i + half + 1, max(j - half, 0) : j + half + 1]
        normalised[:, i, j] = x[:, i, j] / (1 + alpha * np.sum(window**2, axis=(1, 2))) ** 0.75
    return normalised


@pytest.mark.parametrize("std", [1, 500])
@pytest.mark.parametrize("size", [3, 5])
def test_within_map_norm(size: int, std: float) -> None:
    x = normal32(0, 2, 7, 6, 3, std=std)
    normalised = within_map_norm(jnp.asarray(x), size, alpha=1e-3 / size**2)
    np.testing.assert_allclose(normalised, within_map_loop(x, size, alpha=1e-3 / size**2), rtol=1e-6)


@pytest.mark.parametrize("std", [1, 500])
@pytest.mark.parametrize(("window", "towers"), [((1, 1, 5), 1), ((1, 1, 5), 3), ((3, 3, 1), 1), ((5, 5, 1), 1)])
def test_gradient_of_normalisation_against_autodiff(window: tuple[int, int, int], towers: int, std: float) -> None:
    def formula(x: jax.Array) -> jax.Array:
        return jnp.concatenate([of_tower(maps) for maps in jnp.split(x, towers, axis=-1)], axis=-1)

    def of_tower(x: jax.Array) -> jax.Array:
        padding = ((0, 0), *((side // 2, side // 2) for side in window))
        energy = lax.reduce_window(x * x, 0.0, lax.add, (1, *window), (1, 1, 1, 1), padding)
        return x / (2.0 + 1e-3 * energy) ** 0.75

    with jax.enable_x64(True):
        x, dy = (jnp.asarray(normal32(seed, 2, 7, 6, 9, std=std), jnp.float64) for seed in (0, 1))
        _, pull_back = jax.vjp(lambda x: normalization._normalize(x, window, 2.0, 1e-3, towers), x)
        _, expected = jax.vjp(formula, x)
        np.testing.assert_allclose(pull_back(dy)[0], expected(dy)[0], rtol=1e-9, atol=1e-12)


def test_normalisation_of_bfloat16_is_computed_in_float32() -> None:
    @jax.jit
    def both(x: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull_back = jax.vjp(lambda x: cross_map_norm(x, LRN_CONVENTIONS["source"], towers=2), x)
        return y, pull_back(dy)[0]

    arrays = [jnp.asarray(normal32(seed, 2, 4, 3, 12, std=300), jnp.bfloat16) for seed in (0, 1)]
    expected = both(*(array.astype(jnp.float32) for array in arrays))
    for found, wide in zip(both(*arrays), expected, strict=True):
        np.testing.assert_allclose(found.astype(jnp.float32), wide, rtol=2**-8)
