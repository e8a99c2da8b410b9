"""Reading pickles of plain values and NumPy arrays of bytes without running anything that they name."""

import io
import math
import pickle
from typing import Any, ClassVar

import numpy as np

from alexnet_jax.errors import UserError, reason


class _Array:
    """What stands for an array while its pickle is read: the state that NumPy would give it."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.by_columns, self.content = state

    def to_numpy(self) -> np.ndarray:
        """The array. Raises ValueError if it is not one of bytes, or of another length than its shape says."""
        if not isinstance(self.shape, tuple) or not all(type(length) is int for length in self.shape):
            raise ValueError("the shape of an array is not a row of numbers")
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        if self.dtype.code != "u1" or self.by_columns or math.prod(self.shape) != len(content):
            raise ValueError("an array is not one of bytes, row by row")
        return np.frombuffer(content, np.uint8).reshape(self.shape)


class _Type:
    """What stands for a type of numbers."""

    def __init__(self, code: str, *_: Any):
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order, which bytes do not have."""


def _array(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Turns text into bytes: so Python 3 pickles bytes in protocols 0 to 2."""
    if encoding != "latin1":
        raise ValueError(f"bytes are encoded as {encoding!r:.40}")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}
"""All names that a pickle may ask for. What they stand for here only keeps its arguments."""


_LOAD_BUILD = pickle._Unpickler.dispatch[pickle.BUILD[0]]


def _load_build(reader: Any) -> None:
    """Gives an array its state; nothing else in a pickle has one, above all no function of this module."""
    if len(reader.stack) < 2 or not isinstance(reader.stack[-2], _Array | _Type):
        raise ValueError("it sets attributes of what is no array")
    _LOAD_BUILD(reader)


class _Reader(pickle._Unpickler):  # the one in C allocates whatever size a pickle names
    # So does BYTEARRAY8, which no array of CIFAR has, in Python.
    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    } | {pickle.BUILD[0]: _load_build}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise ValueError(f"it asks for {f'{module}.{name}'!a:.80}, which no array contains; nothing was run")
        return _STAND_INS[module, name]


def read_pickle(content: bytes, where: str) -> dict[str, Any]:
    """Reads a pickled dictionary whose values are numbers, texts, lists of them, or arrays of bytes.

    Strings of Python 2 become texts. Raises UserError, which begins with `where`, for any other content.
    """
    try:
        entries = _Reader(io.BytesIO(content), encoding="latin1").load()
        if not isinstance(entries, dict) or not all(isinstance(key, str | bytes) for key in entries):
            raise ValueError("it is no dictionary of names")
        named = {key if isinstance(key, str) else key.decode("latin1"): value for key, value in entries.items()}
        return {key: value.to_numpy() if isinstance(value, _Array) else value for key, value in named.items()}
    except Exception as error:  # damaged pickles raise anything
        raise UserError(f"{where} cannot be read as a pickle: {reason(error)}") from error
