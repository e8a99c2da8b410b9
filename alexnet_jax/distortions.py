"""Distortions of whole images, before they are cropped, which 2012 did not have; by one random key an image.

Images are float32, [size, size, 3], grey levels from 0 to 255. Sums over an image are sums of integers: they are exact,
however many images a device has.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, Key

Image = Float[Array, "size size 3"]
Grey = Float[Array, "size size 1"]
Number = Float[Array, ""] | float

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "contrast", "saturation", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
"""The operations of TrivialAugment (Mueller and Hutter 2021, the space "wide")."""

STRENGTHS = 31
"""The strengths between which TrivialAugment chooses, at equal distances from 0 to 1."""


def rotated(image: Image, key: Key[Array, ""], degrees: float) -> Image:
    """Rotates an image about its centre by an angle drawn uniformly from -degrees to degrees; see `warp`."""
    return warp(image, _rotation(jax.random.uniform(key, minval=-degrees, maxval=degrees)))


def recoloured(image: Image, key: Key[Array, ""], brightness: float, contrast: float, saturation: float) -> Image:
    """Multiplies brightness, contrast and saturation, in this order, by factors from max(0, 1 - s) to 1 + s.

    Blends the image with black, with its mean grey and with itself in grey (Pillow's ImageEnhance; torchvision's
    ColorJitter takes a random order). See `blend`.
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for (name, strength), own_key in zip(strengths.items(), jax.random.split(key, 3), strict=True):
        if strength:
            factor = jax.random.uniform(own_key, minval=max(0.0, 1 - strength), maxval=1 + strength)
            image = blend(BLENDED_WITH[name](image), image, factor)
    return image


def trivially_augmented(image: Image, key: Key[Array, ""]) -> Image:
    """Applies one operation with one strength and direction, each drawn uniformly (TrivialAugment); see `operate`."""
    operation_key, strength_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
    strength = jax.random.randint(strength_key, (), 0, STRENGTHS).astype(jnp.float32) / (STRENGTHS - 1)
    return operate(image, operation, strength, jax.random.rademacher(sign_key, (), jnp.float32))


def operate(image: Image, operation: Int[Array, ""], strength: Number, sign: Number) -> Image:
    """Applies one of OPERATIONS to an image.

    At full strength an image is sheared by 0.99, translated by 1/7 of its side (32 of 224 pixels), rotated by 135
    degrees, or blended by a factor of 1 +- 0.99; or it keeps two bits, or all levels are inverted.

    Args:
      image: the image, rounded here.
      operation: index into OPERATIONS.
      strength: from 0 to 1; the last two operations have none.
      sign: 1.0 or -1.0, the direction of shears, translations, rotations and blends.
    """
    image, signed = jnp.round(image), sign * strength
    shear, shift = 0.99 * signed, signed * image.shape[0] / 7
    affines = [
        _affine(),
        _affine(x_by_y=shear),
        _affine(y_by_x=shear),
        _affine(x_shift=shift),
        _affine(y_shift=shift),
        _rotation(135 * signed),
    ]
    warped = warp(image, jnp.stack(affines)[jnp.minimum(operation, len(affines) - 1)])
    blends = [blend(other(image), image, 1 + 0.99 * signed) for other in BLENDED_WITH.values()]
    tones = [posterized(image, strength), solarized(image, strength), autocontrasted(image), equalized(image)]
    return jax.lax.select_n(operation, *[warped] * len(affines), *blends, *tones)


def warp(image: Image, affine: Float[Array, "2 3"]) -> Image:
    """Samples an image bilinearly at `affine` (x, y, 1), for each pixel (x, y) seen from the centre.

    Beyond its edges the image is continued by its mirror image.
    """
    middle = (image.shape[0] - 1) / 2
    y, x = jnp.mgrid[: image.shape[0], : image.shape[0]].astype(jnp.float32) - middle
    columns, rows = (by_x * x + by_y * y + shift + middle for by_x, by_y, shift in affine)
    sample = functools.partial(map_coordinates, coordinates=[rows, columns], order=1, mode="mirror")
    return jax.vmap(sample, in_axes=2, out_axes=2)(image)


def _affine(
    x_by_y: Number = 0.0, y_by_x: Number = 0.0, x_shift: Number = 0.0, y_shift: Number = 0.0, both: Number = 1.0
) -> Float[Array, "2 3"]:
    return jnp.array([[both, x_by_y, x_shift], [y_by_x, both, y_shift]])


def _rotation(degrees: Number) -> Float[Array, "2 3"]:
    """The `affine` of `warp` that turns an image anticlockwise."""
    angle = jnp.deg2rad(degrees)
    return _affine(both=jnp.cos(angle), x_by_y=-jnp.sin(angle), y_by_x=jnp.sin(angle))


def blend(other: Image | Grey | Number, image: Image, factor: Number) -> Image:
    """other + factor (image - other), clipped to grey levels; a factor above 1 moves the image away from the other."""
    return jnp.clip(other + factor * (image - other), 0.0, 255.0)


def grey(image: Image) -> Grey:
    """The brightness of each pixel (ITU-R 601), in integers as Pillow computes it."""
    red, green, blue = jnp.split(jnp.round(image).astype(jnp.int32), 3, axis=2)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).astype(jnp.float32)


def mean_grey(image: Image) -> Float[Array, ""]:
    """The mean of the grey image."""
    return jnp.sum(grey(image).astype(jnp.uint32)).astype(jnp.float32) / image.shape[0] ** 2


def smooth(image: Image) -> Image:
    """Weighted means of 3 x 3 pixels, 5/13 in the middle and 1/13 around it; edges stay (Pillow's SMOOTH)."""
    size = image.shape[0] - 2
    windows = [image[row : row + size, column : column + size] for row in range(3) for column in range(3)]
    return image.at[1:-1, 1:-1].set((sum(windows, 4 * windows[4])) / 13)


BLENDED_WITH: dict[str, Callable[[Image], Array]] = {
    "brightness": jnp.zeros_like,
    "contrast": mean_grey,
    "saturation": grey,
    "sharpness": smooth,
}
"""What an image is blended with to change these."""


def posterized(image: Image, strength: Number) -> Image:
    """Clears the lowest bits of each level: none at strength 0, six at 1."""
    step = 2.0 ** jnp.round(6 * strength)
    return jnp.floor(image / step) * step


def solarized(image: Image, strength: Number) -> Image:
    """Inverts the levels from 256 (1 - strength) on."""
    return jnp.where(image < 256 * (1 - strength), image, 255 - image)


def autocontrasted(image: Image) -> Image:
    """Stretches each channel to levels from 0 to 255, unless it has but one."""
    low, high = (extreme(image, axis=(0, 1), keepdims=True) for extreme in (jnp.min, jnp.max))
    return jnp.where(high > low, (image - low) * (255 / jnp.maximum(high - low, 1.0)), image)


def equalized(image: Image) -> Image:
    """Equalises the histogram of each channel, as Pillow does."""

    def one(channel: Int[Array, "size size"]) -> Int[Array, "size size"]:
        counts = jnp.bincount(channel.ravel(), length=256)
        step = (channel.size - counts[channel.max()]) // 255
        levels = (step // 2 + jnp.cumsum(counts) - counts) // jnp.maximum(step, 1)
        return jnp.where(step > 0, jnp.minimum(levels, 255)[channel], channel)

    return jax.vmap(one, in_axes=2, out_axes=2)(image.astype(jnp.int32)).astype(jnp.float32)
