"""Single images: decoding of originals, resizing, and encoding and decoding of stored images."""

import contextlib
import dataclasses
import functools
import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from alexnet_jax.system.files import other_content

PROPERTIES = ("grey", "CMYK", "transparent", "animated", "rotated", "tiny", "16-bit", "unended")
"""Unusual properties that a report counts: greyscale, CMYK colours, transparent pixels, several frames, an EXIF
rotation, fewer pixels than the resized image, grey values of more than 8 bits, a JPEG without its end marker."""

RARE = ("16-bit", "unended")
"""Those that are written down only where there are any, as earlier versions did not know them."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM....\0\0\0\0|GIF8[79]a|II\*\0|MM\0\*|P[1-6]\s"
    rb"|....ftyp(avi[fs]|hei[cmsx]|hev[cmsx]|mif1|msf1)|\0\0\0\x0cjP  ",
    re.DOTALL,
)
"""How files of the formats begin; TGA has no mark."""

_HEIF = re.compile(rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)

MOST_SCANS = 200
"""Scans that a JPEG may have. Each visits every block of the image, however small it is in the file; libjpeg writes ten
scans, and other encoders a few dozen."""

_SCAN = b"\xff\xda"  # the marker that begins a scan; within a scan, 0 follows each 255

_LARGE = 25e6
_ONE_LARGE = threading.Lock()
"""Held while an image of more than _LARGE pixels is decoded as a whole: each core has a thread, and 100 megapixels take
0.8 GB (1.2 GB in CMYK, 1.6 GB as WebP). Of a JPEG that is not progressive, a few rows are in memory at a time."""

_STRIP = 2**20  # pixels that are converted at a time

cv2.setNumThreads(1)  # callers have their own threads
Image.MAX_IMAGE_PIXELS = None  # `resize_image` has its own limit, checked before decoding


@dataclasses.dataclass(frozen=True)
class ResizedImage:
    """An image scaled and cropped to a square, as in paper section 2.

    Attributes:
      pixels: uint8, [size, size, 3], RGB.
      properties: those of PROPERTIES that the original has.
      jpeg: the original file if it is a JPEG of exactly these pixels, else None.
    """

    pixels: np.ndarray
    properties: frozenset[str] = frozenset()
    jpeg: bytes | None = None


class PreparedImage(NamedTuple):
    """A resized image with the data that are stored and counted with it.

    Attributes:
      split: one of sources.SPLITS.
      label: index of its class.
      file: name of the original, for messages and tables.
      digest: SHA-256 of the original.
      resized: the image.
    """

    split: str
    label: int
    file: str
    digest: bytes
    resized: ResizedImage


def resize_image(original: bytes | np.ndarray, size: int, max_pixels: float) -> ResizedImage:
    """Scales the shorter side to `size` and crops the central square, in RGB.

    Images are rotated by their EXIF orientation, transparent pixels are drawn on white, animations give their first
    frame, 16-bit colours their high byte. Grey values of more bits are scaled by the bits that the largest of them has:
    12-bit values are divided by 16. Others, with fractions or below 0, are scaled from their least to their largest.

    Args:
      original: an encoded image, or pixels, uint8, [height, width] or [height, width, 1 or 3].
      size: side of the resized image, in pixels.
      max_pixels: images of more pixels are refused before they are decoded.

    Raises an exception of any type, with the reason as its message, if the image cannot be decoded.
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


def check_pixels(pixels: np.ndarray) -> None:
    """Raises ValueError, which says what to do, if pixels are not uint8."""
    if pixels.dtype != np.uint8:
        of_floats = "values in [0, 1]: (255 * images).round().astype(np.uint8)"
        advice = of_floats if pixels.dtype.kind == "f" else "values in 0 to 255: images.astype(np.uint8)"
        raise ValueError(f"pixels are {pixels.dtype}, not uint8, 0 to 255; of {advice}")


