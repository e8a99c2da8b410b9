"""Augmentation and normalisation inside the compiled step; all randomness comes from one key for each example."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt8

from alexnet_jax.config import check_value
from alexnet_jax.distortions import recoloured, rotated, trivially_augmented
from alexnet_jax.errors import UserError
from alexnet_jax.resizing import mirrored, random_box, resized_crops

Pixels = UInt8[Array, "batch size size 3"]
Centred = Float[Array, "batch size size 3"]
Crops = Float[Array, "batch crop crop 3"]

VIEWS = (1, 2, 10)
"""Numbers of views that a prediction may average: 1, the central crop; 2, also its mirror image; 10, the central and
the four corner crops with their mirror images (paper section 4.1)."""

_ROTATION, _COLOUR, _TRIVIAL, _ERASING = range(3, 7)
"""The numbers folded into an image's key for these; `jax.random.split` gives the keys 0 to 2."""

_CUTMIX, _CHOICE = 2, 3
"""The numbers folded into an image's key of mixing; mixup takes the key itself."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images are cropped, augmented and normalised. Pixels and their statistics are grey levels from 0 to 255.

    Attributes:
      crop: side of the network's input, in pixels.
      cropping: how training images are cropped: "random", every crop equally likely (paper section 4.1; CHM
        convdata_jpeg.py); "resized", a random box scaled to crop x crop (the modern recipe); or "centre".
      resized_min_area, resized_max_aspect: the boxes of "resized"; see `random_box`.
      mirror: whether to mirror half of the training images.
      rotation, brightness, contrast, saturation, trivial_augment: see `distortions`; 0 or False for none.
      random_erasing: probability that a box is erased; see `erase_boxes`.
      mean: what is subtracted: means of R, G and B, [3], or the mean image, [size, size, 3].
      mean_form: "channel", the means of R, G and B; "image_centre", the central crop of the mean image from every crop,
        wherever it lies and mirrored or not (CHM convdata_jpeg.py, data_mean_crop); "image_crop", the mean image at the
        crop's own place (Caffe src/caffe/data_transformer.cpp).
      std: divisors of R, G and B.
      color_noise: standard deviation of the noise's factors on the principal components; 0 for no noise.
      color_noise_form: "source" or "paper"; see `add_color_noise`.
      color_noise_until_epoch: the epoch at which the noise ends; 0 for never.
      mixup, cutmix: parameters alpha of the Beta distributions of mixup weights and of the areas of CutMix; 0 for none.
        See `mix`.
      pca_std, pca_vectors: standard deviations along the principal components of R, G and B over the training set, and
        the components as columns.
    """

    crop: int
    cropping: str
    resized_min_area: float
    resized_max_aspect: float
    mirror: bool
    rotation: float
    brightness: float
    contrast: float
    saturation: float
    trivial_augment: bool
    random_erasing: float
    mean: np.ndarray
    mean_form: str
    std: Sequence[float]
    color_noise: float
    color_noise_form: str
    color_noise_until_epoch: float
    mixup: float
    cutmix: float
    pca_std: np.ndarray
    pca_vectors: np.ndarray

    def __post_init__(self) -> None:
        for key in ("cropping", "color_noise_form", "mean_form"):
            check_value(f"data.{key}", getattr(self, key))
        if self.mean_form == "image_crop" and self.cropping == "resized":
            raise UserError("config.data.mean_form='image_crop' needs config.data.cropping='random' or 'centre'")

    @property
    def measured(self) -> dict[str, np.ndarray]:
        """The arrays that may be measured on the training images, by name; a checkpoint holds them."""
        return {"mean": self.mean, "pca_std": self.pca_std, "pca_vectors": self.pca_vectors}

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed."""
        return bool(self.mixup or self.cutmix)

    def centre(self, image: Any) -> Any:
        """The central crop, [..., crop, crop, 3], of images [..., size, size, 3]."""
        border = (image.shape[-2] - self.crop) // 2
        return image[..., border : border + self.crop, border : border + self.crop, :]


@jax.named_scope("crops")
def training_images(
    preprocessing: Preprocessing, images: Pixels, keys: Key[Array, " batch"], epoch: Int[Array, " batch"]
) -> Crops:
    """Augments and normalises images for training.

    Args:
      preprocessing: see Preprocessing.
      images: resized images, uint8.
      keys: one random key for each image.
      epoch: the epoch of each image, from 0.
    """
    p = preprocessing
    crop_keys, mirror_keys, color_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    images = _subtract_mean_image(p, _distorted(p, images, keys))
    mirror = jax.vmap(jax.random.bernoulli)(mirror_keys) if p.mirror else jnp.zeros(len(keys), bool)
    if p.cropping == "resized":
        crops = resized_crops(images, crop_keys, mirror, p.crop, p.resized_min_area, p.resized_max_aspect)
    else:
        whole = (
            p.centre(images).astype(jnp.float32) if p.cropping == "centre" else random_crops(images, crop_keys, p.crop)
        )
        crops = mirrored(whole, mirror)
    crops = _subtract_mean(p, crops)
    if p.color_noise:
        on = epoch.astype(jnp.float32) < (p.color_noise_until_epoch or jnp.inf)
        strength = jnp.where(on, jnp.float32(p.color_noise), 0.0)
        crops = add_color_noise(crops, color_keys, strength, p.color_noise_form, p.pca_std, p.pca_vectors)
    crops = crops / _channels(p.std)
    return erase_boxes(crops, fold_in(keys, _ERASING), p.random_erasing) if p.random_erasing else crops


def _distorted(p: Preprocessing, images: Pixels, keys: Key[Array, " batch"]) -> Pixels | Centred:
    """Distorts whole images by the distortions that are on."""
    if p.rotation:
        rotate = functools.partial(rotated, degrees=p.rotation)
        images = jax.vmap(rotate)(images.astype(jnp.float32), fold_in(keys, _ROTATION))
    if p.brightness or p.contrast or p.saturation:
        recolour = functools.partial(recoloured, brightness=p.brightness, contrast=p.contrast, saturation=p.saturation)
        images = jax.vmap(recolour)(images.astype(jnp.float32), fold_in(keys, _COLOUR))
    if p.trivial_augment:
        images = jax.vmap(trivially_augmented)(images.astype(jnp.float32), fold_in(keys, _TRIVIAL))
    return images


def fold_in(keys: Key[Array, " batch"], number: int) -> Key[Array, " batch"]:
    """New keys, each made of a key and the number."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def erase_boxes(crops: Crops, keys: Key[Array, " batch"], probability: float) -> Crops:
    """Sets a random box of an image to 0, the mean, with a probability (random erasing, Zhong et al. 2020).

    The box has 2 to 33 % of the crop's area and an aspect ratio from 0.3 to 1 / 0.3; see `random_box`.
    """

    def one(crop: Array, key: Array) -> Array:
        box_key, chance_key = jax.random.split(key)
        box = random_box(box_key, crop.shape[0], (0.02, 0.33), 1 / 0.3)
        erased = _inside(crop.shape[0], *box) & jax.random.bernoulli(chance_key, probability)
        return jnp.where(erased[:, :, None], 0.0, crop)

    return jax.vmap(one)(crops, keys)


