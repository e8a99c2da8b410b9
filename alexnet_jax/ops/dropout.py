"""Dropout with one random key per example, in the 2012 convention and in the inverted one."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from alexnet_jax.parallel.collectives import own_shard


@jax.named_scope("dropout")
def dropout(
    x: Float[Array, "batch ..."],
    keys: Key[Array, " batch"] | None,
    rate: float,
    convention: str,
    tower: str | None = None,
) -> Float[Array, "batch ..."]:
    """Sets each unit to 0 with probability `rate` in training, and scales units as the convention requires.

    The mask of an example depends only on its own key, so it is the same in any batch and on any number of devices.

    Args:
      x: activations.
      keys: one key per example in training, None in testing.
      rate: probability that a unit is dropped, in [0, 1).
      convention: "2012" masks in training and multiplies by 1 - rate in testing (paper section 4.2; CHM src/layer.cu
        HiddenSexLayer); "inverted" divides by 1 - rate in training and does nothing in testing (Caffe, torch, Flax).
      tower: the mapped axis over which units are sharded, if they are; the mask is drawn for all units.
    """
    keep = 1.0 - rate
    if keys is None:
        return x * keep if convention == "2012" else x
    shape = (*x.shape[1:-1], x.shape[-1] * (lax.axis_size(tower) if tower else 1))
    mask = jax.vmap(lambda key: own_shard(jax.random.bernoulli(key, keep, shape), tower))(keys)
    return jnp.where(mask, x if convention == "2012" else x / keep, 0.0)
