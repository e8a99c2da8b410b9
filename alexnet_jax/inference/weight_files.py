"""Reading and writing of files of named arrays; no file that is read here can run code."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import save

from alexnet_jax.errors import UserError, reason
from alexnet_jax.inference.caffe_reader import read_caffe
from alexnet_jax.inference.torch_reader import read_torch
from alexnet_jax.system.files import open_archive, other_content, write_bytes

_HEADER = "alexnet_jax"
"""The metadata key under which our .safetensors files describe the run."""

_INSERTED = ("module", "_orig_mod")
"""Parts that DataParallel and torch.compile insert into names, at any depth."""


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
    arrays, about = ({}, None) if _content_format(path) in (".pth", ".npz") else _read_safetensors(path)
    if about is None:
        raise UserError(f"{path} holds only arrays, no run; make one of them with `alexnet convert`")
    return traverse_util.unflatten_dict(arrays, sep="/"), about


def holds_run(path: Path) -> bool:
    """Whether a file is one that `write_safetensors` wrote, as far as its header tells."""
    try:
        with safe_open(path, framework="numpy") as file:
            return _HEADER in (file.metadata() or {})
    except Exception:  # of safetensors
        return False


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """The arrays by name, and the description in the header or None."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except Exception as error:  # of safetensors, of NumPy for unknown types, and of JSON
        raise UserError(f"{path} is not a complete .safetensors file: {reason(error)}") from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file of weights: of safetensors, NumPy (.npz), PyTorch or Caffe.

    The content decides which of them it is; the suffix does only where the content tells nothing.

    Returns:
      The arrays by name, without the prefixes of programs around the network, converted to float32.

    Raises UserError for other files, damaged ones, and those that would take far more memory than their size.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = ".pth" if path.suffix.lower() == ".pt" else path.suffix.lower()
    kind = _content_format(path) or suffix
    if kind not in _READERS:
        raise UserError(f"{path} is none of the files of weights that can be read: {', '.join(_READERS)}")
    return _plain_names(_READERS[kind](path))


def _content_format(path: Path) -> str | None:
    """The format that the first bytes of a file show, as one of `_READERS`; None if they show none.

    Raises UserError for what a failed download leaves.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return None
    if other := other_content(start):
        raise UserError(f"{path} is {other}")
    if start.startswith(b"PK\x03\x04"):
        return ".pth" if _is_torch_archive(path) else ".npz"
    if start.startswith(b"\x80\x02"):  # a pickle
        return ".pth"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return ".safetensors"
    return None


def _is_torch_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] == "data.pkl" for name in archive.namelist())
    except Exception:  # a damaged archive; the suffix decides
        return path.suffix.lower() != ".npz"


def _plain_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes what DataParallel and torch.compile put into names, and the attributes in which the whole network lies.

    Such an attribute, like "model" or "encoder", is what all names begin with.
    """
    parts = {name: [part for part in name.split(".") if part not in _INSERTED] for name in arrays}
    while parts and min(map(len, parts.values())) > 2:  # a layer and its weight at least are left
        first = {part[0] for part in parts.values()}
        if len(first) > 1 or first & {"features", "classifier"}:
            break
        parts = {name: part[1:] for name, part in parts.items()}
    names = {name: ".".join(part) for name, part in parts.items()}
    return arrays if len(set(names.values())) < len(names) else {names[name]: arrays[name] for name in arrays}


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


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": _read_plain_safetensors,
    ".npz": _read_npz,
    ".pth": read_torch,
    ".caffemodel": read_caffe,
}


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
