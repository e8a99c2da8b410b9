"""Collectives of data and tensor parallelism between the devices of a step.

Krizhevsky divided a network over two GPUs in two ways. In the paper (section 3.5) each GPU holds one tower, half of the
channels and units of every layer, and gathers the other half where a layer is connected to both. In "One weird trick"
(arXiv:1404.5997) each GPU computes the convolutions of its own images, but holds a shard of the units of the fully
connected layers, which see the gathered images of all GPUs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float, Key, Shaped

Maps = Float[Array, "batch ..."]


@dataclasses.dataclass(frozen=True)
class Axes:
    """The mapped axes of a step; none on a single device.

    Attributes:
      batch: the axes over which the batch is sharded.
      tower: the axis over which the network is sharded; None if each device holds all of it.
    """

    batch: tuple[str, ...] = ()
    tower: str | None = None

    @property
    def towers(self) -> int:
        """Number of devices that share one network."""
        return lax.axis_size(self.tower) if self.tower else 1

    @property
    def rows(self) -> tuple[str, ...]:
        """The batch axes without `tower`: those over which images stay sharded after `gather_images`."""
        return tuple(axis for axis in self.batch if axis != self.tower)

    @property
    def all(self) -> tuple[str, ...]:
        """All axes, each once."""
        return (*self.batch, self.tower) if self.tower and self.tower not in self.batch else self.batch


ONE_DEVICE = Axes()


def gather_features(x: Maps, axes: Axes) -> Maps:
    """All-gathers the last axis: the channels or units of all devices that share the network."""
    return lax.all_gather(x, axes.tower, axis=x.ndim - 1, tiled=True)


def gather_images(x: Maps, axes: Axes) -> Float[Array, "images ..."]:
    """All-gathers the first axis: the images of all devices that share the network."""
    return lax.all_gather(x, axes.tower, tiled=True)


def gather_batch(x: Shaped[Array, "shard ..."], axes: Axes) -> Shaped[Array, "batch ..."]:
    """All-gathers the shards of a batch over all devices, in order."""
    return lax.all_gather(x, axes.batch, tiled=True) if axes.batch else x


def gather_keys(keys: Key[Array, " batch"], axes: Axes) -> Key[Array, " images"]:
    """`gather_images` for random keys."""
    return jax.random.wrap_key_data(lax.all_gather(jax.random.key_data(keys), axes.tower, tiled=True))


def return_images(x: Float[Array, "images units"], axes: Axes) -> Float[Array, "batch all_units"]:
    """All-to-all that undoes `gather_images`: trades a shard of units of all images for all units of own images."""
    return lax.all_to_all(x, axes.tower, split_axis=0, concat_axis=1, tiled=True)


def exchange_halo(x: Float[Array, "batch rows columns channel"], reach: int, axes: Axes) -> Maps:
    """Adds `reach` channels of the previous and of the next tower to both ends; zeros where there is no tower."""
    last = axes.towers - 1
    forwards = [(tower, tower + 1) for tower in range(last)]
    backwards = [(tower + 1, tower) for tower in range(last)]
    before = lax.ppermute(x[..., -reach:], axes.tower, forwards)
    after = lax.ppermute(x[..., :reach], axes.tower, backwards)
    return lax.concatenate([before, x, after], x.ndim - 1)


def own_shard(x: Array, axis: str | None) -> Array:
    """This device's shard of the last axis of an array that every device along a mapped axis holds."""
    if axis is None:
        return x
    size = x.shape[-1] // lax.axis_size(axis)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axis) * size, size, axis=x.ndim - 1)


def mean_gradients(gradients: Any, axes: Axes, is_split: Callable[[str], bool]) -> Any:
    """All-reduces gradients to those of the mean loss over all devices.

    JAX differentiates the sum of all devices' losses: through collectives such as `all_gather`, a device's parameters
    also receive the gradients of other devices' losses. So the gradients of replicated parameters are averaged over all
    devices; those of sharded layers are averaged over the other axes and divided by the number of shards.

    Args:
      gradients: {layer: {parameter: array}} of the device's own loss.
      axes: the mapped axes.
      is_split: whether the layer of that name is sharded over `axes.tower`.
    """

    def mean(path: Any, gradient: Array) -> Array:
        if axes.tower and gradient.ndim and is_split(path[0].key):
            return (lax.pmean(gradient, axes.rows) if axes.rows else gradient) / axes.towers
        return lax.pmean(gradient, axes.all)

    return jax.tree_util.tree_map_with_path(mean, gradients) if axes.all else gradients


def sum_over_images(sums: Any, axes: Axes) -> Any:
    """All-reduces sums over the shards of the batch."""
    return lax.psum(sums, axes.batch) if axes.batch else sums
