"""The implementations of convolution against each other, and two towers against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.ops.convolution import conv, conv_by_xla, conv_on_accelerators, conv_on_cpu
from alexnet_jax.ops.platforms import fast_compilation
from alexnet_jax.ops.windows import Padding
from alexnet_jax.ops.winograd import conv_by_tiles
from tests.helpers.arrays import normal32, normal64
from tests.helpers.convolutions import Convolve, assert_as_xla, gradients

pytestmark = pytest.mark.cpu_kernels


@pytest.mark.parametrize(
    ("side", "channels", "features", "kernel", "stride", "pad", "groups"),
    [
        pytest.param(59, 3, 96, 11, 4, 0, 1, id="conv1", marks=pytest.mark.slow),
        pytest.param(27, 96, 256, 5, 1, 2, 2, id="conv2", marks=pytest.mark.slow),
        pytest.param(13, 256, 384, 3, 1, 1, 1, id="conv3"),
        pytest.param(13, 384, 256, 3, 1, 1, 2, id="conv5", marks=pytest.mark.slow),
    ],
)
def test_float32_loses_few_digits(
    side: int, channels: int, features: int, kernel: int, stride: int, pad: int, groups: int
) -> None:
    x, weights = normal64(0, 2, side, side, channels), normal64(1, kernel, kernel, channels // groups, features)
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
    x, weights = normal64(0, 2, size, size, 4), normal64(1, kernel, kernel, 2, 6)
    assert_as_xla(x, weights, convolve, stride=stride, padding=padding, groups=2)


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((2, 2), (2, 2)), ((0, 3), (1, 0))])
@pytest.mark.parametrize(("columns", "features"), [(9, 6), (10, 40), (7, 200)])
def test_few_channels_by_several_columns(columns: int, features: int, padding: Padding) -> None:
    x, weights = normal64(0, 2, 6, columns, 3), normal64(1, 5, 5, 3, features)
    assert_as_xla(x, weights, conv_on_cpu, stride=1, padding=padding, groups=1)


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((2, 1), (2, 2))])
@pytest.mark.parametrize(("kernel", "stride"), [(5, 2), (3, 4)])
def test_few_channels_in_blocks_of_the_stride(kernel: int, stride: int, padding: Padding) -> None:
    x, weights = normal64(0, 2, 12, 11, 3), normal64(1, kernel, kernel, 3, 4)
    assert_as_xla(x, weights, conv_on_accelerators, stride=stride, padding=padding, groups=1)


def test_the_cpu_takes_tiles_where_there_are_channels_and_others_xla() -> None:
    def lowered(platform: str, channels: int) -> str:
        x, kernel = jnp.zeros((1, 8, 8, channels)), jnp.zeros((3, 3, channels, 4))
        convolve = jax.jit(lambda x, kernel: conv(x, kernel, 1, ((1, 1), (1, 1)), 1))
        return convolve.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.convolution" not in lowered("cpu", 64)
    assert "stablehlo.convolution" in lowered("cpu", 3)
    assert "stablehlo.convolution" in lowered("cuda", 64)
    with fast_compilation():
        assert "stablehlo.convolution" in lowered("cpu", 64)
    assert "stablehlo.convolution" not in lowered("cpu", 64)


TOWER_INPUTS = normal32(0, 2, 7, 6, 4)
TOWER_KERNELS = normal32(1, 3, 3, 2, 6)
TWO_TOWERS = {"stride": 2, "padding": ((1, 2), (0, 1)), "groups": 2}


def conv_loop(x: np.ndarray, kernels: np.ndarray, stride: int, towers: int) -> np.ndarray:
    """Each kernel sees only the channels of its own tower."""
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
