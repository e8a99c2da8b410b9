"""Augmentation and normalisation inside the compiled step: bytes in, floating point out, one key an example."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

Pixels = UInt8[Array, "batch size size 3"]
Crops = UInt8[Array, "batch crop crop 3"]


def random_crop_and_mirror(images: Pixels, keys: Key[Array, " batch"], crop: int, mirror: bool) -> Crops:
    """A random crop x crop window of each image, mirrored with probability 1/2 if `mirror` (paper section 4.1).

    Every offset from 0 to size - crop is equally likely, as in the source (CHM convdata_jpeg.py).
    """

    def one(image: Array, key: Array) -> Array:
        offset_key, mirror_key = jax.random.split(key)
        row, column = jax.random.randint(offset_key, (2,), 0, image.shape[0] - crop + 1)
        window = jax.lax.dynamic_slice(image, (row, column, 0), (crop, crop, 3))
        if not mirror:
            return window
        return jnp.where(jax.random.bernoulli(mirror_key), window[:, ::-1], window)

    return jax.vmap(one)(images, keys)


def center_crop(images: Pixels, crop: int) -> Crops:
    """The crop x crop window in the middle of each image."""
    offset = (images.shape[1] - crop) // 2
    return images[:, offset : offset + crop, offset : offset + crop]


def normalize(images: Pixels, mean: Sequence[float], std: Sequence[float]) -> Float[Array, "batch size size 3"]:
    """(pixel - mean) / std for each of R, G and B; all in grey levels of 0 to 255. The source has std 1."""
    mean_array, std_array = (jnp.asarray(values, jnp.float32).reshape(1, 1, 1, 3) for values in (mean, std))
    return (images.astype(jnp.float32) - mean_array) / std_array
