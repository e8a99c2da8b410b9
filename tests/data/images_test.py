"""Decoding and resizing of images from files of many kinds."""

import io
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from alexnet_jax.data.images import PROPERTIES, decode_jpeg, encode_jpeg, is_image, resize_image

SIZE = 16


def waves(height: int, width: int) -> np.ndarray:
    """A smooth image that differs in each corner and channel: JPEG changes it little, swapped axes or channels much."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 / max(width, 2), y * 255 / max(height, 2), 127 + 100 * np.sin((x + 2 * y) / 15))
    return np.stack(channels, axis=-1).astype(np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.save(stream, kind, **{"quality": 95} if kind == "JPEG" and "quality" not in options else {}, **options)
    return stream.getvalue()


def squared(original: bytes | np.ndarray, size: int = SIZE, max_pixels: float = 1e6) -> tuple[np.ndarray, set[str]]:
    square = resize_image(original, size, max_pixels)
    assert square.pixels.shape == (size, size, 3) and square.pixels.dtype == np.uint8
    assert square.pixels.flags.c_contiguous and square.properties <= set(PROPERTIES)
    return square.pixels, set(square.properties)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


def central_square(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def rgb(data: bytes) -> np.ndarray:
    """The pixels of an image as Pillow decodes them."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("wide", [True, False])
def test_the_shorter_side_is_scaled_and_the_central_square_stays(wide: bool) -> None:
    ramp = np.repeat((np.arange(1024) // 4).astype(np.uint8)[None, :, None], 500, axis=0).repeat(3, axis=2)
    pixels, properties = squared(ramp if wide else ramp.transpose(1, 0, 2).copy(), 256)
    line = (pixels[128] if wide else pixels[:, 128])[:, 0].astype(float)
    assert not properties
    # 524 columns of 1.953 pixels, of which 134 go at either side.
    np.testing.assert_allclose(line, (np.arange(134, 390) + 0.5) * 500 / 256 / 4, atol=1)


@pytest.mark.parametrize(("height", "width"), [(100, 61), (61, 100), (300, 257), (48, 48), (17, 16), (1000, 40)])
def test_shrinking_averages_areas(height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    pixels, properties = squared(noise)
    expected = central_square(noise)
    if min(height, width) > SIZE:
        expected = cv2.resize(expected, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(pixels, expected)
    smooth = waves(height, width)
    picture = Image.fromarray(np.ascontiguousarray(central_square(smooth)))
    assert difference(squared(smooth)[0], np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX))) < 2
    assert "tiny" not in properties


@pytest.mark.parametrize(("height", "width"), [(9, 12), (15, 15), (15, 300), (8, 8)])
def test_enlarging_is_cubic_and_counted(height: int, width: int) -> None:
    picture = waves(height, width)
    pixels, properties = squared(picture)
    square = np.ascontiguousarray(central_square(picture))
    np.testing.assert_array_equal(pixels, cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC))
    pillow = Image.fromarray(square).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    assert difference(pixels, np.asarray(pillow)) < 4
    assert properties == {"tiny"}


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 3), (31, 33), (33, 65), (257, 129)], ids=str)
@pytest.mark.parametrize("kind", ["array", "PNG", "JPEG", "WEBP", "BMP"])
def test_any_shape_will_do(kind: str, shape: tuple[int, int]) -> None:
    picture = waves(*shape)
    options = {"WEBP": {"lossless": True}, "JPEG": {"subsampling": 0}}.get(kind, {})
    pixels, _ = squared(picture if kind == "array" else encoded(picture, kind, **options))
    assert difference(pixels, squared(picture)[0]) < (8 if kind == "JPEG" else 0.01)


def test_arrays_may_be_grey_and_are_left_as_they_are() -> None:
    grey = waves(20, 30)[..., 0]
    grey.setflags(write=False)
    flat, properties = squared(grey)
    deep, deep_properties = squared(grey[..., None])
    colour, colour_properties = squared(np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(flat, deep)
    np.testing.assert_array_equal(flat, colour)
    assert (properties, deep_properties, colour_properties) == ({"grey"}, {"grey"}, set())


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}], ids=str)
def test_a_jpeg_of_the_wanted_size_is_kept_to_the_byte(mode: str, options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(waves(SIZE, SIZE)).convert(mode), "JPEG", **options)
    square = resize_image(data, SIZE, 1e6)
    assert square.jpeg == data
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    decode_jpeg(data, out)
    np.testing.assert_array_equal(out, square.pixels)
    assert difference(out, rgb(data)) < 1.5


