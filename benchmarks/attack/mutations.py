"""Tries against decoders: images, weights and tables of labels with random mutations."""

import functools
import hashlib
import io
import json
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from PIL import Image

from alexnet_jax.data.images import resize_image
from alexnet_jax.data.label_table import read_labels
from alexnet_jax.errors import UserError, reason
from alexnet_jax.inference.loaded_run import load_run
from alexnet_jax.inference.weight_files import read_arrays
from benchmarks.attack.processes import forked
from benchmarks.attack.target import Target
from benchmarks.attack.tries import Result, judge

TESTS = Path(__file__).parents[2] / "tests"
OWN_WEIGHTS = ("run.safetensors", "weights.npz", "weights.safetensors")
OTHER_WEIGHTS = sorted((TESTS / "inference").glob("*_files/*"))
"""The weights that are mutated: files of ours, and of Caffe and torch."""

CHECKED = ("run.safetensors", "weights.npz", "odd-zip.pth", "zip.pth")
"""Those in whose formats each byte that matters has a checksum."""

HEIC = TESTS / "data" / "image_files" / "two-colours.heic"
"""Pillow writes all formats but this one."""

LABELS = [{"file": f"a/{number}.png", "label": f"class {number % 3}", "split": "train"} for number in range(12)]
LABEL_TABLES = {
    "labels.csv": "\n".join(["file,label,split", *(",".join(row.values()) for row in LABELS)]),
    "bare.csv": "\r\n".join(f'"{row["file"]}",{row["label"]}' for row in LABELS),
    "labels.tsv": "\n".join(["label\tfile", *(f"{row['label']}\t{row['file']}" for row in LABELS)]),
    "labels.jsonl": "\n".join(map(json.dumps, LABELS)),
}
"""The tables of labels that are mutated."""

SECONDS = 10.0
"""Time after which a decoder counts as hanging."""

MEMORY = 1 << 30
"""Bytes that it may take; more counts as hanging, too."""

EXTREMES = (
    b"\x00",
    b"\xff",
    b"\x7f\xff",
    b"\x80\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x00" * 8,
    b"\xff" * 8,
    b"[" * 2000,
)
"""What is overwritten with: lengths and counts, and JSON of too many levels."""


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Changes content at a few places: flips, overwrites, removes, repeats, moves or adds bytes, or cuts it."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 6))):
        # Half of all places are near the beginning or the end, where formats keep their headers.
        near = min(len(data), 200)
        at = int(random.choice([random.integers(len(data) + 1), random.integers(near + 1)]))
        at = len(data) - at if random.random() < 0.25 else at
        size = int(random.choice([1, 2, 4, 16, 256]))
        match random.choice(["flip", "overwrite", "remove", "repeat", "move", "add", "extreme", "cut"]):
            case "flip" if at < len(data):
                data[at] ^= 1 << int(random.integers(8))
            case "overwrite":
                data[at : at + size] = random.bytes(len(data[at : at + size]))
            case "remove":
                del data[at : at + size]
            case "repeat":
                data[at:at] = data[at : at + size] * int(random.integers(1, 8))
            case "move":
                source = int(random.integers(len(data) + 1))
                data[at : at + size] = data[source : source + size]
            case "add":
                data[at:at] = random.bytes(size)
            case "extreme":
                extreme = EXTREMES[int(random.integers(len(EXTREMES)))]
                data[at : at + len(extreme)] = extreme
            case "cut" if random.random() < 0.2:
                del data[at:]
    return bytes(data)


