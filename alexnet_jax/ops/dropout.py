"""Dropout with one random key an example, in the two conventions."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from alexnet_jax.parallel.collectives import own_part


def dropout(
    x: Float[Array, "batch ..."],
    keys: Key[Array, " batch"] | None,
    rate: float,
    convention: str,
    tower: str | None = None,
) -> Float[Array, "batch ..."]:
    """Drops each unit with probability `rate`; without keys, what the network does in testing.

    The mask of an example depends on its own key alone, so it is the same in any batch and on any device.

    Args:
      x: activations.
      keys: one key an example in training, None in testing.
      rate: probability of dropping a unit, in [0, 1).
      convention: "2012" masks in training and multiplies by 1 - rate in testing (paper section 4.2; CHM src/layer.cu
        HiddenSexLayer); "inverted" divides by 1 - rate in training and does nothing in testing (Caffe, torch, Flax).
      tower: the mapped axis over which the units are divided, if they are; the mask is that of all of them.
    """
    keep = 1.0 - rate
    if keys is None:
        return x * keep if convention == "2012" else x
    shape = (*x.shape[1:-1], x.shape[-1] * (lax.axis_size(tower) if tower else 1))
    mask = jax.vmap(lambda key: own_part(jax.random.bernoulli(key, keep, shape), tower))(keys)
    return jnp.where(mask, x if convention == "2012" else x / keep, 0.0)