def test_other_images_of_the_wanted_size_are_not_taken_for_jpeg() -> None:
    picture, turned = Image.fromarray(waves(SIZE, SIZE)), Image.Exif()
    turned[0x112] = 6
    others = [encoded(picture, "PNG"), encoded(picture.convert("CMYK"), "JPEG"), encoded(picture, "JPEG", exif=turned)]
    others += [encoded(waves(SIZE, SIZE + 1), "JPEG"), encoded(waves(2 * SIZE, 2 * SIZE), "JPEG")]
    assert [resize_image(original, SIZE, 1e6).jpeg for original in [*others, waves(SIZE, SIZE)]] == [None] * 6


def test_encoding_and_decoding_change_little_at_high_quality() -> None:
    pixels, out = waves(64, 64), np.empty((2, 64, 64, 3), np.uint8)
    sizes = []
    for number, quality in enumerate((95, 10)):
        data = encode_jpeg(pixels, quality)
        decode_jpeg(data, out[number])
        sizes.append(len(data))
    assert difference(out[0], pixels) < 2 < difference(out[1], pixels) and sizes[0] > 1.5 * sizes[1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_rgb(kind: str) -> None:
    data = encoded(Image.fromarray(waves(40, 60)).convert("L"), kind)
    pixels, properties = squared(data)
    assert properties == {"grey"} and (pixels == pixels[..., :1]).all()
    assert difference(pixels, squared(rgb(data))[0]) < 1


def test_black_and_white_is_grey() -> None:
    bits = Image.fromarray(waves(SIZE, SIZE)).convert("1")
    pixels, properties = squared(encoded(bits, "PNG"))
    np.testing.assert_array_equal(pixels, np.repeat(np.asarray(bits)[..., None] * np.uint8(255), 3, axis=2))
    assert properties == {"grey"}


def see_through(mode: str) -> tuple[bytes, np.ndarray]:
    """A PNG whose left half is invisible and, in RGBA and LA, its right half half so; what is seen on white."""
    picture = Image.fromarray(waves(SIZE, SIZE))
    right = np.arange(SIZE) >= SIZE // 2
    if mode in ("RGBA", "LA"):
        picture = picture.convert("L" if mode == "LA" else "RGB")
        share = np.where(right, 128, 0)[None, :].repeat(SIZE, axis=0)
        colours = np.asarray(picture.convert("RGB"))
        picture.putalpha(Image.fromarray(share.astype(np.uint8)))
        assert picture.mode == mode
        return encoded(picture, "PNG"), 255 - (255 - colours) * (share[..., None] / 255)
    if mode == "P":
        numbers = np.where(right, 1, 0)[None, :].repeat(SIZE, axis=0).astype(np.uint8)
        picture = Image.fromarray(numbers)
        picture.putpalette([10, 20, 30, 200, 100, 50])
        colours = np.where(right[None, :, None], np.array([200, 100, 50]), 255).repeat(SIZE, axis=0)
        return encoded(picture, "PNG", transparency=0), colours
    numbers = np.where(right, 99, 7)[None, :].repeat(SIZE, axis=0).astype(np.uint8)
    return encoded(numbers, "PNG", transparency=7), np.where(numbers == 99, 99, 255)[..., None].repeat(3, axis=2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_what_is_see_through_is_shown_on_white(mode: str) -> None:
    data, expected = see_through(mode)
    pixels, properties = squared(data)
    np.testing.assert_allclose(pixels, expected, atol=1)
    assert (pixels[:, : SIZE // 2] == 255).all()
    assert properties == {"transparent"} | ({"grey"} if mode in ("L", "LA") else set())


def test_a_palette_is_looked_up() -> None:
    palette = Image.fromarray(waves(SIZE, SIZE)).quantize(64)
    pixels, properties = squared(encoded(palette, "PNG"))
    np.testing.assert_array_equal(pixels, np.asarray(palette.convert("RGB")))
    assert not properties


@pytest.mark.parametrize("turned", [False, True])
def test_of_16_bit_grey_the_upper_8_bits_count(turned: bool) -> None:
    deep = (np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 257).astype(np.uint16)
    exif = Image.Exif()
    exif[0x112] = 3 if turned else 1
    pixels, properties = squared(encoded(Image.fromarray(deep), "PNG", exif=exif))
    expected = (deep[::-1, ::-1] if turned else deep) >> 8
    np.testing.assert_array_equal(pixels, expected[..., None].repeat(3, axis=2))
    assert properties == {"grey", "16-bit"} | ({"rotated"} if turned else set())


@pytest.mark.parametrize("channels", [3, 4])
def test_of_16_bit_colours_the_upper_8_bits_count(channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (SIZE, SIZE, channels), np.uint16)
    deep[..., 3:] = 2**16 - 1
    pixels, _ = squared(cv2.imencode(".png", deep)[1].tobytes())
    np.testing.assert_allclose(pixels, deep[..., 2::-1] >> 8, atol=1)


@pytest.mark.parametrize("adobe", [True, False])
def test_print_colours_come_out_right(adobe: bool) -> None:
    picture = waves(40, 60)
    data = encoded(Image.fromarray(picture).convert("CMYK"), "JPEG")
    assert b"Adobe" in data
    if not adobe:
        start = data.index(b"\xff\xee")
        data = data[:start] + data[start + 16 :]
    pixels, properties = squared(data)
    assert properties == {"CMYK"}
    np.testing.assert_array_equal(pixels, squared(rgb(data))[0])
    assert difference(pixels, squared(picture)[0]) < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(waves(24, 40), kind, exif=exif)
    pixels, properties = squared(data)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert upright.shape[:2] == ((24, 40) if orientation < 5 else (40, 24))
    assert difference(pixels, squared(upright)[0]) < 1
    assert properties == ({"rotated"} if orientation > 1 else set())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif",
    [b"", b"garbage", b"II*\0\x08\0\0\0\5\0\x12\1\3\0", b"MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\4abc\0", bytes(30)],
)
def test_a_damaged_exif_tag_costs_no_image(exif: bytes) -> None:
    picture = waves(40, 60)
    pixels, properties = squared(encoded(picture, "JPEG", exif=b"Exif\0\0" + exif))
    assert difference(pixels, squared(picture)[0]) < 2 and not properties


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "lime")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **lossless)
    pixels, properties = squared(data)
    np.testing.assert_allclose(pixels, np.broadcast_to([255, 0, 0], pixels.shape), atol=2)
    assert properties == {"animated"}


def test_the_content_decides_what_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "n02105855_2933.JPEG"
    path.write_bytes(encoded(waves(SIZE, SIZE), "PNG"))
    square = resize_image(path.read_bytes(), SIZE, 1e6)
    np.testing.assert_array_equal(square.pixels, waves(SIZE, SIZE))
    assert square.jpeg is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image", "not an image of a known format"),
        (bytes(999), "not an image of a known format"),
        (b"\n<!DOCTYPE html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"II*\0" + bytes(99), "a damaged file of a known format"),
    ],
    ids=["empty", "text", "zeros", "page", "pointer", "damaged"],
)
def test_what_is_no_image_is_said_to_be_none(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        resize_image(data, SIZE, 1e6)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})], ids=str)
def test_a_file_cut_short_is_refused_unless_all_its_pixels_are_there(kind: str, options: dict[str, object]) -> None:
    data = encoded(waves(40, 56), kind, **options)
    whole, decoded = squared(data)[0], []
    for length in range(len(data)):
        try:
            pixels, _ = squared(data[:length])
        except Exception as error:
            assert str(error) and not isinstance(error, AssertionError), (length, error)
        else:
            np.testing.assert_array_equal(pixels, whole)
            decoded.append(length)
    assert not decoded or decoded[0] >= len(data) - 24  # only what follows the pixels may be missing


