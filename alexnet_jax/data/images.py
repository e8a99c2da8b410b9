"""One image: decoded from whatever file it comes in, resized to what is stored, and read back."""

import contextlib
import dataclasses
import io
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

PROPERTIES = ("grey", "CMYK", "transparent", "animated", "rotated", "tiny")
"""What a report counts: no colours; print colours; transparent pixels; several frames; turned by EXIF; enlarged."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")

cv2.setNumThreads(1)  # whoever calls has threads of their own
Image.MAX_IMAGE_PIXELS = None  # `resize_image` has a limit of its own, before anything is decoded


@dataclasses.dataclass(frozen=True)
class ResizedImage:
    """The central square of an image, as paper section 2 wants it.

    Attributes:
      pixels: uint8, [size, size, 3], RGB.
      properties: which of PROPERTIES the original had.
      jpeg: the original itself if it is a JPEG of just these pixels.
    """

    pixels: np.ndarray
    properties: frozenset[str] = frozenset()
    jpeg: bytes | None = None


class PreparedImage(NamedTuple):
    """A resized image with what is stored and counted beside it.

    Attributes:
      split: one of sources.SPLITS.
      label: number of its class.
      file: its name, for people.
      digest: SHA-256 of the original.
      resized: the image.
    """

    split: str
    label: int
    file: str
    digest: bytes
    resized: ResizedImage


def resize_image(original: bytes | np.ndarray, size: int, max_pixels: float) -> ResizedImage:
    """Scales the shorter side to `size` and cuts out the central square, in RGB.

    An image is turned upright as its EXIF orientation says, transparent pixels are shown on white, of an animation the
    first frame is taken, of 16-bit channels the high byte.

    Args:
      original: an encoded image or pixels, uint8, [height, width] or [height, width, 1 or 3].
      size: side of the square in pixels.
      max_pixels: the most that are decoded.

    Raises an exception of any type, with the reason as its text, if there is no such image in it.
    """
    properties: set[str]
    if isinstance(original, np.ndarray):
        pixels, jpeg = _as_rgb(original), None
        properties = set() if pixels is original else {"grey"}
    else:
        pixels, properties, jpeg = _decode(original, size, max_pixels)
    height, width = pixels.shape[:2]
    side = min(height, width)
    if side < size:
        properties.add("tiny")
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[top : top + side, left : left + side]
    if side != size:
        pixels = _scale(pixels, size)
    unchanged = jpeg if (height, width) == (size, size) else None
    return ResizedImage(np.ascontiguousarray(pixels), frozenset(properties), unchanged)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encodes with colours at half resolution, as is customary."""
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")


def decode_jpeg(jpeg: bytes, out: np.ndarray) -> None:
    """Writes the pixels of a stored image to `out`, uint8, [size, size, 3]."""
    simplejpeg.decode_jpeg(jpeg, buffer=out)


def _decode(data: bytes, size: int, max_pixels: float) -> tuple[np.ndarray, set[str], bytes | None]:
    """Returns RGB pixels, properties, and the data again if `decode_jpeg` gives just these pixels."""
    if not data:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:  # reads the header alone
            width, height = picture.size
            if width * height > max_pixels:
                raise ValueError(f"{width} x {height} pixels are more than config.data.max_megapixels allows")
            properties = {"grey"} if picture.mode in ("1", "L", "LA", "I", "I;16", "I;16B") else set()
            if picture.mode == "CMYK":
                properties.add("CMYK")
            if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
                properties.add("animated")
            if _orientation(picture) in range(2, 9):
                properties.add("rotated")
            if picture.format in ("JPEG", "MPO") and not properties & {"CMYK", "rotated"}:
                with contextlib.suppress(ValueError):  # Pillow is more patient; what it refuses is broken
                    # Photographs of more than twice the wanted size are halved while they are decoded.
                    pixels = simplejpeg.decode_jpeg(data, min_height=2 * size, min_width=2 * size, min_factor=2)
                    return pixels, properties, data
            upright = ImageOps.exif_transpose(picture) if "rotated" in properties else picture
            if upright.mode.startswith("I"):
                return _as_rgb((np.asarray(upright) >> 8).astype(np.uint8)), properties, None
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                if np.asarray(rgba)[..., 3].min() < 255:
                    properties.add("transparent")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), rgba)
            return np.asarray(upright.convert("RGB")), properties, None
    except UnidentifiedImageError:
        raise ValueError("not an image of a known kind") from None


def _scale(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scales a square: bicubic to enlarge, area to shrink, as cuda-convnet2 did (make-data/pyext/src/pyext.cpp:109).

    Down to half the size, an area is the mean of four samples between its pixels: half the time of OpenCV's own area
    interpolation, and over photographs within 0.6 grey levels of it on average, less than JPEG changes.
    """
    if pixels.shape[0] < size:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC)
    if pixels.shape[0] < 2 * size:
        pixels = cv2.resize(pixels, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def _orientation(picture: Image.Image) -> Any:
    """Returns the EXIF orientation; 1, upright, if there is none that can be read."""
    with contextlib.suppress(Exception):  # of any type, by broken EXIF data; the image itself may be whole
        return picture.getexif().get(0x0112, 1)
    return 1


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Repeats a grey channel three times; returns RGB as it is."""
    grey = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.repeat(grey, 3, axis=-1) if grey.shape[-1] == 1 else grey