def _inside(size: int, row: Array, column: Array, height: Array, width: Array) -> Bool[Array, "size size"]:
    """Which pixels of a size x size image lie in a box."""
    rows, columns = jnp.mgrid[:size, :size].astype(jnp.float32)
    return (rows >= row) & (rows < row + height) & (columns >= column) & (columns < column + width)


def mix(
    preprocessing: Preprocessing, images: Crops, keys: Key[Array, " batch"]
) -> tuple[Crops, Float[Array, " batch"]]:
    """Mixes each image with its partner, by mixup or CutMix, whichever is on, or if both are, by either half the time.

    Returns the mixed images and the weight of each image's own label.
    """
    p = preprocessing
    weights = mixup_weights(keys, p.mixup) if p.mixup else jnp.ones(len(images))
    mixed = mix_pairs(images, weights)
    if not p.cutmix:
        return mixed, weights
    is_cut = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5 if p.mixup else 1.0))(fold_in(keys, _CHOICE))
    own = ~cutmix_boxes(fold_in(keys, _CUTMIX), p.cutmix, p.crop)
    cut = jnp.where(own[:, :, :, None], images, partners(images))
    mixed = jnp.where(is_cut[:, None, None, None], cut, mixed)
    return mixed, jnp.where(is_cut, own.mean(axis=(1, 2)), weights)


def cutmix_boxes(keys: Key[Array, " batch"], alpha: float, crop: int) -> Bool[Array, "batch crop crop"]:
    """Which pixels of each crop its partner replaces (CutMix, Yun et al. 2019).

    A square of the fraction 1 - w of the crop's area, w as of `mixup_weights`, lies around a pixel drawn uniformly; of
    what hangs over the crop nothing is left.
    """

    def one(weight: Array, key: Array) -> Array:
        half = jnp.floor(crop * jnp.sqrt(1 - weight) / 2)
        row, column = jax.random.randint(key, (2,), 0, crop).astype(jnp.float32)
        return _inside(crop, row - half, column - half, 2 * half, 2 * half)

    weight_keys, place_keys = jax.vmap(lambda key: jax.random.split(key), out_axes=1)(keys)
    return jax.vmap(one)(mixup_weights(weight_keys, alpha), place_keys)


def mixup_weights(keys: Key[Array, " batch"], alpha: float) -> Float[Array, " batch"]:
    """Draws the mixup weight of each example's own image and label: max(l, 1 - l) with l from Beta(alpha, alpha)."""
    drawn = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
    return jnp.maximum(drawn, 1 - drawn)


def mix_pairs(images: Crops, weights: Float[Array, " batch"]) -> Crops:
    """Mixes each image with its partner: weight * image + (1 - weight) * partner (mixup, Zhang et al. 2018)."""
    weights = weights[:, None, None, None]
    return weights * images + (1 - weights) * partners(images)


