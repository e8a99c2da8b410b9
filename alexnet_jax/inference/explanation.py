"""What a trained network saw in an image: occlusion, gradient, its strongest maps, and the nearest training images."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alexnet_jax import augment
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.storage import read_images
from alexnet_jax.errors import UserError
from alexnet_jax.inference.image_inputs import Image
from alexnet_jax.inference.loaded_run import TrainedRun
from alexnet_jax.ops.platforms import fast_compilation
from alexnet_jax.parallel.compilation import compiler_options

PLACES = 16
"""Places of the grey square in each direction."""

GREY = 128
"""The square's grey level."""

MOST_LAYERS, STRONGEST, NEAREST = 5, 8, 8
"""Layers whose maps are kept, maps of each, and training images."""

MOST_SEARCHED = 2_000
"""Most training images among which the nearest are searched."""


@dataclasses.dataclass(frozen=True)
class StrongestMaps:
    """The maps of a layer whose positive values have the highest mean over the image, the highest first.

    Attributes:
      shape: the shape of all maps of the layer: height, width, kernels.
      kernels: the numbers of the kernels, int, [kernels].
      maps: their positive values, float32, [kernels, height, width].
    """

    shape: tuple[int, ...]
    kernels: np.ndarray
    maps: np.ndarray


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The training images with the features that are nearest to those of an image, the nearest first.

    Attributes:
      layer: the activation that is compared: the input of the last layer.
      searched, total: the training images that were searched, drawn at random, and all of them.
      ids: the examples of the training split, int, [images].
      images: resized images, uint8, [images, size, size, 3].
      labels: the label of each, int, [images].
      distances: 1 less the cosine of the angle between the features, float32, [images]; from 0 to 2.
    """

    layer: str
    searched: int
    total: int
    ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    distances: np.ndarray


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a network saw in the central crop of an image.

    Attributes:
      image: the crop, uint8, [crop, crop, 3].
      probabilities: the probability of each output, float32, [outputs].
      square: side of the grey square in pixels; at the edges, part of it lies outside.
      occluded: the probabilities with the square around each of PLACES x PLACES centres, evenly spaced over the crop,
        float32, [PLACES, PLACES, outputs].
      saliency: how steeply the score of the most probable class rises or falls with each pixel of the network's input,
        the largest of its three channels, float32, [crop, crop].
      maps: the strongest maps of up to MOST_LAYERS layers by the name of the activation, from the first layer to the
        last; empty for a network without maps.
      neighbours: None without training images, or for a network without hidden layers.
    """

    image: np.ndarray
    probabilities: np.ndarray
    square: int
    occluded: np.ndarray
    saliency: np.ndarray
    maps: Mapping[str, StrongestMaps]
    neighbours: Neighbours | None

    @property
    def label(self) -> int:
        """The most probable class, which everything else explains."""
        return int(self.probabilities.argmax())

    @property
    def drops(self) -> np.ndarray:
        """How far the square lowers the probability of `label`, float32, [PLACES, PLACES]; negative: it raises it."""
        return self.probabilities[self.label] - self.occluded[:, :, self.label]

    def frequent(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The `most` most frequent predictions with the square, the most frequent first, and where they are made.

        Returns:
          Their labels, int, [labels], and the prediction at each place as index into these, or as `most` if it is
          another, int, [PLACES, PLACES].
        """
        labels, which, counts = np.unique(self.occluded.argmax(axis=-1), return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        ranks = np.argsort(order)[which].reshape(PLACES, PLACES)
        return labels[order[:most]], np.minimum(ranks, most)


def explain_prediction(run: TrainedRun, image: Image, dataset: Dataset | None = None) -> Explanation:
    """Explains what a network predicts for the central crop of an image.

    Args:
      run: the trained network.
      image: see `Image`.
      dataset: where the nearest training images are searched; see `open_run_dataset`.

    Raises UserError if the image cannot be read or the network predicts NaN.
    """
    resized = run.resize(image)
    layers = _layers_with_maps(run)
    logits, gradient, activations = _look(run, resized, layers)
    if not np.isfinite(logits).all():
        raise UserError(f"{run.path}: the network predicts NaN; its weights are unusable")
    crop = run.preprocessing.crop
    square = max(1, crop // 4)
    occluded = run.predict(_covered(resized, crop, square), views=1)
    return Explanation(
        image=run.preprocessing.centre(resized),
        probabilities=jax.device_get(jax.nn.softmax(logits)),
        square=square,
        occluded=occluded.reshape(PLACES, PLACES, -1),
        saliency=np.abs(gradient).max(axis=-1),
        maps={name: _strongest(activations[name]) for name in layers},
        neighbours=None if dataset is None or len(run.layer_names) == 1 else _neighbours(run, resized, dataset),
    )


def _layers_with_maps(run: TrainedRun) -> list[str]:
    """Names of the maps of up to MOST_LAYERS layers with an activation function, evenly spaced from first to last.

    The maps are those after that function, or before it where pooling comes first, as in the source of 2012.
    """
    shapes, found = run.layer_shapes, []
    for number, layer in enumerate(run.model.layers, start=1):
        raw, active = f"{layer.kind}{number}", f"act{number}"
        if layer.kind != "fc" and not layer.auxiliary and active in shapes:
            found.append(active if shapes[active] == shapes[raw] else raw)
    chosen = np.linspace(0, len(found) - 1, min(MOST_LAYERS, len(found))).round().astype(int)
    return [found[index] for index in chosen.tolist()]


def _look(run: TrainedRun, resized: np.ndarray, layers: list[str]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The logits for an image, [outputs], the gradient of the highest by its pixels, and the activations of layers.

    The gradient of the class score, a logit, by the pixels is the saliency of Simonyan et al. 2014, section 3.
    """

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def look(variables: Any, image: Array) -> Any:
        (crops,) = augment.testing_images(run.preprocessing, image[None], views=1)

        def score(crops: Array) -> tuple[Array, Any]:
            logits, activations = run.model.apply(variables, crops)
            # A network of one output has the logits 0 and z; its score for either class changes with z.
            one_output = run.model.outputs < run.model.num_classes
            highest = jnp.abs(logits).max() if one_output else logits.max()
            return highest, (logits[0], {name: activations[name][0] for name in layers})

        with fast_compilation():
            (_, (logits, kept)), gradient = jax.value_and_grad(score, has_aux=True)(crops)
        return logits, gradient[0], kept

    return jax.device_get(look(run.variables, resized))


def _covered(resized: np.ndarray, crop: int, square: int) -> Iterator[np.ndarray]:
    """The image with a grey square at one place after another (Zeiler and Fergus 2014, section 4.2)."""
    border = (len(resized) - crop) // 2
    centres = border + (np.arange(PLACES) + 0.5) * crop / PLACES
    starts = np.round(centres - square / 2).astype(int).tolist()
    for row in starts:
        for column in starts:
            image = resized.copy()
            image[max(row, 0) : row + square, max(column, 0) : column + square] = GREY
            yield image


def _strongest(activation: np.ndarray) -> StrongestMaps:
    activation = np.maximum(activation.astype(np.float32), 0)
    kernels = np.argsort(-activation.mean(axis=(0, 1)), kind="stable")[:STRONGEST]
    return StrongestMaps(activation.shape, kernels, np.moveaxis(activation[..., kernels], -1, 0))


def _neighbours(run: TrainedRun, resized: np.ndarray, dataset: Dataset) -> Neighbours:
    layer, train = run.layer_names[-2], dataset.splits["train"]
    searched = np.sort(np.random.default_rng(0).permutation(len(train.labels))[:MOST_SEARCHED])
    wanted = _directions(run, resized[None], layer)
    size = run.config.eval_batch_size
    parts = [searched[first : first + size] for first in range(0, len(searched), size)]
    cosines = np.concatenate([_directions(run, read_images(train, part), layer) @ wanted[0] for part in parts])
    nearest = np.argsort(-cosines, kind="stable")[:NEAREST]
    ids = searched[nearest]
    return Neighbours(
        layer=layer,
        searched=len(searched),
        total=len(train.labels),
        ids=ids,
        images=read_images(train, ids),
        labels=train.labels[ids],
        distances=np.float32(1) - cosines[nearest],
    )


def _directions(run: TrainedRun, images: np.ndarray, layer: str) -> np.ndarray:
    """The features of images, each scaled to length 1, [images, features]."""
    features = run.features(images, layer).reshape(len(images), -1)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.float32(1e-12))
