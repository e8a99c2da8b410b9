"""What parameters, a batch and labels tell about a network that does not learn. Everything here is deterministic."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alexnet_jax.data.storage import Records, read_images
from alexnet_jax.models.alexnet import AlexNet

THUMBNAIL = 8
"""Side in pixels of the images among which a relation to the labels is looked for."""

MOST_CLASSES, MOST_IMAGES, FEWEST_IMAGES = 20, 2000, 100
"""Of the search for a relation: 100 images a class show one even if it is faint, whatever the number of classes."""

RIDGE = 0.1
"""Penalty of the linear classifier, in units of the mean energy of its inputs."""


@dataclasses.dataclass(frozen=True)
class LayerEvidence:
    """How a layer with weights stands, on one batch.

    Attributes:
      name: like "conv1".
      kernel_std: root mean square of its kernel.
      he_std: sqrt(2 / fan-in), with which the size of signals stays the same under ReLU (He et al. 2015).
      bias: mean of its biases.
      product: root mean square of what its kernel makes of its input, without bias.
      signal: standard deviation of its outputs from image to image, the root of the mean over units and places.
      dead: share of features that are 0 at all places of all images after the ReLU.
      gradient: root mean square of the kernel's gradient, as a share of `kernel_std`.
    """

    name: str
    kernel_std: float
    he_std: float
    bias: float
    product: float
    signal: float
    dead: float
    gradient: float


@dataclasses.dataclass(frozen=True)
class Relation:
    """How well a linear classifier of thumbnails does on images that it was not fitted to.

    Attributes:
      accuracy: share of right answers.
      chance: share expected of answers that have nothing to do with the labels.
      p_value: probability of so many right answers by chance.
      images: how many were asked.
    """

    accuracy: float
    chance: float
    p_value: float
    images: int


def look_at_layers(
    model: AlexNet,
    variables: dict[str, Any],
    images: Float[Array, "batch crop crop 3"],
    labels: Int[Array, " batch"] | np.ndarray,
) -> list[LayerEvidence]:
    """The layers with these parameters in training, but without dropout, whose noise would look like a signal."""
    keys = jax.random.split(jax.random.key(0), len(images))
    numbers = jax.device_get(_measure(model.clone(dropout_rate=0.0), variables, images, labels, keys))
    return [LayerEvidence(name, **{key: float(value) for key, value in row.items()}) for name, row in numbers.items()]


@functools.partial(jax.jit, static_argnums=0)
def _measure(model: AlexNet, variables: dict[str, Any], images: Array, labels: Array, keys: Array) -> Any:
    """The fields of LayerEvidence by layer."""

    def loss(params: Any) -> tuple[Array, dict[str, Array]]:
        (logits, activations), _ = model.apply({**variables, "params": params}, images, keys, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), activations

    params = variables["params"]
    gradients, activations = jax.grad(loss, has_aux=True)(params)

    def of(index: int, name: str) -> dict[str, Any]:
        kernel, bias, output = params[name]["kernel"], params[name]["bias"], activations[name].astype(jnp.float32)
        active = activations.get(f"act{index}", jnp.ones((1, 1)))
        size = _rms(kernel)
        return {
            "kernel_std": size,
            "he_std": math.sqrt(2 / _fan_in(kernel, name)),
            "bias": bias.mean(),
            "product": _rms(output - jnp.broadcast_to(bias, output.shape)),
            "signal": jnp.sqrt(jnp.var(output, axis=0).mean()),
            "dead": jnp.mean(jnp.all(active == 0, axis=tuple(range(active.ndim - 1)))),
            "gradient": _rms(gradients[name]["kernel"]) / jnp.maximum(size, jnp.finfo(jnp.float32).tiny),
        }

    names = [f"{layer.kind}{index}" for index, layer in enumerate(model.layers, start=1)]
    return {name: of(index, name) for index, name in enumerate(names, start=1)}


def _fan_in(kernel: Array, name: str) -> int:
    """Inputs of a unit; a kernel that is not shared is [rows, columns, inputs, features]."""
    return math.prod(kernel.shape[-2:-1] if name.startswith(("fc", "local")) else kernel.shape[:-1])


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def distances(params: Any, initial: Any) -> dict[str, float]:
    """How far the kernel of each layer is from where it began, as a share of its size there."""
    return {
        name: float(np.linalg.norm(group["kernel"] - initial[name]["kernel"]) / np.linalg.norm(initial[name]["kernel"]))
        for name, group in params.items()
        if "kernel" in group
    }


def look_for_relation(records: Records) -> Relation | None:
    """Whether images tell anything about labels; None for fewer than FEWEST_IMAGES or a single class.

    Ridge regression from thumbnails of half of the images onto their classes; the other half is asked. The number of
    right answers of a blind one is nearly normal.
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
    known, mean = features[:half], targets[:half].mean(0)
    energy = known.T @ known
    penalty = RIDGE * np.trace(energy) / len(energy) + 1e-6
    weights = np.linalg.solve(energy + penalty * np.eye(len(energy)), known.T @ (targets[:half] - mean))
    answers, truth = (features[half:] @ weights + mean).argmax(1), targets[half:].argmax(1)
    given, true = (np.bincount(values, minlength=len(classes)) / len(truth) for values in (answers, truth))
    chance, accuracy = float(given @ true), float((answers == truth).mean())
    spread = math.sqrt(max(chance * (1 - chance), 1e-12) / len(truth))
    return Relation(accuracy, chance, math.erfc((accuracy - chance) / spread / math.sqrt(2)) / 2, len(truth))


def _thumbnails(records: Records, ids: np.ndarray) -> np.ndarray:
    """[ids, THUMBNAIL^2 x 3] means of the pixels of boxes."""
    pixels = read_images(records, ids)
    box = max(records.image_size // THUMBNAIL, 1)
    side = records.image_size // box
    boxes = pixels[:, : side * box, : side * box].reshape(len(ids), side, box, side, box, 3)
    return boxes.mean(axis=(2, 4)).reshape(len(ids), -1)