CORRUPTIBLE: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encoded(waves(40, 56), "JPEG"),
    "progressive": lambda: encoded(waves(40, 56), "JPEG", progressive=True),
    "CMYK": lambda: encoded(Image.fromarray(waves(40, 56)).convert("CMYK"), "JPEG"),
    "PNG": lambda: encoded(waves(40, 56), "PNG"),
    "palette": lambda: encoded(Image.fromarray(waves(40, 56)).quantize(), "PNG"),
    "GIF": lambda: encoded(waves(40, 56), "GIF"),
    "WEBP": lambda: encoded(waves(40, 56), "WEBP"),
}


@pytest.mark.parametrize("kind", CORRUPTIBLE)
def test_flipped_bits_are_survived(kind: str) -> None:
    generator, data = np.random.default_rng(0), CORRUPTIBLE[kind]()
    for _ in range(200):
        bits = np.frombuffer(data, np.uint8).copy()
        bits[generator.integers(len(bits), size=generator.integers(1, 4))] ^= np.uint8(1 << generator.integers(8))
        began = time.monotonic()
        try:
            squared(bits.tobytes())
        except Exception as error:
            assert not isinstance(error, AssertionError), error
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(("height", "width"), [(3000, 4000), (601, 403), (513, 512), (511, 600)])
def test_halving_while_decoding_stays_close_to_the_exact_average(height: int, width: int) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    data = encode_jpeg(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 90)
    pixels, _ = squared(data, 256, 100e6)
    assert difference(pixels, squared(rgb(data), 256, 100e6)[0]) < 1.5


