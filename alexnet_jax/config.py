"""Configs: defaults, checks of values, and the keys that make two configs different experiments."""

import difflib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from alexnet_jax.config_keys import KEYS, RENAMED, Key
from alexnet_jax.errors import UserError

NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text", tuple: "a tuple"}
ALSO = {float: (int,), tuple: (list,)}  # types that JSON and the command line give instead


def default_config() -> ConfigDict:
    """A config with every key at its default."""
    return ConfigDict(
        _nest({name: key.default if key.kind is None else placeholder(key.kind) for name, key in KEYS.items()})
    )


def complete(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config as a plain dict, with current names of its keys and defaults for missing ones."""
    return _nest({name: key.default for name, key in KEYS.items()} | renamed(dict(flatten(stored))))


def complete_here(stored: Mapping[str, Any]) -> dict[str, Any]:
    """`complete` for a config that came with a run: folders and threads are this machine's, whatever the run says.

    A run may come from anywhere, and so may the data, programs and files in the folders that its config names.
    """
    own = {name: key.default for name, key in KEYS.items() if not key.is_shared}
    return _nest(dict(flatten(complete(stored))) | own)


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by "section.key", with the current names of renamed keys."""
    return {RENAMED.get(name, name): value for name, value in values.items()}


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        functools.reduce(lambda section, inner: section.setdefault(inner, {}), sections, nested)[last] = value
    return nested


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("section.key", value) for every key of a nested config."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def nearest(key: str, keys: list[str]) -> str | None:
    """The key probably meant: its new name, or one of that name elsewhere, of those initials or of similar spelling."""
    section, dot, name = RENAMED.get(key, key).rpartition(".")
    names = {known.rsplit(".", 1)[-1]: known for known in keys}
    initials = {"".join(word[0] for word in known.split("_")): known for known in names if "_" in known}
    name = "_".join(initials.get(word, word) for word in name.split("_"))
    if known := [word for word in (name, *name.split("_")) if word in names]:
        return names[known[0]]
    similar = difflib.get_close_matches(f"{section}{dot}{name}", keys, 1)
    return similar[0] if similar else next((names[n] for n in difflib.get_close_matches(name, names, 1, 0.5)), None)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys in which two plain configs describe different experiments, as "config.key: old -> new"."""
    before, after = decisive(complete(old)), decisive(complete(new))
    return [
        f"config.{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a plain config that define the experiment, apart from its length."""
    return _plain_without(config, lambda entry: entry.resume != "fixed")


def length(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a plain config that decide the length of a run."""
    return _plain_without(config, lambda entry: entry.resume != "length")


def free(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a plain config that change no result."""
    return _plain_without(config, lambda entry: entry.resume != "free")


def shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a plain config that must be equal in all processes of a run."""
    return _plain_without(config, lambda entry: not entry.is_shared)


def _plain_without(config: Mapping[str, Any], leaves_out: Callable[[Key], bool]) -> dict[str, Any]:
    """The flat config without some keys, values as JSON returns them; an unknown key counts as fixed and shared."""
    unknown = Key("fixed", None, "")
    return {name: _plain(value) for name, value in flatten(config) if not leaves_out(KEYS.get(name, unknown))}


def _plain(value: Any) -> Any:
    """A value as JSON returns it: tuples become lists."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def check(config: Mapping[str, Any]) -> None:
    """Raises UserError if a value of a plain config is not valid; missing keys have their defaults."""
    values = dict(flatten(complete(config)))
    for name in KEYS:
        check_value(name, values[name])
    if values["data.validation_fraction"] + values["data.test_fraction"] >= 1:
        raise UserError("config.data.validation_fraction and config.data.test_fraction must add up to less than 1")
    if values["optimizer.warmup_epochs"] >= values["epochs"]:
        raise UserError(
            f"config.optimizer.warmup_epochs={values['optimizer.warmup_epochs']} must be less than "
            f"config.epochs={values['epochs']}"
        )
    bounds = (0.0, *values["optimizer.restart_epochs"], values["epochs"])
    if min(end - start for start, end in itertools.pairwise(bounds)) <= values["optimizer.warmup_epochs"]:
        raise UserError(
            f"config.optimizer.restart_epochs={values['optimizer.restart_epochs']} must ascend, within config.epochs="
            f"{values['epochs']}, with more than config.optimizer.warmup_epochs={values['optimizer.warmup_epochs']} "
            "before each and after the last"
        )
    if values["parallel.towers"] > 1 and values["parallel.mode"] != "mesh":
        raise UserError(f"config.parallel.towers={values['parallel.towers']} needs config.parallel.mode='mesh'")
    rule = values["optimizer.name"]
    by_norm = {"clip_norm": values["optimizer.clip_norm"], "name": rule if rule in ("lars", "lamb") else ""}
    for key, value in by_norm.items():
        if values["parallel.towers"] > 1 and value:
            raise UserError(
                f"config.optimizer.{key}={value} needs config.parallel.towers=1: towers do not see whole arrays, "
                "whose norms it needs"
            )
    if values["data.crop"] > values["data.image_size"]:
        raise UserError(
            f"config.data.crop={values['data.crop']} is larger than config.data.image_size={values['data.image_size']}"
        )


def check_value(name: str, value: Any) -> None:
    """Raises UserError if a value has the wrong type for the key "section.key" or breaks one of its rules."""
    key = KEYS[name]
    if value is None and key.kind is not None:
        return
    kind = key.kind or type(key.default)
    if not isinstance(value, (kind, *ALSO.get(kind, ()))) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"config.{name}={value!r} must be {NAMES[kind]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{name}={value} must be finite")
    for rule in key.rules:
        if not _holds(rule.holds, value):
            raise UserError(f"config.{name}={value!r} {rule.text}")


def _holds(rule: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value passes a test; one of a type that the test cannot handle does not."""
    try:
        return rule(value)
    except TypeError:
        return False
