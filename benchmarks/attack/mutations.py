"""Tries against decoders: images and weights with random mutations."""

import hashlib
import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flax import traverse_util

from alexnet_jax.data.images import resize_image
from alexnet_jax.errors import UserError, reason
from alexnet_jax.inference.loaded_run import load_run
from alexnet_jax.inference.weight_files import read_arrays
from benchmarks.attack.processes import forked
from benchmarks.attack.target import Target
from benchmarks.attack.tries import Result, judge

OWN_WEIGHTS = ("run.safetensors", "weights.npz")
TORCH_FILES = Path(__file__).parents[2] / "tests" / "inference" / "torch_files"
"""The weights that are mutated: files of ours, and of torch."""

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
)
"""What lengths and counts are overwritten with."""


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


def image(target: Target, number: int, random: np.random.Generator, folder: str) -> Result:
    """Decodes a mutated image."""
    seeds = sorted((target.folder / "images").rglob("*.*"))
    seed = seeds[number % len(seeds)]
    path = (target.folder / folder).with_suffix(seed.suffix)
    path.write_bytes(mutate(seed.read_bytes(), random))
    return _decoded(_digest_of_pixels, path, seed, is_checked=False)


def weights(target: Target, number: int, random: np.random.Generator, folder: str) -> Result:
    """Reads mutated weights. Where the format has checksums, they must be refused or be the same as before."""
    seeds = [target.folder / "done" / name for name in OWN_WEIGHTS] + sorted(TORCH_FILES.glob("*.pth"))
    seed = seeds[number % len(seeds)]
    path = (target.folder / folder).with_suffix(seed.suffix)
    path.write_bytes(mutate(seed.read_bytes(), random))
    read = _digest_of_run if seed.name == "run.safetensors" else _digest_of_arrays
    return _decoded(read, path, seed, is_checked=read is _digest_of_run or "legacy" not in seed.name)


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
    return Result(outcome, f"{seed.name}, {ended.seconds:.1f} s, {taken / 1e6:,.0f} MB", ended.output)


def _digest_of_pixels(path: Path) -> str:
    """Decodes an image as prediction and preparation do."""
    try:
        pixels = resize_image(path.read_bytes(), 32, 1e8).pixels
    except Exception as error:  # as its callers do
        raise UserError(reason(error)) from error
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _digest_of_arrays(path: Path) -> str:
    return _digest(read_arrays(path))


def _digest_of_run(path: Path) -> str:
    return _digest(traverse_util.flatten_dict(load_run(path).variables, sep="/"))


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    whole = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        whole.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return whole.hexdigest()
