"""Inspection of a trained network: statistics of its activations, nearest neighbours in a hidden layer."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alexnet_jax.data.storage import Records, read_images
from alexnet_jax.inference.loaded_run import TrainedRun
from alexnet_jax.parallel.compilation import compiler_options


@dataclasses.dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of one activation of the network over a set of images.

    Attributes:
      name: the activation's name, one of `TrainedRun.layer_names`.
      shape: its shape for one image, without the batch.
      mean, std: mean and standard deviation over images, positions and features.
      zeros: fraction of values that are 0.
      dead: number of features that are 0 at every position of every image; None unless this is the output of an
        activation function.
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float
    zeros: float
    dead: int | None


def activation_statistics(run: TrainedRun, images: np.ndarray) -> list[ActivationStatistics]:
    """Computes statistics of every activation, in the network's order.

    Args:
      run: the trained network.
      images: resized images, uint8, [images, size, size, 3].
    """

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def measure(variables: Any, images: Array) -> dict[str, dict[str, Array]]:
        """Reduces each image separately, so that batches can be combined afterwards."""
        found = {}
        for name, values in run.activations(variables, images).items():
            wide = values.astype(jnp.float32).reshape(len(values), -1, values.shape[-1])
            found[name] = {
                "mean": wide.mean(axis=(1, 2)),
                "mean_square": jnp.square(wide).mean(axis=(1, 2)),
                "zeros": (wide == 0).mean(axis=(1, 2)),
                "active": (wide != 0).any(axis=1),
            }
        return found

    measured = run.in_batches(measure, images)
    rows = []
    for name, shape in run.layer_shapes.items():
        keys = ("mean", "mean_square", "zeros")
        mean, mean_square, zeros = (float(measured[name][key].mean(dtype=np.float64)) for key in keys)
        dead = int((~measured[name]["active"].any(axis=0)).sum()) if name.startswith("act") else None
        rows.append(ActivationStatistics(name, shape, mean, max(mean_square - mean**2, 0.0) ** 0.5, zeros, dead))
    return rows


def nearest_neighbours(
    run: TrainedRun, layer: str, queries: np.ndarray, records: Records, ids: np.ndarray, count: int
) -> np.ndarray:
    """Finds the images whose features are nearest to those of each query, in Euclidean distance (paper section 6.1).

    Args:
      run: the trained network.
      layer: the activation whose values are compared, one of `run.layer_names`.
      queries: resized images, uint8, [queries, size, size, 3].
      records: the split that is searched.
      ids: the examples of that split to search.
      count: neighbours to return for each query.

    Returns:
      Elements of `ids`, int, [queries, count], the nearest first.
    """

    def flat(images: np.ndarray) -> np.ndarray:
        return run.features(images, layer).reshape(len(images), -1)

    wanted, size, distances = flat(queries), run.config.eval_batch_size, []
    for first in range(0, len(ids), size):
        features = flat(read_images(records, ids[first : first + size]))
        # Squared distances between rows.
        distances.append((wanted**2).sum(1)[:, None] - 2 * wanted @ features.T + (features**2).sum(1)[None])
    order = np.argsort(np.concatenate(distances, axis=1), axis=1, kind="stable")
    return ids[order[:, :count]]
