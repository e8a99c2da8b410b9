"""Reading and writing of files of named arrays; no file that is read here can run code."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import save

from alexnet_jax.errors import UserError, reason
from alexnet_jax.inference.torch_reader import read_torch
from alexnet_jax.system.files import open_archive, write_bytes

_HEADER = "alexnet_jax"
"""The metadata key under which our .safetensors files describe the run."""


def write_safetensors(path: Path, tree: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes a .safetensors file of a tree of arrays and of a description of the run.

    Args:
      path: the file to write.
      tree: nested dictionaries of arrays, stored under names like "params/conv1/kernel".
      about: the description, plain data that JSON can hold.

    Raises UserError if the file cannot be written.
    """
    arrays = traverse_util.flatten_dict(tree, sep="/")
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, save(arrays, {_HEADER: json.dumps(about)}))


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the tree and the description that `write_safetensors` wrote. Raises UserError for any other file."""
    arrays, about = _read_safetensors(path)
    if about is None:
        raise UserError(f"{path} holds only arrays, no run; make one of them with `alexnet convert`")
    return traverse_util.unflatten_dict(arrays, sep="/"), about


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """The arrays by name, and the description in the header or None."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except Exception as error:  # of safetensors, of NumPy for unknown types, and of JSON
        raise UserError(f"{path} is not a complete .safetensors file: {reason(error)}") from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a .safetensors, .npz, .pth or .pt file.

    Returns:
      The arrays by name, converted to float32.

    Raises UserError for other files, damaged ones, and those that would take far more memory than their size.
    """
    if path.suffix not in _READERS:
        raise UserError(f"{path}: weights can be read from files named {', '.join(_READERS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return _READERS[path.suffix](path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to a .safetensors or .npz file. Raises UserError for other suffixes, or if it cannot be written."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if path.suffix == ".safetensors":
        write_bytes(path, save(whole, {"format": "pt"}))  # some of PyTorch's loaders require this entry
    elif path.suffix == ".npz":
        np.savez(content := io.BytesIO(), allow_pickle=False, **whole)
        write_bytes(path, content.getvalue())
    else:
        raise UserError(f"{path}: weights can be written to files named .safetensors or .npz")


def _read_plain_safetensors(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, np.float32) for name, array in _read_safetensors(path)[0].items()}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with open_archive(path) as archive:
            return {name.removesuffix(".npy"): _read_npy(archive.read(name)) for name in archive.namelist()}
    except Exception as error:  # of zipfile, of decompression, and of NumPy's headers
        raise UserError(f"{path} is not a complete .npz file of numbers: {reason(error)}") from error


def _read_npy(content: bytes) -> np.ndarray:
    """The array of a .npy file. Raises ValueError for other content, MemoryError for an absurd shape."""
    stream = io.BytesIO(content)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if array.dtype.kind not in "fiub" or stream.read(1):
        raise ValueError(f"an array of {array.dtype}, {array.shape}, in {len(content):,} bytes")
    return np.asarray(array, np.float32, order="C")


_READERS = {".safetensors": _read_plain_safetensors, ".npz": _read_npz, ".pth": read_torch, ".pt": read_torch}


def compare(given: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Lists the differences between two sets of named arrays: names missing or unknown, and shapes that differ."""
    shapes = {name: tuple(np.shape(array)) for name, array in given.items()}
    wanted = {name: tuple(np.shape(array)) for name, array in expected.items()}
    differing = (name for name in sorted(wanted.keys() & shapes.keys()) if shapes[name] != wanted[name])
    return [
        *(f"{name} is missing" for name in sorted(wanted.keys() - shapes.keys())),
        *(f"{name} is unknown" for name in sorted(shapes.keys() - wanted.keys())),
        *(f"{name} is {shapes[name]}, not {wanted[name]}" for name in differing),
    ]
