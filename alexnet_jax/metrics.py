"""Loss and error as masked sums: they add up over batches and devices alike, however the data are cut."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def classification_sums(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], mask: Bool[Array, " batch"]
) -> dict[str, Array]:
    """Sums over the examples that the mask keeps.

    An example is right at top k if fewer than k classes beat its label. Of equal logits the lower class wins, as in
    `lax.top_k`; an example with a NaN is wrong.

    Returns:
      loss_sum (float32, nats), top1_correct, top5_correct and count (int32).
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    holds = (logits < own) | ((logits == own) & (jnp.arange(logits.shape[1])[None, :] >= labels[:, None]))
    rank = jnp.sum(~holds, axis=1)
    valid = mask & ~jnp.isnan(logits).any(axis=1)
    return {
        "loss_sum": jnp.sum(jnp.where(mask, losses, 0.0)),
        "top1_correct": jnp.sum(valid & (rank < 1), dtype=jnp.int32),
        "top5_correct": jnp.sum(valid & (rank < 5), dtype=jnp.int32),
        "count": jnp.sum(mask, dtype=jnp.int32),
    }


def mixed_cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    others: Int[Array, " batch"],
    shares: Float[Array, " batch"],
    smoothing: float,
) -> Float[Array, " batch"]:
    """Cross-entropy, in nats, with `shares` of the labels and the rest of `others`, of which all classes get a part.

    With smoothing s (Szegedy et al. 2016) the target is (1 - s) (share label + (1 - share) other) + s / classes.
    """
    classes = logits.shape[1]
    weights = jnp.stack([shares, 1 - shares], axis=1)[:, :, None]
    of_labels = jax.nn.one_hot(jnp.stack([labels, others], axis=1), classes)
    targets = (1 - smoothing) * jnp.sum(weights * of_labels, axis=1) + smoothing / classes
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=1)


def add(totals: Mapping[str, Any], sums: Mapping[str, Any]) -> dict[str, Any]:
    """Adds one batch's sums to Python totals, in double precision."""
    return {name: totals.get(name, 0) + value.item() for name, value in sums.items()}


def summarize(totals: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Mean loss and errors in [0, 1]. With 5 or fewer classes top-5 says nothing and is None."""
    count = totals["count"]
    return {
        "loss": totals["loss_sum"] / count,
        "top1_error": 1 - totals["top1_correct"] / count,
        "top5_error": 1 - totals["top5_correct"] / count if num_classes > 5 else None,
        "count": count,
    }


def confidence_interval(wrong: int, count: int) -> tuple[float, float]:
    """Wilson's interval of an error, in [0, 1]: 95 % of them cover the error of all images of the kind (1927)."""
    z, share = 1.959964, wrong / count
    centre, half = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = ((centre + side * half) / (1 + z**2 / count) for side in (-1, 1))
    return max(min(low, share), 0.0), min(max(high, share), 1.0)  # rounding may put an end beyond the error itself