def pixels_of(picture: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image as `resize_image` sees those of a file: upright, RGB, on white."""
    return _upright(_in_rgb(picture, set()), _orientation(picture))


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encodes pixels as JPEG, quality 1 to 100, with the usual 4:2:0 chroma subsampling."""
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")


def decode_jpeg(jpeg: bytes, out: np.ndarray) -> None:
    """Decodes a stored image into `out`, uint8, [size, size, 3]."""
    simplejpeg.decode_jpeg(jpeg, buffer=out)


def read_original(content: bytes | Path | np.ndarray, max_pixels: float) -> bytes | np.ndarray:
    """What `Original.content` stands for: the bytes of an image file, or what is in memory already.

    Raises ValueError if a file has more bytes than an image of `max_pixels` can need.
    """
    if not isinstance(content, Path):
        return content
    if content.is_file():
        _check_bytes(content.stat().st_size, max_pixels)
        return content.read_bytes()
    with content.open("rb") as endless:  # perhaps: a pipe or a device
        return endless.read(_most_bytes(max_pixels) + 1)


def is_image(path: Path) -> bool:
    """Whether a file begins as images of the known formats do; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return _MAGIC.match(file.read(16)) is not None
    except OSError:
        return False


def _most_bytes(max_pixels: float) -> int:
    """The bytes of 16-bit RGBA without compression, and 16 MiB for metadata."""
    return int(8 * max_pixels) + 2**24


def _check_bytes(size: int, max_pixels: float) -> None:
    if size > _most_bytes(max_pixels):
        raise ValueError(f"more than {_most_bytes(max_pixels):,} bytes, which suffice for config.data.max_megapixels")


def _decode(data: bytes, size: int, max_pixels: float) -> tuple[np.ndarray, set[str], bytes | None]:
    """Returns RGB pixels, properties, and the data themselves if `decode_jpeg` decodes them to these pixels."""
    if not data:
        raise ValueError("the file is empty")
    _check_bytes(len(data), max_pixels)
    formats = (*_FORMATS, *_open_heif()) if _HEIF.match(data[:16]) else _FORMATS
    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:  # reads only the header
            width, height = picture.size
            if width * height > max_pixels:
                raise ValueError(f"{width} x {height} pixels are more than config.data.max_megapixels allows")
            is_jpeg = picture.format in ("JPEG", "MPO")
            if is_jpeg and data.count(_SCAN) > MOST_SCANS:
                raise ValueError(f"more than {MOST_SCANS} scans would take too long to decode")
            properties = _properties(picture)
            is_progressive = is_jpeg and "progressive" in picture.info
            is_unended = is_jpeg and b"\xff\xd9" not in data[data.rfind(_SCAN) :]
            if is_unended and (not is_progressive or _has_all_scans(data, len(picture.getbands()))):
                properties.add("unended")
                data += b"\xff\xd9"  # the decoder below refuses one that lacks pixels, but not one that lacks scans
            is_rotated = "rotated" in properties
            is_plain = is_jpeg and "CMYK" not in properties and (not is_rotated or "unended" in properties)
            is_small = width * height <= _LARGE or (is_plain and not is_progressive)
            with contextlib.nullcontext() if is_small else _ONE_LARGE:
                if is_plain:
                    with contextlib.suppress(ValueError):  # Pillow tolerates more; only what it refuses too is broken
                        # An image of more than twice the size is halved while it is decoded.
                        pixels = simplejpeg.decode_jpeg(data, min_height=2 * size, min_width=2 * size, min_factor=2)
                        if is_rotated:
                            return _upright(pixels, _orientation(picture)), properties, None
                        return pixels, properties, data
                pixels = _in_rgb(picture, properties)
                return _upright(pixels, _orientation(picture)), properties, None  # Pillow itself has rotated a TIFF
    except UnidentifiedImageError:
        if _MAGIC.match(data[:16]):
            raise ValueError("a damaged file of a known format, or one that Pillow cannot read") from None
        raise ValueError(other_content(data) or "not an image of a known format") from None


def _has_all_scans(jpeg: bytes, components: int) -> bool:
    """Whether the headers of a progressive JPEG's scans name every coefficient of every component to its last bit."""
    found: set[tuple[int, int]] = set()
    for scan in jpeg.split(_SCAN)[1:]:
        names = 2 * scan[2] if len(scan) > 2 else 0
        header = scan[3 : 3 + names + 3]  # each component with its tables, first and last coefficient, bits
        if len(header) < names + 3 or header[-1] & 15 or (header[-3] == 0 < header[-2]):  # the last: of a thumbnail
            continue
        found |= {(name, number) for name in header[:names:2] for number in range(header[-3], header[-2] + 1)}
    return len(found) == 64 * components


@functools.cache
def _open_heif() -> tuple[str, ...]:
    """Makes Pillow open HEIC files and returns the name of their format. Raises ValueError without its package."""
    try:
        from pi_heif import register_heif_opener  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError("HEIC images need a package: python -m pip install pi-heif") from None
    register_heif_opener(thumbnails=False)
    return ("HEIF",)


def _properties(picture: Image.Image) -> set[str]:
    """The properties that the header tells."""
    properties = {"grey"} if picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I") else set()
    if picture.mode == "F" or picture.mode.startswith("I"):
        properties.add("16-bit")
    if picture.mode == "CMYK":
        properties.add("CMYK")
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        properties.add("animated")
    if _orientation(picture) in range(2, 9):
        properties.add("rotated")
    return properties


def _in_rgb(picture: Image.Image, properties: set[str]) -> np.ndarray:
    """Decodes an image with Pillow to RGB, strip by strip: each mode on the way takes up to 4 bytes a pixel.

    Adds "transparent" to the properties if a pixel is.
    """
    width, height = picture.size
    picture.load()
    to_bytes = _deep_scale(picture) if picture.mode == "F" or picture.mode.startswith("I") else None
    pixels = np.empty((height, width, 3), np.uint8)
    rows = -(-_STRIP // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        if to_bytes:
            pixels[top : top + rows] = _as_rgb(to_bytes(np.asarray(strip)))
            continue
        if strip.has_transparency_data:
            rgba = strip.convert("RGBA")
            if np.asarray(rgba)[..., 3].min() < 255:
                properties.add("transparent")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), rgba)
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _deep_scale(picture: Image.Image) -> Callable[[np.ndarray], np.ndarray]:
    """How the grey values of an image of more than 8 bits become bytes: by the range that the image has."""
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if values.dtype.kind != "f" and low >= 0:
        shift = max(int(high).bit_length() - 8, 0)
        return lambda strip: (strip >> shift).astype(np.uint8)
    if not np.isfinite(high - low):
        raise ValueError("its grey values are not finite")
    scale = 255 / max(float(high) - float(low), 1e-12)
    return lambda strip: ((strip.astype(np.float32) - low) * scale).astype(np.uint8)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an image that shows it upright, by its EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _scale(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scales a square: bicubic to enlarge, area to shrink, as in cuda-convnet2 (make-data/pyext/src/pyext.cpp:109).

    Down to half the size, each area is the mean of four linearly interpolated samples: this takes half the time of
    OpenCV's area interpolation and differs from it by 0.6 grey levels on average over photographs, less than JPEG does.
    """
    if pixels.shape[0] < size:
        return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC)
    if pixels.shape[0] < 2 * size:
        pixels = cv2.resize(pixels, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def _orientation(picture: Image.Image) -> Any:
    """The EXIF orientation; 1 (upright) if there is none or it cannot be read."""
    with contextlib.suppress(Exception):  # broken EXIF data raise anything; the image itself may be fine
        return picture.getexif().get(0x0112, 1)
    return 1


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels as [height, width, 3]: a grey channel is repeated, RGB is returned unchanged."""
    grey = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.repeat(grey, 3, axis=-1) if grey.shape[-1] == 1 else grey
