"""Collectives between the devices of a step: over a batch, and between those that share one network.

Krizhevsky split a network over two GPUs in two ways. Paper section 3.5: each holds one tower, half of the channels and
units of every layer, and sees the other's where a layer is connected to both. "One weird trick" (arXiv:1404.5997): each
computes the convolutions of its own images and holds its part of the units of the fully connected layers, for which the
images of all are put together.
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
    """The mapped axes that a step runs under; none on a single device.

    Attributes:
      batch: the axes over which images are divided.
      tower: the axis over which the network is divided; None if each device holds all of it.
    """

    batch: tuple[str, ...] = ()
    tower: str | None = None

    @property
    def towers(self) -> int:
        """Number of devices that share one network."""
        return lax.axis_size(self.tower) if self.tower else 1

    @property
    def rows(self) -> tuple[str, ...]:
        """The axes over which images are divided still, once those of a network's devices are put together."""
        return tuple(axis for axis in self.batch if axis != self.tower)

    @property
    def all(self) -> tuple[str, ...]:
        """Every axis, once."""
        return (*self.batch, self.tower) if self.tower and self.tower not in self.batch else self.batch


ONE_DEVICE = Axes()


def gather_features(x: Maps, axes: Axes) -> Maps:
    """The channels or units of all towers, in order."""
    return lax.all_gather(x, axes.tower, axis=x.ndim - 1, tiled=True)


def gather_images(x: Maps, axes: Axes) -> Float[Array, "images ..."]:
    """What the devices of a network have of all their images."""
    return lax.all_gather(x, axes.tower, tiled=True)


def gather_batch(x: Shaped[Array, "part ..."], axes: Axes) -> Shaped[Array, "batch ..."]:
    """What all devices have of a batch, in order."""
    return lax.all_gather(x, axes.batch, tiled=True) if axes.batch else x


def gather_keys(keys: Key[Array, " batch"], axes: Axes) -> Key[Array, " images"]:
    """`gather_images` of keys."""
    return jax.random.wrap_key_data(lax.all_gather(jax.random.key_data(keys), axes.tower, tiled=True))


def return_images(x: Float[Array, "images units"], axes: Axes) -> Float[Array, "batch all_units"]:
    """All units of a device's own images, from its own units of all images: undoes `gather_images`."""
    return lax.all_to_all(x, axes.tower, split_axis=0, concat_axis=1, tiled=True)


def with_neighbours(x: Float[Array, "batch rows columns channel"], reach: int, axes: Axes) -> Maps:
    """The channels with `reach` of the towers before and after; zeros where there is none."""
    last = axes.towers - 1
    forwards = [(tower, tower + 1) for tower in range(last)]
    backwards = [(tower + 1, tower) for tower in range(last)]
    before = lax.ppermute(x[..., -reach:], axes.tower, forwards)
    after = lax.ppermute(x[..., :reach], axes.tower, backwards)
    return lax.concatenate([before, x, after], x.ndim - 1)


def own_part(x: Array, axis: str | None) -> Array:
    """A tower's part of the last axis of an array that all towers have."""
    if axis is None:
        return x
    size = x.shape[-1] // lax.axis_size(axis)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axis) * size, size, axis=x.ndim - 1)


def mean_gradients(gradients: Any, axes: Axes, is_split: Callable[[str], bool]) -> Any:
    """The gradients of the mean of all devices' losses.

    What JAX differentiates is the sum of the losses of all devices: through `all_gather` and the like, a device's
    parameters get the gradients of other devices' losses as well. So those that every device holds are averaged over
    all; and those of a layer that is divided over towers, over the other axes, and are divided by the number of towers.

    Args:
      gradients: {layer: {parameter: array}} of each device's own loss.
      is_split: whether the layer of that name is divided over the towers.
    """

    def mean(path: Any, gradient: Array) -> Array:
        if axes.tower and gradient.ndim and is_split(path[0].key):
            return (lax.pmean(gradient, axes.rows) if axes.rows else gradient) / axes.towers
        return lax.pmean(gradient, axes.all)

    return jax.tree_util.tree_map_with_path(mean, gradients) if axes.all else gradients


def sum_over_images(sums: Any, axes: Axes) -> Any:
    """The sums over the images of all devices."""
    return lax.psum(sums, axes.batch) if axes.batch else sums
