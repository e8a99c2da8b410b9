"""Whether images tell anything about their labels: a linear classifier of thumbnails. It is deterministic."""

import dataclasses
import math

import numpy as np

from alexnet_jax.data.storage import Records, read_images

THUMBNAIL = 8
"""Side of the images that are classified, in pixels."""

MOST_CLASSES, MOST_IMAGES, FEWEST_IMAGES = 20, 2000, 100
"""100 images a class show a relation even if it is faint, whatever the number of classes."""

RIDGE = 0.1
"""Penalty of the classifier, in units of the mean energy of its inputs."""


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """How well the classifier does on images that it was not fitted to.

    Attributes:
      accuracy: fraction of right predictions.
      chance: fraction expected of predictions that have nothing to do with the labels.
      p_value: probability of so many right predictions by chance.
      images: how many were predicted.
    """

    accuracy: float
    chance: float
    p_value: float
    images: int


def probe_labels(records: Records) -> ProbeResult | None:
    """Classifies thumbnails of half of the images, fitted to the other half.

    The classes are those with the most images. None for fewer than FEWEST_IMAGES or a single class.
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
    """Targets of new features, [images, classes]."""
    mean, energy = targets.mean(0), features.T @ features
    penalty = RIDGE * np.trace(energy) / len(energy) + 1e-6
    weights = np.linalg.solve(energy + penalty * np.eye(len(energy)), features.T @ (targets - mean))
    return new_features @ weights + mean


def _result(predictions: np.ndarray, labels: np.ndarray, classes: int) -> ProbeResult:
    """The number of right predictions of a blind classifier is nearly normal."""
    predicted, true = (np.bincount(values, minlength=classes) / len(labels) for values in (predictions, labels))
    chance, accuracy = float(predicted @ true), float((predictions == labels).mean())
    spread = math.sqrt(max(chance * (1 - chance), 1e-12) / len(labels))
    return ProbeResult(accuracy, chance, math.erfc((accuracy - chance) / spread / math.sqrt(2)) / 2, len(labels))


def _thumbnails(records: Records, ids: np.ndarray) -> np.ndarray:
    """[ids, THUMBNAIL^2 x 3] means of the pixels of boxes."""
    pixels = read_images(records, ids)
    box = max(records.image_size // THUMBNAIL, 1)
    side = records.image_size // box
    boxes = pixels[:, : side * box, : side * box].reshape(len(ids), side, box, side, box, 3)
    return boxes.mean(axis=(2, 4)).reshape(len(ids), -1)
