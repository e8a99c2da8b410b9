"""Biases and their gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.ops.activations import relu
from alexnet_jax.ops.bias import add_bias


def test_the_gradient_of_a_bias_is_summed_in_float32() -> None:
    x, bias = jnp.zeros((2, 20, 20, 3), jnp.bfloat16), jnp.array([0.0, 1.0, 2.0])
    y, pull_back = jax.vjp(add_bias, x, bias)
    np.testing.assert_array_equal(y[1, 7, 9], bias)
    dx, dbias = pull_back(jnp.ones_like(y))
    assert dx.dtype == jnp.bfloat16
    np.testing.assert_array_equal(dbias, [800.0] * 3)  # in bfloat16, 256 + 1 is 256


def test_a_bias_at_each_place() -> None:
    bias = jnp.arange(12.0).reshape(2, 2, 3)
    y, pull_back = jax.vjp(add_bias, jnp.ones((5, 2, 2, 3)), bias)
    np.testing.assert_array_equal(y[3], 1 + bias)
    np.testing.assert_array_equal(pull_back(y)[1], y.sum(axis=0))


def test_relu_has_no_gradient_at_zero() -> None:
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu))(jnp.array([-1.0, -0.0, 0.0, 2.0])), [0.0, 0.0, 0.0, 1.0])
