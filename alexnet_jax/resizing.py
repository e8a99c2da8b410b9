"""Random boxes of images, scaled to the size of the network's input and mirrored."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from alexnet_jax.ops.platforms import by_platform

Images = Num[Array, "batch size size 3"]
Crops = Float[Array, "batch crop crop 3"]


def mirrored(crops: Crops, mirror: Bool[Array, " batch"]) -> Crops:
    """Mirrors those of the crops."""
    return jnp.where(mirror[:, None, None, None], crops[:, :, ::-1], crops)


def resized_crops(
    images: Images,
    keys: Key[Array, " batch"],
    mirror: Bool[Array, " batch"],
    crop: int,
    min_area: float,
    max_aspect: float,
) -> Crops:
    """A box of each image, of at least `min_area`, scaled to crop x crop with an antialiased triangle filter.

    Those in `mirror` are mirrored. On GPUs each pixel is a weighted sum of the few that the filter covers: one kernel
    that reads images and writes crops. Elsewhere matrix products, with mostly zeros, are faster.
    """
    draw = functools.partial(random_box, size=images.shape[1], areas=(min_area, 1.0), max_aspect=max_aspect)
    boxes = jax.vmap(draw)(keys)
    cpu, tpu = (functools.partial(_scale_by_products, crop=crop, precision=name) for name in ("highest", "default"))
    default = functools.partial(_scale_by_taps, crop=crop)
    return by_platform(images, mirror, *boxes, cpu=cpu, tpu=tpu, default=default)


def _scale_by_products(
    images: Images, mirror: Bool[Array, " batch"], *boxes: Float[Array, " batch"], crop: int, precision: str
) -> Crops:
    """Scales boxes, that is, rows, columns, heights and widths, by two matrix products an image."""

    def one(image: Array, row: Array, column: Array, height: Array, width: Array) -> Array:
        scale = crop / jnp.stack([height, width])
        options: dict[str, Any] = {"method": "linear", "antialias": True, "precision": precision}
        shape, translation = (crop, crop, 3), -jnp.stack([row, column]) * scale
        return jax.image.scale_and_translate(image.astype(jnp.float32), shape, (0, 1), scale, translation, **options)

    return mirrored(jax.vmap(one)(images, *boxes), mirror)


def _scale_by_taps(images: Images, mirror: Bool[Array, " batch"], *boxes: Float[Array, " batch"], crop: int) -> Crops:
    """`_scale_by_products` by sums over the pixels under the filter; a mirror image is that of a negative width."""
    row, column, height, width = boxes
    column, width = jnp.where(mirror, column + width, column), jnp.where(mirror, -width, width)

    def one(image: Array, row: Array, column: Array, height: Array, width: Array) -> Array:
        rows, columns = (_taps(*side, crop, len(image)) for side in ((row, height), (column, width)))
        narrow = _sum(weight[:, None, None] * image[place].astype(jnp.float32) for place, weight in rows)
        return _sum(weight[None, :, None] * narrow[:, place] for place, weight in columns)

    return jax.vmap(one)(images, row, column, height, width)


def _taps(
    start: Array, length: Array, outputs: int, size: int
) -> list[tuple[Int[Array, " outputs"], Float[Array, " outputs"]]]:
    """The pixels that a triangle filter covers at each output, and their weights, for one side of a box."""
    scale = length / outputs
    reach = jnp.maximum(jnp.abs(scale), 1.0)
    centres = start + (jnp.arange(outputs, dtype=jnp.float32) + 0.5) * scale - 0.5
    first = jnp.floor(centres - reach) + 1
    places = [first + tap for tap in range(math.ceil(2 * max(size / outputs, 1)))]
    inside = [(place >= 0) & (place < size) for place in places]
    weights = [
        jnp.where(valid, jnp.maximum(1 - jnp.abs(place - centres) / reach, 0.0), 0.0)
        for place, valid in zip(places, inside, strict=True)
    ]
    total = _sum(weights)
    return [
        (jnp.clip(place, 0, size - 1).astype(jnp.int32), weight / total)
        for place, weight in zip(places, weights, strict=True)
    ]


def _sum(arrays: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, arrays)


def random_box(
    key: Key[Array, ""], size: int, areas: tuple[float, float], max_aspect: float
) -> tuple[Array, Array, Array, Array]:
    """Draws a box in a size x size image: row, column, height and width, in whole pixels.

    Its area is a fraction of the image's drawn uniformly from `areas`, its aspect ratio lies between 1 / max_aspect and
    max_aspect, uniform in its logarithm. As in torchvision's RandomResizedCrop the first of ten draws that fits is
    taken, or the whole image if none does.
    """
    area_key, ratio_key, row_key, column_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (10,), minval=areas[0], maxval=areas[1]) * size**2
    lowest, highest = jnp.log(1 / max_aspect), jnp.log(max_aspect)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=lowest, maxval=highest))
    widths, heights = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (widths <= size) & (heights <= size)
    first = jnp.argmax(fits)
    height, width = (jnp.where(fits.any(), sides[first], size) for sides in (heights, widths))
    row, column = (
        jnp.floor(jax.random.uniform(side_key) * (size - side + 1))
        for side_key, side in ((row_key, height), (column_key, width))
    )
    return row, column, height, width
