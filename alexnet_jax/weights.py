"""Files of arrays, and what the names and layouts in them mean. Nothing that is read here can run code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from alexnet_jax.errors import UserError
from alexnet_jax.metric_writer import write_bytes

_HEADER = "alexnet_jax"
"""The entry in the header of a .safetensors file of ours that describes the run."""


def write_safetensors(path: Path, tree: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes a tree of arrays, named like "params/conv1/kernel", and plain data. Raises UserError if it cannot."""
    arrays = traverse_util.flatten_dict(tree, sep="/")
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, save(arrays, {_HEADER: json.dumps(about)}))


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tree and the data of `write_safetensors`. Raises UserError for another file, or a damaged one."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if _HEADER not in header:
                raise UserError(f"{path} holds arrays alone; convert makes a run of it")
            about = json.loads(header[_HEADER])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is no whole .safetensors file: {error}") from error
    return traverse_util.unflatten_dict(arrays, sep="/"), about


def compare(given: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What is wrong with arrays by name, one text a difference: missing, unknown, or of another shape."""
    shapes = {name: tuple(np.shape(array)) for name, array in given.items()}
    wanted = {name: tuple(np.shape(array)) for name, array in expected.items()}
    return [
        *(f"{name} is missing" for name in sorted(wanted.keys() - shapes.keys())),
        *(f"{name} is unknown" for name in sorted(shapes.keys() - wanted.keys())),
        *(
            f"{name} is {shapes[name]}, not {wanted[name]}"
            for name in sorted(wanted.keys() & shapes.keys())
            if shapes[name] != wanted[name]
        ),
    ]
