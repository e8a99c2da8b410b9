"""What goes on inside a trained network: statistics of its activations, neighbours in a hidden layer."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alexnet_jax import augment
from alexnet_jax.shards import Records
from alexnet_jax.trained import TrainedRun


@dataclasses.dataclass(frozen=True)
class Activity:
    """An intermediate result over some images.

    Attributes:
      name: as in `TrainedRun.layer_names`.
      shape: of one image's.
      mean, std: over images, places and features.
      zeros: share of values that are 0.
      dead: features that are 0 at all places of all images; None where no activation function came before.
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float
    zeros: float
    dead: int | None


def activities(run: TrainedRun, squares: np.ndarray) -> list[Activity]:
    """Statistics of every intermediate result for squares of pixels, uint8, [images, size, size, 3]."""

    @functools.partial(jax.jit, compiler_options=run.compiler_options)
    def measure(variables: Any, squares: Array) -> dict[str, dict[str, Array]]:
        (crops,) = augment.testing_images(run.preprocessing, squares, views=1)
        found = {}
        for name, values in run.model.apply(variables, crops)[1].items():
            wide = values.astype(jnp.float32)
            found[name] = {
                "mean": wide.mean(),
                "square": jnp.square(wide).mean(),
                "zeros": (wide == 0).mean(),
                "lives": (wide != 0).any(axis=tuple(range(wide.ndim - 1))),
            }
        return found

    size = min(len(squares), run.config.eval_batch_size)
    parts = [
        jax.device_get(measure(run.variables, squares[first : first + size]))
        for first in range(0, len(squares) - size + 1, size)  # whole batches, which are compiled once
    ]
    shapes = run.layer_shapes
    rows = []
    for name in run.layer_names:
        of_layer = [part[name] for part in parts]
        mean, square, zeros = (float(np.mean([part[key] for part in of_layer])) for key in ("mean", "square", "zeros"))
        lives = np.any([part["lives"] for part in of_layer], axis=0)
        dead = int((~lives).sum()) if name.startswith("act") else None
        rows.append(Activity(name, shapes[name], mean, max(square - mean**2, 0.0) ** 0.5, zeros, dead))
    return rows


def read_squares(records: Records, ids: np.ndarray) -> np.ndarray:
    """These images of a split, uint8, [ids, size, size, 3]."""
    pixels = np.empty((len(ids), records.image_size, records.image_size, 3), np.uint8)
    records.read(ids, pixels)
    return pixels


def nearest(
    run: TrainedRun, layer: str, queries: np.ndarray, records: Records, ids: np.ndarray, count: int
) -> np.ndarray:
    """The `count` of these training images whose features are the nearest to those of each query (paper section 6.1).

    Distances are Euclidean. Returns int, [queries, count], elements of `ids`, the nearest first.
    """
    wanted = _flat(run.features(queries, layer))
    distances = np.concatenate(
        [_distances(wanted, _flat(run.features(squares, layer))) for squares in _batches(run, records, ids)], axis=1
    )
    return ids[np.argsort(distances, axis=1, kind="stable")[:, :count]]


def _batches(run: TrainedRun, records: Records, ids: np.ndarray) -> Iterator[np.ndarray]:
    size = run.config.eval_batch_size
    for first in range(0, len(ids), size):
        yield read_squares(records, ids[first : first + size])


def _flat(features: np.ndarray) -> np.ndarray:
    return features.reshape(len(features), -1)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squares of the distances between rows."""
    return (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)[None]
