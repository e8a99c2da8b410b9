"""Compares implementations of convolution, including gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.ops.convolution import conv_by_xla
from tests.helpers.arrays import normal64

Convolve = Callable[..., jax.Array]


def gradients(convolve: Convolve, x: np.ndarray, kernel: np.ndarray, **options: Any) -> tuple[Any, ...]:
    """The output, and the gradients of images and kernel for a random gradient of the output."""
    output, pull_back = jax.vjp(lambda x, kernel: convolve(x, kernel, **options), jnp.asarray(x), jnp.asarray(kernel))
    return output, *pull_back(jnp.asarray(normal64(2, *output.shape), output.dtype))


def assert_as_xla(x: np.ndarray, kernel: np.ndarray, convolve: Convolve, **options: Any) -> None:
    with jax.enable_x64(True):
        ours, expected = gradients(convolve, x, kernel, **options), gradients(conv_by_xla, x, kernel, **options)
        for array, reference in zip(ours, expected, strict=True):
            assert array.dtype == reference.dtype == jnp.float64
            np.testing.assert_allclose(array, reference, rtol=1e-10, atol=1e-10)
