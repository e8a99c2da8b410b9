"""What a trained network takes as images: files, their content, Pillow images, arrays, and any iterable of these."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image

from alexnet_jax.data.images import check_pixels, pixels_of, read_original
from alexnet_jax.errors import UserError, reason

Image = str | Path | bytes | np.ndarray | PIL.Image.Image
"""A path, the bytes of an image file, a Pillow image, or pixels: uint8, [height, width] or [height, width, 1 or 3]."""

Images = Image | Iterable[Image]
"""One image, an iterable of them, such as a list or a generator, or one array of pixels: uint8, [images, height, width]
or [images, height, width, 1 or 3]."""

_CHANNELS = ((), (1,), (3,))


def one_by_one(images: Images) -> Iterable[Image]:
    """The single images. Raises UserError for an array that could be meant in two ways, or holds no pixels."""
    if isinstance(images, str | Path | bytes | PIL.Image.Image):
        return [images]
    if not isinstance(images, np.ndarray):
        return images
    try:
        check_pixels(images)
    except ValueError as error:
        raise UserError(reason(error)) from error
    shape = images.shape
    if images.ndim not in (2, 3, 4):
        raise UserError(f"an array of shape {shape} holds no images: give [images, height, width, 1 or 3]")
    if images.ndim == 2 or (images.ndim == 3 and shape[2] in (1, 3)):
        return [images]
    if images.ndim == 3 and shape[0] == 3:
        raise UserError(
            f"an array of shape {shape} may be one image, channels first, or three grey ones: give "
            f"{(*shape[1:], 3)} or {(*shape, 1)}"
        )
    return images


def content_of(image: Image, max_pixels: float) -> bytes | np.ndarray:
    """The encoded image or its pixels, as `resize_image` takes them. Raises OSError or ValueError if it is no image."""
    if isinstance(image, str | Path):
        return read_original(Path(image), max_pixels)
    if isinstance(image, PIL.Image.Image):
        return pixels_of(image)
    if isinstance(image, np.ndarray):
        check_pixels(image)
        if image.ndim not in (2, 3) or image.shape[2:] not in _CHANNELS or image.size == 0:
            raise ValueError(f"pixels of shape {image.shape} are not [height, width] or [height, width, 1 or 3]")
    elif not isinstance(image, bytes):
        raise ValueError(f"a {type(image).__name__} is no path, bytes, Pillow image or array (numpy.asarray makes one)")
    return image
