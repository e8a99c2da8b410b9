"""Convolution by tiles against XLA's in float64, and two towers against a loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models.presets import PRESETS
from alexnet_jax.ops import convolution, pooling
from alexnet_jax.ops.convolution import Padding, conv, conv_by_tiles, conv_by_xla, conv_on_cpu, winograd

Convolve = Callable[..., jax.Array]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def gradients(convolve: Convolve, x: np.ndarray, kernel: np.ndarray, **options: Any) -> tuple[Any, ...]:
    """The output, and what a random gradient of it becomes for the images and for the kernel."""
    output, pull_back = jax.vjp(lambda x, kernel: convolve(x, kernel, **options), jnp.asarray(x), jnp.asarray(kernel))
    return output, *pull_back(jnp.asarray(normal(2, *output.shape), output.dtype))


def assert_as_xla(x: np.ndarray, kernel: np.ndarray, convolve: Convolve = conv_by_tiles, **options: Any) -> None:
    with jax.enable_x64(True):
        ours, expected = gradients(convolve, x, kernel, **options), gradients(conv_by_xla, x, kernel, **options)
        for array, reference in zip(ours, expected, strict=True):
            assert array.dtype == reference.dtype == jnp.float64
            np.testing.assert_allclose(array, reference, rtol=1e-10, atol=1e-10)


def convolutions() -> list[Any]:
    """Each kind of convolution that a preset has: kernel, stride, padding, overhang allowed, groups."""
    kinds: dict[tuple, str] = {}
    for preset, fields in PRESETS.items():
        for number, layer in enumerate(fields["layers"], start=1):
            if layer.kind == "conv":
                groups = fields.get("towers", 1) if layer.own_tower else 1
                kind = (layer.kernel, layer.stride, layer.pad, fields.get("conv_ceil", False), groups)
                kinds.setdefault(kind, f"{preset}-conv{number}")
    return [pytest.param(*kind, id=name) for kind, name in kinds.items()]


@pytest.mark.parametrize("size", [13, 16, 23])
@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil", "groups"), convolutions())
def test_convolutions_of_the_presets(kernel: int, stride: int, pad: int, ceil: bool, groups: int, size: int) -> None:
    padding = tuple(pooling.window_padding(extent, kernel, stride, pad, ceil) for extent in (size, size + 1))
    x, weights = normal(0, 6, size, size + 1, 3 * groups), normal(1, kernel, kernel, 3, 4 * groups)
    assert_as_xla(x, weights, stride=stride, padding=padding, groups=groups)


@pytest.mark.parametrize("batch", [1, 2, 7, 12])
@pytest.mark.parametrize("piece_bytes", [1, 20_000, 1 << 30])
def test_pieces_of_the_batch_change_nothing(batch: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "PIECE_BYTES", piece_bytes)
    x, kernel = normal(0, batch, 7, 9, 4), normal(1, 3, 3, 2, 6)
    assert_as_xla(x, kernel, stride=1, padding=((1, 1), (0, 2)), groups=2)


@pytest.mark.parametrize("taps", [2, 3, 4, 5])
def test_tiles_of_numbers_are_a_correlation(taps: int) -> None:
    to_outputs, of_kernel, of_pixels = map(np.array, winograd(3, taps))
    pixels, kernel = normal(0, taps + 2), normal(1, taps)
    expected = np.correlate(pixels, kernel)
    np.testing.assert_allclose(to_outputs @ ((of_kernel @ kernel) * (of_pixels @ pixels)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("side", "channels", "features", "kernel", "stride", "pad", "groups"),
    [(59, 3, 96, 11, 4, 0, 1), (27, 96, 256, 5, 1, 2, 2), (13, 256, 384, 3, 1, 1, 1), (13, 384, 256, 3, 1, 1, 2)],
    ids=["conv1", "conv2", "conv3", "conv5"],
)
def test_float32_loses_few_digits(
    side: int, channels: int, features: int, kernel: int, stride: int, pad: int, groups: int
) -> None:
    x, weights = normal(0, 2, side, side, channels), normal(1, kernel, kernel, channels // groups, features)
    options = {"stride": stride, "padding": ((pad, pad), (pad, pad)), "groups": groups}
    ours = gradients(conv_on_cpu, x.astype(np.float32), weights.astype(np.float32), **options)
    with jax.enable_x64(True):
        expected = gradients(conv_by_xla, x, weights, **options)
    assert ours[0].dtype == jnp.float32
    for array, reference in zip(ours, expected, strict=True):
        reference = np.asarray(reference)
        assert np.abs(np.asarray(array) - reference).max() <= 2e-5 * np.abs(reference).max()


@pytest.mark.parametrize("convolve", [conv_by_tiles, conv_on_cpu])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        pytest.param(5, 5, 1, ((0, 0), (0, 0)), id="one output"),
        pytest.param(9, 1, 1, ((0, 0), (0, 0)), id="a kernel of one pixel"),
        pytest.param(9, 1, 2, ((0, 0), (0, 0)), id="that skips pixels"),
        pytest.param(9, 3, 5, ((0, 0), (0, 0)), id="a stride that leaves gaps"),
        pytest.param(6, 3, 1, ((4, 3), (5, 0)), id="more padding than kernel"),
        pytest.param(10, 4, 3, ((1, 0), (0, 2)), id="pixels that no window reaches"),
        pytest.param(3, 4, 2, ((2, 2), (1, 2)), id="a kernel larger than the image"),
    ],
)
def test_corner_cases(size: int, kernel: int, stride: int, padding: Padding, convolve: Convolve) -> None:
    x, weights = normal(0, 2, size, size, 4), normal(1, kernel, kernel, 2, 6)
    assert_as_xla(x, weights, convolve, stride=stride, padding=padding, groups=2)


def test_networks_of_a_population_at_once() -> None:
    x, kernels = normal(0, 3, 4, 8, 8, 2).astype(np.float32), normal(1, 3, 3, 3, 2, 5).astype(np.float32)
    options = {"stride": 1, "padding": ((1, 1), (1, 1)), "groups": 1}
    together = jax.vmap(lambda x, kernel: gradients(conv_by_tiles, x, kernel, **options))(x, kernels)
    for number in range(3):
        alone = gradients(conv_by_tiles, x[number], kernels[number], **options)
        for array, reference in zip(together, alone, strict=True):
            np.testing.assert_allclose(array[number], reference, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_added_up_in_float32() -> None:
    x, kernel = np.full((1, 8, 8, 64), 1.0), np.full((3, 3, 64, 2), 1 / 256)
    output, dx, dkernel = gradients(
        lambda x, kernel: conv_by_tiles(x, kernel, 1, ((0, 0), (0, 0)), 1),
        jnp.asarray(x, jnp.bfloat16),
        jnp.asarray(kernel, jnp.bfloat16),
    )
    assert output.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(output, float), 2.25)  # 576 / 256; in bfloat16 the sum would stop growing


def test_the_cpu_takes_tiles_where_there_are_channels_and_others_xla() -> None:
    def lowered(platform: str, channels: int) -> str:
        x, kernel = jnp.zeros((1, 8, 8, channels)), jnp.zeros((3, 3, channels, 4))
        convolve = jax.jit(lambda x, kernel: conv(x, kernel, 1, ((1, 1), (1, 1)), 1))
        return convolve.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.convolution" not in lowered("cpu", 64)
    assert "stablehlo.convolution" in lowered("cpu", 3)
    assert "stablehlo.convolution" in lowered("cuda", 64)


TOWER_INPUTS = normal(0, 2, 7, 6, 4).astype(np.float32)
TOWER_KERNELS = normal(1, 3, 3, 2, 6).astype(np.float32)
TWO_TOWERS = {"stride": 2, "padding": ((1, 2), (0, 1)), "groups": 2}


def conv_loop(x: np.ndarray, kernels: np.ndarray, stride: int, towers: int) -> np.ndarray:
    """Each kernel sees the channels of its own tower alone."""
    x, kernels = np.pad(x.astype(np.float64), ((0, 0), *TWO_TOWERS["padding"], (0, 0))), kernels.astype(np.float64)
    size, _, width, features = kernels.shape
    height, length = ((extent - size) // stride + 1 for extent in x.shape[1:3])
    outputs = np.empty((len(x), height, length, features))
    for i, j, feature in np.ndindex(height, length, features):
        first = feature // (features // towers) * width
        rows, columns = slice(i * stride, i * stride + size), slice(j * stride, j * stride + size)
        window = x[:, rows, columns, first : first + width]
        outputs[:, i, j, feature] = np.sum(window * kernels[..., feature], axis=(1, 2, 3))
    return outputs


@pytest.mark.parametrize("convolve", [conv_by_tiles, conv_on_cpu, conv_by_xla])
def test_towers_against_a_loop(convolve: Convolve) -> None:
    outputs = convolve(jnp.asarray(TOWER_INPUTS), jnp.asarray(TOWER_KERNELS), **TWO_TOWERS)
    expected = conv_loop(TOWER_INPUTS, TOWER_KERNELS, stride=2, towers=2)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tower", "other"), [(0, 1), (1, 0)])
def test_a_tower_does_not_see_the_other(tower: int, other: int) -> None:
    def energy_of_tower(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.split(conv(x, jnp.asarray(TOWER_KERNELS), **TWO_TOWERS), 2, axis=-1)[tower] ** 2)

    gradients = np.split(jax.grad(energy_of_tower)(jnp.asarray(TOWER_INPUTS)), 2, axis=-1)
    assert np.all(gradients[other] == 0)
    assert np.all(gradients[tower] != 0)