def test_12_bit_grey_is_scaled_by_its_range() -> None:
    deep = (np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 16).astype(np.uint16)
    pixels, properties = squared(encoded(Image.fromarray(deep), "TIFF"))
    np.testing.assert_array_equal(pixels[..., 0], deep >> 4)
    assert properties == {"grey", "16-bit"}


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "AVIF", "JPEG2000"])
def test_more_formats_are_read_and_known_by_their_content(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(encoded(waves(40, 56), kind))
    assert is_image(tmp_path / "x") and squared((tmp_path / "x").read_bytes())[0].shape == (SIZE, SIZE, 3)


def test_an_icon_is_no_image() -> None:
    with pytest.raises(ValueError, match="of a known format"):
        resize_image(encoded(waves(32, 32), "ICO"), SIZE, 1e6)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_marker_is_read_and_counted(progressive: bool, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    jpeg = encoded(waves(40, 56), "JPEG", progressive=progressive, exif=exif)
    whole, _ = squared(jpeg)
    pixels, properties = squared(jpeg[:-2])
    assert "unended" in properties
    np.testing.assert_allclose(pixels.astype(int), whole, atol=1)
    for cut in (jpeg[:-4], jpeg[: jpeg.rindex(b"\xff\xda")]):
        with pytest.raises((OSError, ValueError), match=r"truncated|cannot load"):
            squared(cut)


def test_a_thumbnail_does_not_stand_for_scans_that_are_missing() -> None:
    thumbnail = encoded(waves(8, 8), "JPEG")
    jpeg = encoded(waves(40, 56), "JPEG", progressive=True, exif=b"Exif\0\0" + thumbnail)
    assert squared(jpeg[:-2])[1] == {"unended"}
    with pytest.raises(OSError, match="truncated"):
        squared(jpeg[: jpeg.rindex(b"\xff\xda")])


HEIC = (Path(__file__).parent / "image_files" / "two-colours.heic").read_bytes()
"""An image of 24 x 16 pixels, red on the left and blue on the right, as a HEIC file."""


def test_heic_is_read() -> None:
    pixels, _ = squared(HEIC, 16)
    assert pixels[8, 1, 0] > 200 > 50 > pixels[8, 1, 2] and pixels[8, -2, 2] > 200 > 50 > pixels[8, -2, 0]
    with pytest.raises(ValueError, match="known format"):
        resize_image(HEIC[:32] + bytes(400), 16, 1e6)
