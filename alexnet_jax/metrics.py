"""Loss and errors as masked sums, which add up over batches and devices however the data are divided."""

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
    """Sums of loss and correct predictions over the examples whose mask is true.

    A prediction is top-k correct if fewer than k classes rank above the label. Of equal logits the lower class ranks
    first, as in `lax.top_k`; an example with a NaN is never correct.

    Returns:
      loss_sum (float32, nats), top1_correct, top5_correct and count (int32).
    """
    labels = labels.astype(jnp.int32)
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
    partner_labels: Int[Array, " batch"],
    mixup_weights: Float[Array, " batch"],
    smoothing: float,
    class_weights: Float[Array, " labels"] | None = None,
) -> Float[Array, " batch"]:
    """Cross-entropy of each example, in nats, with mixed and smoothed labels; see `mixed_targets`."""
    targets = mixed_targets(logits.shape[1], labels, partner_labels, mixup_weights, smoothing, class_weights)
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=1)


def squared_error(
    outputs: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    partner_labels: Int[Array, " batch"],
    mixup_weights: Float[Array, " batch"],
    smoothing: float,
) -> Float[Array, " batch"]:
    """Half the squared distance of each example's outputs from `mixed_targets`."""
    targets = mixed_targets(outputs.shape[1], labels, partner_labels, mixup_weights, smoothing)
    return jnp.sum(jnp.square(outputs - targets), axis=1) / 2


def mixed_targets(
    classes: int,
    labels: Int[Array, " batch"],
    partner_labels: Int[Array, " batch"],
    mixup_weights: Float[Array, " batch"],
    smoothing: float,
    class_weights: Float[Array, " labels"] | None = None,
) -> Float[Array, "batch classes"]:
    """The targets (1 - s) (w label + (1 - w) partner) + s / classes of one-hot labels.

    The mixup weight is w (Zhang et al. 2018), the smoothing s (Szegedy et al. 2016). What a label contributes is
    multiplied by the weight of its class.
    """
    both = jnp.stack([labels, partner_labels], axis=1)
    weights, total = jnp.stack([mixup_weights, 1 - mixup_weights], axis=1)[:, :, None], jnp.float32(1)
    if class_weights is not None:
        weights = weights * class_weights[both][:, :, None]
        total = jnp.sum(weights, axis=1)
    return (1 - smoothing) * jnp.sum(weights * jax.nn.one_hot(both, classes), axis=1) + smoothing / classes * total


def add(totals: Mapping[str, Any], sums: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the sums of one batch to totals kept as Python numbers, that is, in double precision."""
    return {name: totals.get(name, 0) + value.item() for name, value in sums.items()}


def summarize(totals: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Mean loss in nats and errors in [0, 1]; with 5 or fewer classes the top-5 error means nothing and is None."""
    count = totals["count"]
    return {
        "loss": totals["loss_sum"] / count,
        "top1_error": 1 - totals["top1_correct"] / count,
        "top5_error": 1 - totals["top5_correct"] / count if num_classes > 5 else None,
        "count": count,
    }


def confidence_interval(wrong: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of an error of wrong / count, in [0, 1] (Wilson 1927)."""
    z, error = 1.959964, wrong / count
    centre, half = error + z**2 / (2 * count), z * math.sqrt(error * (1 - error) / count + z**2 / (4 * count**2))
    low, high = ((centre + side * half) / (1 + z**2 / count) for side in (-1, 1))
    return max(min(low, error), 0.0), min(max(high, error), 1.0)  # rounding may exclude the error itself
