"""Classes with different numbers of images: training on all of them equally often, or weights of their losses."""

from collections.abc import Sequence

import numpy as np

from alexnet_jax.errors import UserError

NONE, BALANCED = "none", "balanced"
"""Values of config.data.class_weights beside given weights."""


def balanced_epoch(labels: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws as many images as there are, of each class equally many; the numbers of two classes differ by at most 1.

    Each class is an endless stream of permutations of its images, from which every epoch takes the next part. So no
    image of a class is drawn again before all others have been.

    Args:
      labels: class of each training image, [images].
      seed: seed of the run.
      epoch: number of the epoch.

    Returns:
      ids of the drawn images in their order, and how often each was drawn before, both int32, [images].
    """
    size, (_, counts) = len(labels), np.unique(labels, return_counts=True)
    classes = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    ids, seen = list[np.ndarray](), list[np.ndarray]()
    for number, members in enumerate(classes):
        begin, end = ((at * size + number) // len(classes) for at in (epoch, epoch + 1))  # sums over classes: at * size
        rounds = range(begin // len(members), -(-end // len(members)))
        # The last 1 sets these random numbers apart from those of `order`.
        drawn = [np.random.default_rng((seed, number, around, 1)).permutation(members) for around in rounds]
        offset = rounds.start * len(members)
        ids.append(np.concatenate(drawn)[begin - offset : end - offset])
        seen.append(np.arange(begin, end) // len(members))
    order = np.random.default_rng((seed, epoch)).permutation(size)
    return np.concatenate(ids)[order].astype(np.int32), np.concatenate(seen)[order].astype(np.int32)


def sampled_fractions(labels: np.ndarray, sampling: str, num_classes: int) -> np.ndarray:
    """Fraction of the training examples that each class makes up, [classes], by config.data.sampling."""
    counts = np.bincount(labels, minlength=num_classes)
    return (counts > 0) / np.count_nonzero(counts) if sampling == BALANCED else counts / counts.sum()


def loss_weights(wanted: str, fractions: np.ndarray, class_names: Sequence[str]) -> np.ndarray | None:
    """Weights of the classes in the training loss, scaled to a mean of 1 over the training examples.

    Balanced weights are 1 / (classes * fraction). So each class makes up the same part of the loss, and where sampling
    is balanced already they are 1.

    Args:
      wanted: `config.data.class_weights`.
      fractions: see `sampled_fractions`.
      class_names: names of the classes.

    Returns:
      float32, [classes]; None for none.

    Raises UserError if there is no class of a given name, or all weights are 0.
    """
    if wanted == NONE:
        return None
    if wanted == BALANCED:
        weights = np.divide(1.0, fractions, out=np.zeros_like(fractions), where=fractions > 0)
    else:
        pairs = [pair.rpartition(":") for pair in wanted.split(",")]
        given = {name.strip(): float(weight) for name, _, weight in pairs}
        if len(given) < len(pairs):
            raise UserError(f"config.data.class_weights={wanted!r} names a class twice")
        if unknown := sorted(given.keys() - set(class_names)):
            known = ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
            raise UserError(f"config.data.class_weights={wanted!r}: no class {unknown[0]!r}; there are: {known}")
        weights = np.array([given.get(name, 1.0) for name in class_names])
    mean = np.sum(fractions * weights)
    if not mean:
        raise UserError(f"config.data.class_weights={wanted!r}: no training image would have a weight above 0")
    return (weights / mean).astype(np.float32)
