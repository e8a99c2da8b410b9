"""Winograd's convolution against XLA's in float64."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models.presets import PRESETS
from alexnet_jax.ops import platforms
from alexnet_jax.ops.windows import window_padding
from alexnet_jax.ops.winograd import conv_by_tiles, winograd
from tests.helpers.arrays import normal64
from tests.helpers.convolutions import assert_as_xla, gradients

pytestmark = pytest.mark.cpu_kernels


def convolutions() -> list[Any]:
    """Each kind of convolution in the presets: kernel, stride, padding, whether windows may overhang, groups."""
    kinds: dict[tuple, str] = {}
    for preset, fields in PRESETS.items():
        for number, layer in enumerate(fields["layers"], start=1):
            if layer.kind == "conv":
                groups = fields.get("towers", 1) if layer.own_tower else 1
                kind = (layer.kernel, layer.stride, layer.pad, fields.get("conv_ceil", False), groups)
                kinds.setdefault(kind, f"{preset}-conv{number}")
    return [pytest.param(*kind, id=name) for kind, name in kinds.items()]


@pytest.mark.parametrize("size", [13, 23])  # with one more column: all remainders of whole tiles
@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil", "groups"), convolutions())
def test_convolutions_of_the_presets(kernel: int, stride: int, pad: int, ceil: bool, groups: int, size: int) -> None:
    padding = tuple(window_padding(extent, kernel, stride, pad, ceil) for extent in (size, size + 1))
    x, weights = normal64(0, 6, size, size + 1, 3 * groups), normal64(1, kernel, kernel, 3, 4 * groups)
    assert_as_xla(x, weights, conv_by_tiles, stride=stride, padding=padding, groups=groups)


@pytest.mark.parametrize("batch", [1, 2, 7, 12])
@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 1 << 30])
def test_chunks_of_the_batch_change_nothing(batch: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "CHUNK_BYTES", chunk_bytes)
    x, kernel = normal64(0, batch, 7, 9, 4), normal64(1, 3, 3, 2, 6)
    assert_as_xla(x, kernel, conv_by_tiles, stride=1, padding=((1, 1), (0, 2)), groups=2)


@pytest.mark.parametrize("taps", [2, 3, 4, 5])
def test_tiles_of_numbers_are_a_correlation(taps: int) -> None:
    to_outputs, of_kernel, of_pixels = map(np.array, winograd(3, taps))
    pixels, kernel = normal64(0, taps + 2), normal64(1, taps)
    expected = np.correlate(pixels, kernel)
    np.testing.assert_allclose(to_outputs @ ((of_kernel @ kernel) * (of_pixels @ pixels)), expected, atol=1e-12)


def test_bfloat16_is_added_up_in_float32() -> None:
    x, kernel = np.full((1, 8, 8, 64), 1.0), np.full((3, 3, 64, 2), 1 / 256)
    output, dx, dkernel = gradients(
        lambda x, kernel: conv_by_tiles(x, kernel, 1, ((0, 0), (0, 0)), 1),
        jnp.asarray(x, jnp.bfloat16),
        jnp.asarray(kernel, jnp.bfloat16),
    )
    assert output.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(output, float), 2.25)  # 576 / 256; in bfloat16 the sum would stop growing
