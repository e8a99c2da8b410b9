"""Layers against independent float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax.errors import UserError
from alexnet_jax.models.presets import PRESETS
from alexnet_jax.ops import dropout, normalization, pooling
from alexnet_jax.ops.normalization import LRN, LRN_CONVENTIONS


def normal(seed: int, *shape: int, std: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=std, size=shape).astype(np.float32)


# Response normalisation


def cross_map_loop(x: np.ndarray, k: float, alpha: float, size: int, towers: int) -> np.ndarray:
    """Normalises over the `size` channels around each, as far as they lie in its tower."""
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
    x = normal(0, 2, 3, 4, channels, std=std)
    # The network always tells how many towers it has; the convention decides whether that matters.
    normalised = normalization.cross_map_norm(jnp.asarray(x), lrn, towers=2)
    np.testing.assert_allclose(normalised, cross_map_loop(x, k, alpha, size, separate_towers), rtol=1e-6)


def test_cross_map_norm_of_the_source_with_one_tower() -> None:
    x = normal(0, 2, 3, 4, 13, std=500)
    normalised = normalization.cross_map_norm(jnp.asarray(x), LRN_CONVENTIONS["source"], towers=1)
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
    x = normal(0, 2, 7, 6, 3, std=std)
    normalised = normalization.within_map_norm(jnp.asarray(x), size, alpha=1e-3 / size**2)
    np.testing.assert_allclose(normalised, within_map_loop(x, size, alpha=1e-3 / size**2), rtol=1e-6)


@pytest.mark.parametrize("std", [1, 500])
@pytest.mark.parametrize("window", [(1, 1, 5), (3, 3, 1), (5, 5, 1)])
def test_gradient_of_normalisation_against_autodiff(window: tuple[int, int, int], std: float) -> None:
    def formula(x: jax.Array) -> jax.Array:
        padding = ((0, 0), *((side // 2, side // 2) for side in window))
        energy = lax.reduce_window(x * x, 0.0, lax.add, (1, *window), (1, 1, 1, 1), padding)
        return x / (2.0 + 1e-3 * energy) ** 0.75

    with jax.enable_x64(True):
        x, dy = (jnp.asarray(normal(seed, 2, 7, 6, 9, std=std), jnp.float64) for seed in (0, 1))
        _, pull_back = jax.vjp(lambda x: normalization._normalize(x, window, 2.0, 1e-3), x)
        _, expected = jax.vjp(formula, x)
        np.testing.assert_allclose(pull_back(dy)[0], expected(dy)[0], rtol=1e-9, atol=1e-12)


# Windows


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "ceil", "outputs", "padding"),
    [
        pytest.param(224, 11, 4, 0, True, 55, (0, 3), id="conv1 of the source"),
        pytest.param(227, 11, 4, 0, False, 55, (0, 0), id="conv1 of Caffe"),
        pytest.param(224, 11, 4, 2, False, 55, (2, 2), id="conv1 of torchvision"),
        pytest.param(224, 11, 4, 0, False, 54, (0, 0), id="conv1 as printed falls short of 55"),
        pytest.param(55, 3, 2, 0, False, 27, (0, 0), id="pool1"),
        pytest.param(5, 2, 2, 0, True, 3, (0, 1), id="a window with one pixel inside"),
    ],
)
def test_window_padding(
    size: int, kernel: int, stride: int, pad: int, ceil: bool, outputs: int, padding: tuple[int, int]
) -> None:
    assert pooling.output_size(size, kernel, stride, pad, ceil) == outputs
    assert pooling.window_padding(size, kernel, stride, pad, ceil) == padding


@pytest.mark.parametrize("ceil", [False, True])
def test_maps_of_67_pixels_need_no_rounding(ceil: bool) -> None:
    windows = {67: (11, 4), 15: (3, 2), 7: (3, 2), 3: (3, 2)}
    assert [pooling.output_size(size, *window, 0, ceil) for size, window in windows.items()] == [15, 7, 3, 1]
    assert all(pooling.window_padding(size, *window, 0, ceil) == (0, 0) for size, window in windows.items())


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("size", "kernel", "stride", "pad"), [(1, 3, 2, 0), (2, 3, 2, 0), (2, 5, 1, 1), (8, 11, 4, 1)])
def test_window_that_does_not_fit(size: int, kernel: int, stride: int, pad: int, ceil: bool) -> None:
    with pytest.raises(UserError, match=f"{kernel}x{kernel} window does not fit into a {size}x{size} map"):
        pooling.window_padding(size, kernel, stride, pad, ceil)


def pool_loop(x: np.ndarray, kind: str, size: int, stride: int, ceil: bool) -> np.ndarray:
    """With `ceil`, windows go on until one reaches the edge; slicing cuts off what lies outside."""

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
    x = -1 - np.abs(normal(0, 2, height, 15 - height, 3))
    pooled = pooling.pool(jnp.asarray(x), kind, *kernel_and_stride, ceil)
    np.testing.assert_allclose(pooled, pool_loop(x.astype(np.float64), kind, *kernel_and_stride, ceil), rtol=1e-6)


# Dropout


def keys_of(examples: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), examples)


def test_mask_of_an_example_is_the_same_in_any_batch() -> None:
    x, keys = jnp.asarray(normal(0, 8, 3, 5)), keys_of(8)
    together = dropout.dropout(x, keys, 0.5, "2012")
    some = jnp.array([6, 1, 4])
    np.testing.assert_array_equal(dropout.dropout(x[some], keys[some], 0.5, "2012"), together[some])


def test_each_key_has_its_own_mask() -> None:
    masks = dropout.dropout(jnp.ones((16, 64)), keys_of(16), 0.5, "2012")
    assert len(np.unique(masks, axis=0)) == 16


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_rate_is_the_share_of_dropped_units(rate: float) -> None:
    dropped = dropout.dropout(jnp.ones((100, 200)), keys_of(100), rate, "2012") == 0
    deviation = np.sqrt(rate * (1 - rate) / dropped.size)
    assert abs(dropped.mean() - rate) < 5 * deviation


@pytest.mark.parametrize("convention", ["2012", "inverted"])
@pytest.mark.parametrize("training", [True, False])
def test_rate_0_changes_nothing(training: bool, convention: str) -> None:
    x = normal(0, 4, 10)
    outputs = dropout.dropout(jnp.asarray(x), keys_of(4) if training else None, 0.0, convention)
    np.testing.assert_array_equal(outputs, x)


@pytest.mark.parametrize(("convention", "factor"), [("2012", 0.75), ("inverted", 1)])
def test_testing_needs_no_keys(convention: str, factor: float) -> None:
    x = normal(0, 4, 10)
    np.testing.assert_array_equal(dropout.dropout(jnp.asarray(x), None, 0.25, convention), factor * x)
