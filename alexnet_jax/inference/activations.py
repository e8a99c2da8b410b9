"""What goes on inside a trained network: statistics of its activations, neighbours in a hidden layer."""

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
    """An intermediate result over some images.

    Attributes:
      name: as in `TrainedRun.layer_names`.
      shape: of one image's.
      mean, std: over images, places and features.
      zeros: fraction of values that are 0.
      dead: features that are 0 at all places of all images; None where no activation function came before.
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float
    zeros: float
    dead: int | None


def activation_statistics(run: TrainedRun, squares: np.ndarray) -> list[ActivationStatistics]:
    """Statistics of every intermediate result for squares of pixels, uint8, [images, size, size, 3]."""

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def measure(variables: Any, squares: Array) -> dict[str, dict[str, Array]]:
        """Of each image by itself."""
        found = {}
        for name, values in run.activations(variables, squares).items():
            wide = values.astype(jnp.float32).reshape(len(values), -1, values.shape[-1])
            found[name] = {
                "mean": wide.mean(axis=(1, 2)),
                "square": jnp.square(wide).mean(axis=(1, 2)),
                "zeros": (wide == 0).mean(axis=(1, 2)),
                "lives": (wide != 0).any(axis=1),
            }
        return found

    of_all = run.in_batches(measure, squares)
    rows = []
    for name, shape in run.layer_shapes.items():
        mean, square, zeros = (float(of_all[name][key].mean(dtype=np.float64)) for key in ("mean", "square", "zeros"))
        dead = int((~of_all[name]["lives"].any(axis=0)).sum()) if name.startswith("act") else None
        rows.append(ActivationStatistics(name, shape, mean, max(square - mean**2, 0.0) ** 0.5, zeros, dead))
    return rows


def nearest_neighbours(
    run: TrainedRun, layer: str, queries: np.ndarray, records: Records, ids: np.ndarray, count: int
) -> np.ndarray:
    """The `count` of these training images whose features are the nearest to those of each query (paper section 6.1).

    Distances are Euclidean. Returns int, [queries, count], elements of `ids`, the nearest first.
    """

    def flat(squares: np.ndarray) -> np.ndarray:
        return run.features(squares, layer).reshape(len(squares), -1)

    wanted, size, distances = flat(queries), run.config.eval_batch_size, []
    for first in range(0, len(ids), size):
        features = flat(read_images(records, ids[first : first + size]))
        # Squares of the distances between rows.
        distances.append((wanted**2).sum(1)[:, None] - 2 * wanted @ features.T + (features**2).sum(1)[None])
    order = np.argsort(np.concatenate(distances, axis=1), axis=1, kind="stable")
    return ids[order[:, :count]]
