"""What a sweep varies: keys of the config, and the values or ranges that each is tried at.

A file of it has a function get_space() that returns, for each key, one of

    {"values": [0.01, 0.003]}             these; a grid takes no other kind
    {"uniform": (0.5, 0.99)}              any number between
    {"log_uniform": (0.0001, 0.1)}        the same, each order of magnitude as often
    {"int": (16, 256)}                    any whole number between, both included
"""

import copy
import dataclasses
import itertools
import math
import runpy
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError

KINDS = ("values", "uniform", "log_uniform", "int")

Settings = dict[str, Any]
"""Key of the config -> value."""


@dataclasses.dataclass(frozen=True)
class Range:
    """What one key is tried at: all of `values`, or, for another kind, what lies between the two of them."""

    kind: str
    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        """One of the values, each as likely as the others."""
        if self.kind == "values":
            return self.values[generator.integers(len(self.values))]
        low, high = self.values
        if self.kind == "int":
            return int(generator.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return float(generator.uniform(low, high))
        return float(math.exp(generator.uniform(math.log(low), math.log(high))))


Space = Mapping[str, Range]


def load_space(path: Path, config: ConfigDict) -> Space:
    """Reads a file of a space for a config. Raises UserError that names the file and the key for what cannot work."""
    if not path.is_file():
        raise UserError(f"--space={path}: no such file; configs/sweeps holds examples")
    try:
        described = runpy.run_path(str(path))["get_space"]()
        if not described or not isinstance(described, dict):
            raise ValueError("get_space() must return a dict that is not empty")
        return {key: _parse(key, range_, config) for key, range_ in described.items()}
    except Exception as error:  # the file is code: anything can happen in it
        reason = "it has no get_space()" if str(error) == "'get_space'" else str(error) or repr(error)
        raise UserError(f"--space={path}: {reason}") from error


def _parse(key: str, described: Any, config: ConfigDict) -> Range:
    known = dict(config_lib.flatten(config))
    if key not in known:
        near = config_lib.nearest(key, list(known))
        raise ValueError(f"unknown key {key}" + (f"; did you mean {near}?" if near else ""))
    if key == "seed":
        raise ValueError("seed is no setting: each is repeated with all of --seeds")
    if not isinstance(described, dict) or len(described) != 1 or not set(described) <= set(KINDS):
        raise ValueError(f"{key}: {described!r} must be a dict of one of {', '.join(KINDS)}")
    ((kind, values),) = described.items()
    if not isinstance(values, list | tuple) or not values or (kind != "values" and not _is_interval(kind, values)):
        raise ValueError(f"{key}: {kind} takes {_EXPECTED[kind]}, not {values!r}")
    if any(value is None for value in values) or len({repr(value) for value in values}) < len(values):
        raise ValueError(f"{key}: values must differ and none may be None")
    for value in values:
        apply({key: value}, config)
    return Range(kind, tuple(values))


_EXPECTED = {
    "values": "a list of them",
    "uniform": "two numbers, the smaller first",
    "log_uniform": "two numbers above 0, the smaller first",
    "int": "two whole numbers, the smaller first",
}


def _is_interval(kind: str, values: Any) -> bool:
    if len(values) != 2 or any(isinstance(value, bool) for value in values):
        return False
    if not all(isinstance(value, int if kind == "int" else int | float) for value in values):
        return False
    return values[0] < values[1] and (kind != "log_uniform" or values[0] > 0)


def apply(settings: Settings, config: ConfigDict) -> ConfigDict:
    """A copy of the config with these settings. Raises ValueError that names the key for a value of another type."""
    changed = copy.deepcopy(config)
    for key, value in settings.items():
        *sections, name = key.split(".")
        section = changed
        for part in sections:
            section = section[part]
        try:
            section[name] = value
        except TypeError as error:
            raise ValueError(f"{key}: {value!r} is of another type than its default {section[name]!r}") from error
    return changed


def grid(space: Space) -> list[Settings]:
    """All combinations, the last key changing fastest. Raises UserError for a key with a range."""
    for key, range_ in space.items():
        if range_.kind != "values":
            raise UserError(f"--sampler=grid takes values alone, but {key} has a range ({range_.kind})")
    return [
        dict(zip(space, values, strict=True))
        for values in itertools.product(*(range_.values for range_ in space.values()))
    ]


def draw(space: Space, seed: int, number: int) -> Settings:
    """The settings of random trial `number`: the same wherever and in whichever order trials are done."""
    return {
        key: range_.draw(np.random.default_rng(zlib.crc32(f"{seed} {number} {key}".encode())))
        for key, range_ in space.items()
    }


def flags(settings: Settings) -> Iterator[str]:
    """The settings as words of a command line."""
    for key, value in settings.items():
        yield f"--config.{key}={value!r}" if isinstance(value, float) else f"--config.{key}={value}"