def partners(values: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """The values of each example's partner in mixing: examples 1 and 2 of a batch are partners, 3 and 4, and so on.

    Since the order of examples is random, so are the pairs; and they do not depend on the number of devices.

    Raises UserError for an odd number of examples.
    """
    if len(values) % 2:
        raise UserError(
            "config.data.mixup and config.data.cutmix need pairs, but a device has "
            f"{len(values)} images at a time: change config.batch_size"
        )
    pairs = values.reshape(-1, 2, *values.shape[1:])
    return pairs[:, ::-1].reshape(values.shape)


def testing_images(preprocessing: Preprocessing, images: Pixels, views: int) -> Float[Array, "views batch crop crop 3"]:
    """The normalised views of each image that a prediction averages. Raises UserError for a number not in `VIEWS`."""
    if views not in VIEWS:
        raise UserError(f"views={views}: the number of views must be one of {', '.join(map(str, VIEWS))}")
    p = preprocessing
    images = _subtract_mean_image(p, images)
    border = images.shape[1] - p.crop
    corners = [(0, 0), (0, border), (border, 0), (border, border)] if views == 10 else []
    windows = [p.centre(images)]
    windows += [images[:, row : row + p.crop, column : column + p.crop] for row, column in corners]
    if views > 1:
        windows += [window[:, :, ::-1] for window in windows]
    return jnp.stack([_subtract_mean(p, window.astype(jnp.float32)) / _channels(p.std) for window in windows])


def _subtract_mean_image(p: Preprocessing, images: Pixels | Centred) -> Pixels | Centred:
    """Subtracts the mean image from whole images, before they are cropped, if `mean_form` is "image_crop"."""
    return images.astype(jnp.float32) - p.mean[None] if p.mean_form == "image_crop" else images


def _subtract_mean(p: Preprocessing, crops: Crops) -> Crops:
    """Subtracts the mean from crops in the other forms; see `_subtract_mean_image`."""
    if p.mean_form == "image_crop":
        return crops
    return crops - (_channels(p.mean) if p.mean_form == "channel" else p.centre(p.mean)[None])


def visible(p: Preprocessing, crops: Crops) -> UInt8[Array, "batch crop crop 3"]:
    """Normalised crops as pictures: the mean is added back, of "image_crop" that of the centre."""
    mean = _channels(p.mean) if p.mean_form == "channel" else p.centre(p.mean)[None]
    return jnp.clip(jnp.round(crops * _channels(p.std) + mean), 0, 255).astype(jnp.uint8)


def random_crops(images: Pixels | Centred, keys: Key[Array, " batch"], crop: int) -> Crops:
    """A crop x crop window of each image, at a row and a column drawn uniformly from 0 to size - crop."""

    def one(image: Array, key: Array) -> Array:
        row, column = jax.random.randint(key, (2,), 0, image.shape[0] - crop + 1)
        return jax.lax.dynamic_slice(image, (row, column, 0), (crop, crop, 3))

    return jax.vmap(one)(images, keys).astype(jnp.float32)


def add_color_noise(
    images: Crops,
    keys: Key[Array, " batch"],
    strength: Float[Array, " batch"],
    form: str,
    pca_std: np.ndarray,
    pca_vectors: np.ndarray,
) -> Crops:
    """Adds one random colour to all pixels of an image, along the principal components of the training set's colours.

    The colour is sum_i a_i w_i p_i, with a_i drawn from N(0, strength^2), p_i the i-th component, and w_i by `form`:
    "source" (CHM convdata_jpeg.py:57): the *standard deviation* along p_i; the image, its mean already subtracted, is
    then divided by 1 + strength. "paper" (section 4.1): the *eigenvalue* of the covariance, the square of that
    deviation, for pixels from 0 to 1, as the customary eigenvalues 0.2175, 0.0188 and 0.0045 are; then scaled to 255.

    Args:
      images: crops with their mean subtracted, in grey levels.
      keys: one random key for each image.
      strength: standard deviation of the factors of each image; 0 for no noise.
      form: "source" or "paper".
      pca_std, pca_vectors: see Preprocessing.
    """
    std, vectors = jnp.asarray(pca_std, jnp.float32), jnp.asarray(pca_vectors, jnp.float32)
    factors = strength[:, None] * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    weights = std if form == "source" else std**2 / 255
    # No matrix product, because its rounding depends on the number of images on a device.
    first, second, third = jnp.split(factors * weights[None], 3, axis=1)
    colors = first * vectors[None, :, 0] + second * vectors[None, :, 1] + third * vectors[None, :, 2]
    shifted = images + colors[:, None, None, :]
    return shifted / (1 + strength)[:, None, None, None] if form == "source" else shifted


def _channels(values: np.ndarray | Sequence[float]) -> Float[Array, "1 1 1 3"]:
    return jnp.asarray(values, jnp.float32).reshape(1, 1, 1, 3)
