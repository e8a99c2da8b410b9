"""What an image may cost: its pixels, bytes and scans are bounded, and so is the memory in which it is decoded."""

import os
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data import images
from alexnet_jax.data.images import read_original, resize_image
from tests.conftest import REPOSITORY
from tests.data.images_test import SIZE, encoded, see_through, squared, waves


def enlarge_header(data: bytes, side: int) -> bytes:
    """A JPEG or PNG that claims to be side x side."""
    if data.startswith(b"\x89PNG"):
        header = b"IHDR" + 2 * side.to_bytes(4, "big") + data[24:29]
        return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
    start = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data) + 5
    return data[:start] + 2 * side.to_bytes(2, "big") + data[start + 4 :]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_huge_images_are_refused_by_their_header(kind: str) -> None:
    data = enlarge_header(encoded(waves(8, 8), kind), 30_000)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"30000 x 30000.*config\.data\.max_megapixels"):
        resize_image(data, SIZE, 100e6)
    assert time.monotonic() - began < 0.5
    at_limit = encoded(waves(20, 30), kind)
    squared(at_limit, max_pixels=600.0)
    with pytest.raises(ValueError, match="30 x 20 pixels"):
        resize_image(at_limit, SIZE, 599.0)


def with_scans(count: int) -> bytes:
    """A progressive JPEG, grey, with so many scans that refine nothing, of ten bytes each."""
    data = encoded(Image.fromarray(waves(40, 56)[..., 0]), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") :][:10]
    assert scan == bytes.fromhex("ffda00080101 00 013f10")
    return data[:-2] + count * scan + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_before_they_are_decoded() -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="more than 200 scans"):
        resize_image(enlarge_header(with_scans(5000), 8000), SIZE, 100e6)  # each scan takes 31 ms
    assert time.monotonic() - began < 0.5
    np.testing.assert_array_equal(squared(with_scans(100))[0], squared(with_scans(0))[0])


def test_a_file_of_more_bytes_than_its_pixels_can_need_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(waves(8, 8), "JPEG"))
    assert read_original(path, 1e6) == path.read_bytes()
    os.truncate(path, 2**40)
    with pytest.raises(ValueError, match=r"24,777,216 bytes.*config\.data\.max_megapixels"):
        read_original(path, 1e6)
    with pytest.raises(ValueError, match=r"16,777,224 bytes.*config\.data\.max_megapixels"):
        resize_image(read_original(Path("/dev/zero"), 1.0), SIZE, 1.0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "I;16"])
def test_an_image_is_converted_strip_by_strip_as_it_is_at_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode in ("RGBA", "LA", "P", "L"):
        data = see_through(mode)[0]
    else:
        data = encoded(waves(20, 16) if mode == "RGB" else waves(20, 16)[..., 0].astype(np.uint16) * 200, "PNG")
    whole, properties = squared(data)
    monkeypatch.setattr(images, "_STRIP", 3 * SIZE)
    pixels, same = squared(data)
    np.testing.assert_array_equal(pixels, whole)
    assert same == properties


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not JPEGs of which a few rows are in memory at a time."""
    monkeypatch.setattr(images, "_LARGE", 999.0)
    for data in (encoded(waves(40, 25), "PNG"), encoded(waves(40, 25), "JPEG", progressive=True)):
        thread = threading.Thread(target=squared, args=(data,))
        with images._ONE_LARGE:
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
            squared(encoded(waves(40, 25), "JPEG"))
            squared(encoded(waves(9, 11), "PNG"))
        thread.join()


@pytest.mark.slow
def test_a_hundred_transparent_megapixels_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    Image.new("RGBA", (10_000, 10_000)).save(tmp_path / "a.png", compress_level=1)
    code = "import re, sys; from pathlib import Path; from alexnet_jax.data.images import resize_image\n"
    code += "resize_image(Path(sys.argv[1]).read_bytes(), 256, 100e6)\n"
    # Not getrusage, which counts the memory of the process that started this one.
    code += "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1e6  # KiB; 2.1e6 if each step had a copy of the image
