"""From stored bytes to what the network sees, inside the compiled step: one key an example, nothing else random."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from alexnet_jax.errors import UserError

Pixels = UInt8[Array, "batch size size 3"]
Crops = Float[Array, "batch crop crop 3"]

CROPPINGS = ("random", "resized")
COLOR_NOISE_FORMS = ("source", "paper")
VIEWS = (1, 2, 10)
"""Views in testing: the centre; with its mirror image; with the four corners and theirs (paper section 4.1)."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images are cropped, coloured and normalised. Pixels and their statistics are grey levels of 0 to 255.

    Attributes:
      crop: side of the window that the network sees.
      cropping: "random", every window equally likely (paper section 4.1; CHM convdata_jpeg.py), or "resized", a random
        part of random shape scaled to the window (the modern recipe).
      mirror: reflect half of the training images.
      mean, std: subtracted from and divided into R, G and B.
      color_noise: standard deviation of the factors on the principal components; 0 for none.
      color_noise_form: "source" or "paper"; see `add_color_noise`.
      color_noise_until_epoch: the noise ends with this epoch; 0 for never.
      pca_std, pca_vectors: standard deviations along the principal components of R, G and B over the training set, and
        the components as columns.
    """

    crop: int
    cropping: str
    mirror: bool
    mean: Sequence[float]
    std: Sequence[float]
    color_noise: float
    color_noise_form: str
    color_noise_until_epoch: float
    pca_std: Sequence[float]
    pca_vectors: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        for key, known in (("cropping", CROPPINGS), ("color_noise_form", COLOR_NOISE_FORMS)):
            if getattr(self, key) not in known:
                raise UserError(f"config.data.{key}={getattr(self, key)!r} is unknown; there are: {', '.join(known)}")


def training_images(
    preprocessing: Preprocessing, images: Pixels, keys: Key[Array, " batch"], epoch: Int[Array, " batch"]
) -> Crops:
    """One random view of each image; `epoch` is that of each example, counted from 0."""
    p = preprocessing
    crop_keys, mirror_keys, color_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    crops = (
        random_crops(images, crop_keys, p.crop) if p.cropping == "random" else resized_crops(images, crop_keys, p.crop)
    )
    if p.mirror:
        reflect = jax.vmap(jax.random.bernoulli)(mirror_keys)
        crops = jnp.where(reflect[:, None, None, None], crops[:, :, ::-1], crops)
    centred = crops - _channels(p.mean)
    if p.color_noise:
        on = (epoch < p.color_noise_until_epoch) if p.color_noise_until_epoch else jnp.ones_like(epoch, dtype=bool)
        strength = jnp.where(on, jnp.float32(p.color_noise), 0.0)
        centred = add_color_noise(centred, color_keys, strength, p.color_noise_form, p.pca_std, p.pca_vectors)
    return centred / _channels(p.std)


def testing_images(preprocessing: Preprocessing, images: Pixels, views: int) -> Float[Array, "views batch crop crop 3"]:
    """The views of each image that its prediction is averaged over: see `VIEWS`."""
    p = preprocessing
    border = images.shape[1] - p.crop
    corners = [(0, 0), (0, border), (border, 0), (border, border)] if views == 10 else []
    windows = [
        images[:, row : row + p.crop, column : column + p.crop]
        for row, column in [(border // 2, border // 2), *corners]
    ]
    if views > 1:
        windows += [window[:, :, ::-1] for window in windows]
    return (jnp.stack(windows).astype(jnp.float32) - _channels(p.mean)[None]) / _channels(p.std)[None]


def random_crops(images: Pixels, keys: Key[Array, " batch"], crop: int) -> Crops:
    """A crop x crop window of each image, at any offset from 0 to size - crop with the same probability."""

    def one(image: Array, key: Array) -> Array:
        row, column = jax.random.randint(key, (2,), 0, image.shape[0] - crop + 1)
        return jax.lax.dynamic_slice(image, (row, column, 0), (crop, crop, 3))

    return jax.vmap(one)(images, keys).astype(jnp.float32)


def resized_crops(images: Pixels, keys: Key[Array, " batch"], crop: int) -> Crops:
    """A random box of each image, scaled to crop x crop with an antialiased triangle filter.

    The box has 8 to 100 % of the area and a ratio of width to height of 3/4 to 4/3, uniform in its logarithm. As in
    torchvision's RandomResizedCrop the first of ten draws that fits is taken, and the whole image if none does.
    """
    size = images.shape[1]

    def one(image: Array, key: Array) -> Array:
        rows, columns, height, width = random_box(key, size)
        scale = crop / jnp.stack([height, width])
        translation = -jnp.stack([rows, columns]) * scale
        return jax.image.scale_and_translate(
            image.astype(jnp.float32), (crop, crop, 3), (0, 1), scale, translation, method="linear", antialias=True
        )

    return jax.vmap(one)(images, keys)


def random_box(key: Key[Array, ""], size: int) -> tuple[Array, Array, Array, Array]:
    """First row and column, height and width of a box in a size x size image, in whole pixels; see `resized_crops`."""
    area_key, ratio_key, row_key, column_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (10,), minval=0.08, maxval=1.0) * size**2
    ratio = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=jnp.log(3 / 4), maxval=jnp.log(4 / 3)))
    widths, heights = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (widths <= size) & (heights <= size)
    first = jnp.argmax(fits)
    height, width = (jnp.where(fits.any(), sides[first], size) for sides in (heights, widths))
    row, column = (
        jnp.floor(jax.random.uniform(side_key) * (size - side + 1))
        for side_key, side in ((row_key, height), (column_key, width))
    )
    return row, column, height, width


def add_color_noise(
    images: Crops,
    keys: Key[Array, " batch"],
    strength: Float[Array, " batch"],
    form: str,
    pca_std: Sequence[float],
    pca_vectors: Sequence[Sequence[float]],
) -> Crops:
    """Shifts all pixels of an image by one random colour along the principal components of the training set's colours.

    "source" (CHM convdata_jpeg.py:57): factors of standard deviation `strength` on the *standard deviations* along the
    components; then the image, its mean already subtracted, is divided by 1 + strength. "paper" (section 4.1): factors
    on the *eigenvalues* of the covariance, which are squares, so their weight depends on the scale of the pixels; here
    that of 0 to 1 which the customary eigenvalues 0.2175, 0.0188 and 0.0045 belong to.
    """
    std, vectors = jnp.asarray(pca_std, jnp.float32), jnp.asarray(pca_vectors, jnp.float32)
    factors = strength[:, None] * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    weights = std if form == "source" else std**2 / 255
    shifted = images + ((factors * weights[None]) @ vectors.T)[:, None, None, :]
    return shifted / (1 + strength)[:, None, None, None] if form == "source" else shifted


def _channels(values: Sequence[float]) -> Float[Array, "1 1 1 3"]:
    return jnp.asarray(values, jnp.float32).reshape(1, 1, 1, 3)
