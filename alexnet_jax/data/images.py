"""One image: from whatever file it comes in to the square of pixels that is stored, and from store to memory."""

import dataclasses
import io
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

TRAITS = ("grey", "CMYK", "transparent", "animated", "rotated", "tiny")
"""What a report counts: no colours; print colours; see-through parts; several frames; turned by EXIF; enlarged."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")

cv2.setNumThreads(1)  # whoever calls has threads of their own
Image.MAX_IMAGE_PIXELS = None  # `to_square` has a limit of its own, before anything is decoded


@dataclasses.dataclass(frozen=True)
class Square:
    """An image as paper section 2 wants it.

    Attributes:
      pixels: uint8, [size, size, 3], RGB.
      traits: which of TRAITS the original had.
      jpeg: the original itself if it is a JPEG of just these pixels.
    """

    pixels: np.ndarray
    traits: frozenset[str]
    jpeg: bytes | None = None


def to_square(original: bytes | np.ndarray, size: int, max_pixels: float) -> Square:
    """Shorter side to `size`, then the central square, in RGB.

    What the EXIF
    tag says is turned upright, what is see-through is shown on white, of an animation the first frame counts, of 16
    bits the upper 8.

    Args:
      original: an encoded image or pixels, uint8, [height, width] or [height, width, 1 or 3].
      size: in pixels.
      max_pixels: the most that are decoded.

    Raises an exception of whatever kind, the reason as its text, if there is no such image in it.
    """
    traits: set[str]
    if isinstance(original, np.ndarray):
        pixels, jpeg = _as_rgb(original), None
        traits = set() if pixels is original else {"grey"}
    else:
        pixels, traits, jpeg = _decode(original, size, max_pixels)
    height, width = pixels.shape[:2]
    side = min(height, width)
    if side < size:
        traits.add("tiny")
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[top : top + side, left : left + side]
    if side != size:
        pixels = _resize(pixels, size)
    return Square(np.ascontiguousarray(pixels), frozenset(traits), jpeg if (height, width) == (size, size) else None)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """A JPEG with its colours at half resolution, as is customary."""
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")


def decode_jpeg(jpeg: bytes, out: np.ndarray) -> None:
    """Writes the pixels of a stored image to `out`, uint8, [size, size, 3]."""
    simplejpeg.decode_jpeg(jpeg, buffer=out)


def _decode(data: bytes, size: int, max_pixels: float) -> tuple[np.ndarray, set[str], bytes | None]:
    """RGB pixels, traits, and the data again if `decode_jpeg` gives just these pixels."""
    if not data:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:  # reads the header alone
            if picture.width * picture.height > max_pixels:
                raise ValueError(
                    f"{picture.width} x {picture.height} pixels are more than config.data.max_megapixels allows"
                )
            traits = {"grey"} if picture.mode in ("1", "L", "LA", "I", "I;16", "I;16B") else set()
            if picture.mode == "CMYK":
                traits.add("CMYK")
            if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
                traits.add("animated")
            if _orientation(picture) in range(2, 9):
                traits.add("rotated")
            if picture.format in ("JPEG", "MPO") and not traits & {"CMYK", "rotated"}:
                try:
                    # Photographs of more than twice the wanted size are halved while they are decoded.
                    pixels = simplejpeg.decode_jpeg(data, min_height=2 * size, min_width=2 * size, min_factor=2)
                    return pixels, traits, data
                except ValueError:
                    pass  # Pillow is more patient with odd files; what it refuses is broken
            upright = ImageOps.exif_transpose(picture) if "rotated" in traits else picture
            if upright.mode.startswith("I"):
                return _as_rgb((np.asarray(upright) >> 8).astype(np.uint8)), traits, None
            if upright.has_transparency_data:
                seen_through = upright.convert("RGBA")
                if np.asarray(seen_through)[..., 3].min() < 255:
                    traits.add("transparent")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), seen_through)
            return np.asarray(upright.convert("RGB")), traits, None
    except UnidentifiedImageError:
        raise ValueError("not an image of a known kind") from None


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """A square of another size: enlarged by cubics, shrunk by areas, as CC2 did (make-data/pyext/src/pyext.cpp:109).

    Down to the half, an area is the mean of four samples between its pixels: half the time of OpenCV's own areas, and
    over photographs within 0.6 grey levels of them on average, less than JPEG changes.
    """
    if pixels.shape[0] < size:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC)
    if pixels.shape[0] < 2 * size:
        pixels = cv2.resize(pixels, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def _orientation(picture: Image.Image) -> Any:
    """What EXIF says of it; 1, upright, if it says nothing that can be read."""
    try:
        return picture.getexif().get(0x0112, 1)
    except Exception:  # whatever broken EXIF data lead to; the picture itself may be whole
        return 1


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Grey pixels three times over; RGB as it is."""
    grey = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.repeat(grey, 3, axis=-1) if grey.shape[-1] == 1 else grey
