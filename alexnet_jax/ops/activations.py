"""Activation functions without parameters. PReLU has one parameter per layer and is in `models/alexnet.py`."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "scaled_tanh": lambda x: 1.7159 * jnp.tanh(2 / 3 * x),  # LeCun et al. 1998, "Efficient BackProp", section 4.4
    "sigmoid": nn.sigmoid,
    "leaky_relu": lambda x: nn.leaky_relu(x, negative_slope=0.01),  # Maas et al. 2013
}
"""The functions by name, as `config.model.activation` gives it."""
