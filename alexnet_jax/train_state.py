"""The state that a training step takes and returns, one tree of arrays."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from alexnet_jax.optimizer import with_batch_stats


@flax.struct.dataclass
class TrainState:
    """The state of training; in data parallel training every device holds a copy.

    Attributes:
      params: weights and biases, float32.
      batch_stats: running means and variances of batch normalisation; empty for a network without it.
      opt_state: the optimizer's state; its trace is the velocity.
      learning_rates: one scalar for each array of `params`, set by the training loop.
      key: the typed JAX key from which all randomness of training derives.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    learning_rates: Any
    key: Any


def init_variables(model: nn.Module, crop: int, seed: int) -> dict[str, Any]:
    """Draws the initial parameters and batch statistics of a network for crop x crop images."""
    key = jax.random.fold_in(jax.random.key(seed), _INIT)
    return jax.jit(model.init)(key, jnp.zeros((1, crop, crop, 3)))


def create_train_state(variables: dict[str, Any], optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; its learning rates are 0 until the training loop sets them."""
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    return TrainState(
        params=params,
        batch_stats=batch_stats,
        opt_state=with_batch_stats(optimizer.init(params), batch_stats),
        learning_rates=jax.tree.map(lambda _: jnp.zeros(()), params),
        key=training_key(seed),
    )


def training_key(seed: int) -> Any:
    """The typed JAX key from which all randomness of training derives."""
    return jax.random.fold_in(jax.random.key(seed), _TRAIN)


_INIT, _TRAIN = 0, 1
