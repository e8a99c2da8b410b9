"""Addition of biases, whose gradients are sums over many values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alexnet_jax.ops.precision import sum_type

Values = Float[Array, "batch ..."]


@jax.custom_vjp
def add_bias(x: Values, bias: Float[Array | np.ndarray, "..."]) -> Values:
    """Adds a bias to each example, in the type of x. The gradient of the bias is summed in float32 or wider.

    Args:
      x: [batch, ...].
      bias: one value a feature, or one a feature at each place: the last axes of x.
    """
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def _backward(bias: Any, dy: Values) -> tuple[Values, Array]:
    """XLA would sum bfloat16 in bfloat16, where 1 is lost beside 256."""
    wide = dy.astype(sum_type(dy))
    return dy, jnp.sum(wide, axis=tuple(range(dy.ndim - bias.ndim))).astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _backward)