@functools.cache
def image_seeds() -> dict[str, bytes]:
    """Small images in all formats and their variants, by name."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    colours, exif = Image.fromarray(noise), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    animated: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(255 - noise)]}
    variants: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.jpg": (colours, {}),
        "progressive.jpg": (colours, {"progressive": True}),
        "rotated.jpg": (colours, {"exif": exif}),
        "cmyk.jpg": (colours.convert("CMYK"), {}),
        "grey.jpg": (colours.convert("L"), {}),
        "plain.png": (colours, {}),
        "transparent.png": (Image.fromarray(np.dstack([noise, noise[..., :1]])), {}),
        "palette.png": (colours.convert("P"), {}),
        "deep.png": (Image.fromarray(noise[..., 0].astype(np.uint16) * 257), {}),
        "plain.webp": (colours, {}),
        "lossless.webp": (colours, {"lossless": True}),
        "animated.webp": (colours, animated),
        "plain.gif": (colours, {}),
        "animated.gif": (colours, animated),
        "plain.bmp": (colours, {}),
        "plain.tif": (colours, {}),
        "lzw.tif": (colours, {"compression": "tiff_lzw"}),
        "deflate.tif": (colours, {"compression": "tiff_adobe_deflate"}),
        "float.tif": (Image.fromarray(noise[..., 0].astype(np.float32) / 256), {}),
        "plain.ppm": (colours, {}),
        "deep.pgm": (Image.fromarray(noise[..., 0].astype(np.uint16) * 257), {}),
        "bits.pbm": (colours.convert("1"), {}),
        "plain.avif": (colours, {}),
        "transparent.avif": (Image.fromarray(np.dstack([noise, noise[..., :1]])), {}),
        "plain.jp2": (colours, {}),
        "plain.tga": (colours, {"compression": "tga_rle"}),
        "two.mpo": (colours, animated),
    }
    encoded = {HEIC.name: HEIC.read_bytes()}
    for name, (picture, options) in variants.items():
        picture.save(file := io.BytesIO(), Image.registered_extensions()[Path(name).suffix], **options)
        encoded[name] = file.getvalue()
    return encoded


def image(target: Target, number: int, random: np.random.Generator, folder: str) -> Result:
    """Decodes a mutated image."""
    seeds = image_seeds()
    name = list(seeds)[number % len(seeds)]
    seed = (target.folder / folder).with_name(f"{folder}-{name}")
    path = seed.with_name(f"{folder}-mutated-{name}")
    seed.write_bytes(seeds[name])
    path.write_bytes(mutate(seeds[name], random))
    return _decoded(_digest_of_pixels, path, seed, is_checked=False)


def weights(target: Target, number: int, random: np.random.Generator, folder: str) -> Result:
    """Reads mutated weights. Where the format has checksums, they must be refused or be the same as before."""
    seeds = [target.folder / "done" / name for name in OWN_WEIGHTS] + OTHER_WEIGHTS
    seed = seeds[number % len(seeds)]
    path = (target.folder / folder).with_suffix(seed.suffix)
    path.write_bytes(mutate(seed.read_bytes(), random))
    read = _digest_of_run if seed.name == "run.safetensors" else _digest_of_arrays
    return _decoded(read, path, seed, is_checked=seed.name in CHECKED)


def labels(target: Target, number: int, random: np.random.Generator, folder: str) -> Result:
    """Reads a mutated table of labels."""
    name = list(LABEL_TABLES)[number % len(LABEL_TABLES)]
    seed = (target.folder / folder).with_name(f"{folder}-{name}")
    path = seed.with_name(f"{folder}-mutated-{name}")
    seed.write_text(LABEL_TABLES[name])
    path.write_bytes(mutate(seed.read_bytes(), random))
    return _decoded(_rows_of_labels, path, seed, is_checked=False)


def _decoded(read: Callable[[Path], str], path: Path, seed: Path, is_checked: bool) -> Result:
    """Reads a file and the seed that it was made of, and compares them if its format has checksums."""
    log = path.with_suffix(".log")

    def act() -> None:
        try:
            print(read(path))
        except UserError as error:
            print("error:", error)
            raise SystemExit(2) from error

    ended = forked(act, log, limit=SECONDS)
    taken = 1024 * (
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    found = {"output": ended.output}
    expected = {"output": forked(lambda: print(read(seed)), log).output} if is_checked else found
    outcome = "hang" if taken > MEMORY else judge(expected, found, [ended])
    return Result(outcome, f"{path.name}, {ended.seconds:.1f} s, {taken / 1e6:,.0f} MB", ended.output)


def _digest_of_pixels(path: Path) -> str:
    """Decodes an image as prediction and preparation do."""
    try:
        pixels = resize_image(path.read_bytes(), 32, 1e8).pixels
    except Exception as error:  # as its callers do
        raise UserError(reason(error)) from error
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _rows_of_labels(path: Path) -> str:
    return str(read_labels(path, [row["file"] for row in LABELS]))


def _digest_of_arrays(path: Path) -> str:
    return _digest(read_arrays(path))


def _digest_of_run(path: Path) -> str:
    return _digest(traverse_util.flatten_dict(load_run(path).variables, sep="/"))


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    whole = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        whole.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return whole.hexdigest()
