"""Tests whether images are related to their labels, with a linear classifier of thumbnails; deterministic."""

import dataclasses
import math

import numpy as np

from alexnet_jax.data.storage import Records, read_images

THUMBNAIL = 8
"""Side of a thumbnail in pixels."""

MOST_CLASSES, MOST_IMAGES, FEWEST_IMAGES = 20, 2000, 100
"""Limits of the sample. 100 images per class show even a weak relation."""

RIDGE = 0.1
"""Penalty of the ridge regression, relative to the mean sum of squares of a feature."""


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """The accuracy of the classifier on images that it was not fitted to.

    Attributes:
      accuracy: fraction of correct predictions.
      chance: accuracy expected if predictions and labels were independent.
      p_value: probability of at least this accuracy by chance.
      images: number of images predicted.
    """

    accuracy: float
    chance: float
    p_value: float
    images: int


def probe_labels(records: Records) -> ProbeResult | None:
    """Fits a ridge regression to thumbnails of half of a sample, and classifies the other half.

    The sample has at most MOST_IMAGES images of the MOST_CLASSES largest classes.

    Returns:
      The result; None for fewer than FEWEST_IMAGES images or a single class.
    """
    counts = np.bincount(records.labels)
    classes = np.flatnonzero(counts)
    classes = classes[np.argsort(-counts[classes], kind="stable")][:MOST_CLASSES]
    ids = np.flatnonzero(np.isin(records.labels, classes))
    ids = np.random.default_rng(0).permutation(ids)[:MOST_IMAGES]
    if len(classes) < 2 or len(ids) < FEWEST_IMAGES:
        return None
    features = np.concatenate([_thumbnails(records, ids[first : first + 100]) for first in range(0, len(ids), 100)])
    features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    targets = (records.labels[ids][:, None] == classes[None]).astype(float)
    half = len(ids) // 2
    scores = _ridge_regression(features[:half], targets[:half], features[half:])
    return _result(scores.argmax(1), targets[half:].argmax(1), len(classes))


def _ridge_regression(features: np.ndarray, targets: np.ndarray, new_features: np.ndarray) -> np.ndarray:
    """Fits a ridge regression of targets on features and predicts the targets of new features, [images, classes]."""
    mean, gram = targets.mean(0), features.T @ features
    penalty = RIDGE * np.trace(gram) / len(gram) + 1e-6
    weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), features.T @ (targets - mean))
    return new_features @ weights + mean


def _result(predictions: np.ndarray, labels: np.ndarray, classes: int) -> ProbeResult:
    """Compares predictions with labels; the p-value uses the normal approximation of the binomial distribution."""
    predicted, true = (np.bincount(values, minlength=classes) / len(labels) for values in (predictions, labels))
    chance, accuracy = float(predicted @ true), float((predictions == labels).mean())
    spread = math.sqrt(max(chance * (1 - chance), 1e-12) / len(labels))
    return ProbeResult(accuracy, chance, math.erfc((accuracy - chance) / spread / math.sqrt(2)) / 2, len(labels))


def _thumbnails(records: Records, ids: np.ndarray) -> np.ndarray:
    """Block means of the images' pixels, flattened, [images, THUMBNAIL^2 x 3]."""
    pixels = read_images(records, ids)
    box = max(records.image_size // THUMBNAIL, 1)
    side = records.image_size // box
    boxes = pixels[:, : side * box, : side * box].reshape(len(ids), side, box, side, box, 3)
    return boxes.mean(axis=(2, 4)).reshape(len(ids), -1)
