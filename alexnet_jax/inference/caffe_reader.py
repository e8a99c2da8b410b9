"""Weights in Caffe's .caffemodel files, read without Caffe.

A .caffemodel file is a protocol buffer, a NetParameter of Caffe's src/caffe/proto/caffe.proto: a sequence of numbered
fields, of which this module reads the names of layers and their blobs, and skips the rest.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from alexnet_jax.errors import UserError, reason

_LAYERS = {100: (1, 7), 2: (4, 6)}
"""NetParameter: number of the field of layers -> those of a layer's name and blobs; `layer`, and `layers` before it."""

_DATA = {5: "<f4", 8: "<f8"}
"""BlobProto: number of a field of numbers -> their type; the fields `data` and `double_data`."""

_SHAPE, _OLD_SHAPE = 7, (1, 2, 3, 4)
"""BlobProto: the field `shape`, and the four sides (num, channels, height, width) in its place in old files."""

MOST_FIELDS = 100_000
"""Most fields of a file that are read; AlexNet's has some hundreds."""

MOST_SIDES = 32
"""Most sides of a blob; Caffe allows as many."""

_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
"""Wire type -> bytes of a value."""


def read_caffe(path: Path) -> dict[str, np.ndarray]:
    """Reads the blobs of a .caffemodel file, of layers as Caffe writes them now or wrote them before 2015.

    Returns:
      The blobs by layer and number, like "conv1.0", as float32.

    Raises UserError if the file is damaged or something else.
    """
    try:
        content = np.memmap(path, np.uint8, "r").data if path.stat().st_size else memoryview(b"")  # skips cost nothing
        blobs = dict(_blobs(content, itertools.count(1)))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a complete .caffemodel file: {reason(error)}") from error
    if not blobs:
        raise UserError(f"{path} is a .caffemodel file without weights")
    return blobs


def _blobs(network: memoryview, count: Iterator[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the blobs of a NetParameter with their names."""
    for number, layer in _fields(network, count):
        if number in _LAYERS and isinstance(layer, memoryview):
            name_field, blob_field = _LAYERS[number]
            fields = list(_fields(layer, count))
            name = b"".join(_contents(fields, name_field)).decode()
            for index, blob in enumerate(_contents(fields, blob_field)):
                yield f"{name}.{index}", _array(blob, count)


def _array(blob: memoryview, count: Iterator[int]) -> np.ndarray:
    """The array of a BlobProto. Raises ValueError if numbers and shape do not fit together."""
    fields = list(_fields(blob, count))
    numbers = [np.frombuffer(_joined(_contents(fields, field)), kind) for field, kind in _DATA.items()]
    data = max(numbers, key=len).astype(np.float32)
    if any(number == _SHAPE for number, _ in fields):
        shape = _dimensions(_joined(_contents(fields, _SHAPE)), count)
    else:
        sides = dict(fields)
        shape = [side for side in map(sides.get, _OLD_SHAPE) if isinstance(side, int)]
        while len(shape) > 1 and shape[0] == 1:  # Caffe wrote a vector as [1, 1, 1, n], a matrix as [1, 1, m, n]
            del shape[0]
    if len(shape) > MOST_SIDES or math.prod(shape) != len(data):
        raise ValueError(f"a blob of shape {shape[:MOST_SIDES]} has {len(data):,} numbers")
    return data.reshape(shape)


def _joined(parts: list[memoryview]) -> memoryview:
    """The parts of a repeated field as one; mostly there is one, which is not copied."""
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _dimensions(shape: memoryview, count: Iterator[int]) -> list[int]:
    """The sides of a BlobShape, which are stored one by one or together."""
    sides: list[int] = []
    for _, value in _fields(shape, count):
        position = 0
        while isinstance(value, memoryview) and position < len(value) and len(sides) <= MOST_SIDES:
            side, position = _varint(value, position)
            sides.append(side)
        if isinstance(value, int):
            sides.append(value)
    return sides


def _contents(fields: list[tuple[int, int | memoryview]], wanted: int) -> list[memoryview]:
    """The values of the fields of one number, each as bytes."""
    return [value for number, value in fields if number == wanted and isinstance(value, memoryview)]


def _fields(message: memoryview, count: Iterator[int]) -> Iterator[tuple[int, int | memoryview]]:
    """Yields the number and the value of each field of a message. `count` counts those of the whole file.

    Raises ValueError if it is no message, or if the file has too many.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if next(count) > MOST_FIELDS:
            raise ValueError(f"it has more than {MOST_FIELDS:,} fields")
        if number == 0 or wire_type not in (_VARINT, _BYTES, *_FIXED):
            raise ValueError(f"no field can begin with {tag}")
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        length, position = _varint(message, position) if wire_type == _BYTES else (_FIXED[wire_type], position)
        if position + length > len(message):
            raise ValueError(f"a field of {length:,} bytes is cut short")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Reads a whole number of seven bits a byte, the lowest first. Returns it and the position after it."""
    value = 0
    for index, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("a number is cut short")
