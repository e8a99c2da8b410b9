"""Activation functions without parameters. PReLU has one parameter per layer and is in `models/alexnet.py`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from alexnet_jax.ops.platforms import by_platform


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return by_platform(x, cpu=nn.relu, default=_relu)


@jax.custom_jvp
def _relu(x: Array) -> Array:
    """`relu` whose derivative needs the output alone, so that XLA computes it within a convolution on GPUs."""
    return jnp.maximum(x, 0)


_relu.defjvps(lambda dx, y, x: jnp.where(y != 0, dx, jnp.zeros_like(dx)))  # not y > 0, which XLA makes x > 0

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": relu,
    "tanh": jnp.tanh,
    "scaled_tanh": lambda x: 1.7159 * jnp.tanh(2 / 3 * x),  # LeCun et al. 1998, "Efficient BackProp", section 4.4
    "sigmoid": nn.sigmoid,
    "leaky_relu": lambda x: nn.leaky_relu(x, negative_slope=0.01),  # Maas et al. 2013
}
"""The functions by name, as `config.model.activation` gives it."""
