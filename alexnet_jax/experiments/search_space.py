"""Search spaces of sweeps: config keys, and the values or ranges that each may take.

A space is a Python file with a function get_space() that returns a dict from config keys to one of

    {"values": [0.01, 0.003]}             one of these values; grid search accepts only this kind
    {"uniform": (0.5, 0.99)}              a number in the interval
    {"log_uniform": (0.0001, 0.1)}        a number in the interval, uniform on a log scale
    {"int": (16, 256)}                    an integer in the interval, ends included
"""

import copy
import dataclasses
import itertools
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError, reason

KINDS = {
    "values": "a list of values",
    "uniform": "two numbers, the smaller first",
    "log_uniform": "two numbers above 0, the smaller first",
    "int": "two whole numbers, the smaller first",
}
"""The kinds of ranges, with the arguments that each takes, for error messages."""

Settings = dict[str, Any]
"""Config values by key."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The range of one key: the list of its values, or for the other kinds the two ends of an interval."""

    kind: str
    values: tuple[Any, ...]

    @property
    def choices(self) -> dict[Any, Any]:
        """The values by their representation in Optuna."""
        return {storable(value): value for value in self.values}

    def suggest(self, trial: Any, key: str) -> Any:
        """The value that an Optuna trial suggests for a key."""
        if self.kind == "values":
            return self.choices[trial.suggest_categorical(key, list(self.choices))]
        if self.kind == "int":
            return trial.suggest_int(key, *self.values)
        return trial.suggest_float(key, *self.values, log=self.kind == "log_uniform")


Space = Mapping[str, Range]


def load_space(path: Path, config: ConfigDict) -> Space:
    """Reads a search space and checks it against a config.

    Args:
      path: the Python file that defines get_space().
      config: the config whose keys are varied.

    Raises UserError that names the file, and the key where one is wrong.
    """
    if not path.is_file():
        raise UserError(f"--space={path}: no such file; see configs/sweeps for examples")
    try:
        content = runpy.run_path(str(path))
        if "get_space" not in content:
            raise ValueError("it has no get_space()")
        described = content["get_space"]()
        if not described or not isinstance(described, dict):
            raise ValueError("get_space() must return a dict that is not empty")
        return {key: _parse(key, range_, config) for key, range_ in described.items()}
    except Exception as error:  # the file is code and may raise anything
        raise UserError(f"--space={path}: {reason(error)}") from error


def _parse(key: str, described: Any, config: ConfigDict) -> Range:
    known = dict(config_lib.flatten(config))
    if key not in known:
        near = config_lib.nearest(key, list(known))
        raise ValueError(f"unknown key {key}" + (f"; did you mean {near}?" if near else ""))
    if key == "seed":
        raise ValueError("seed cannot be varied: every setting is run with all of --seeds")
    if not isinstance(described, dict) or len(described) != 1 or not described.keys() <= KINDS.keys():
        raise ValueError(f"{key}: {described!r} must be a dict of one of {', '.join(KINDS)}")
    ((kind, values),) = described.items()
    if not isinstance(values, list | tuple) or not values or (kind != "values" and not _is_interval(kind, values)):
        raise ValueError(f"{key}: {kind} takes {KINDS[kind]}, not {values!r}")
    if any(value is None for value in values) or len({repr(value) for value in values}) < len(values):
        raise ValueError(f"{key}: values must differ and none may be None")
    for value in values:
        apply({key: value}, config)
    return Range(kind, tuple(values))


def _is_interval(kind: str, values: list[Any] | tuple[Any, ...]) -> bool:
    types = (int,) if kind == "int" else (int, float)
    if len(values) != 2 or any(type(value) not in types for value in values):
        return False
    return values[0] < values[1] and (kind != "log_uniform" or values[0] > 0)


def apply(settings: Settings, config: ConfigDict) -> ConfigDict:
    """Returns a copy of the config with the settings. Raises ValueError that names a key whose type is wrong."""
    changed = copy.deepcopy(config)
    for key, value in settings.items():
        try:
            changed.update_from_flattened_dict({key: value})
        except TypeError as error:
            default = dict(config_lib.flatten(config))[key]
            raise ValueError(f"{key}: {value!r} is of another type than its default {default!r}") from error
    return changed


def grid(space: Space) -> list[Settings]:
    """All combinations of values, the last key changing fastest. Raises UserError if a key has a range."""
    for key, range_ in space.items():
        if range_.kind != "values":
            raise UserError(f"--sampler=grid needs a list of values, but {key} has a range ({range_.kind})")
    combinations = itertools.product(*(range_.values for range_ in space.values()))
    return [dict(zip(space, values, strict=True)) for values in combinations]


def storable(value: Any) -> Any:
    """The representation of a value that Optuna can store: itself, or its repr."""
    return value if isinstance(value, bool | int | float | str) else repr(value)


def flags(settings: Settings) -> Iterator[str]:
    """Yields the settings as command-line flags."""
    for key, value in settings.items():
        yield f"--config.{key}={value!r}" if isinstance(value, float) else f"--config.{key}={value}"
