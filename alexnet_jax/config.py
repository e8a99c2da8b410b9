"""Reading a config from the command line, and refusing what cannot work, in one line that names the key."""

import difflib
import functools
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from alexnet_jax.errors import UserError


def exit_on_user_error(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """Wraps a program's main: a UserError becomes one line on stderr and the exit status."""

    @functools.wraps(main)
    def wrapped(argv: list[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            _exit(str(error), error.exit_code)

    return wrapped


def parse_flags(argv: list[str]) -> list[str]:
    """Parses absl flags with a --config; a mistake ends the program with one line and status 2."""
    try:
        _check_keys(argv)
        return flags.FLAGS(argv)
    except UserError as error:
        _exit(str(error))
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # Errors inside a config file arrive with a traceback for text; its last line is the message.
        _exit(re.sub(r"^\w+Error: ", "", str(error).strip().splitlines()[-1]))


def _exit(message: str, status: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _check_keys(argv: list[str]) -> None:
    """Raises UserError if --config is missing or some --config.KEY does not exist, naming the nearest key."""
    words = argv[1:]
    files = [word.split("=", 1)[1] for word in words if re.match(r"--?config=", word)]
    files += [value for word, value in itertools.pairwise(words) if re.fullmatch(r"--?config", word)]
    if any(re.fullmatch(r"--?(help|helpfull|helpshort|helpxml)", word) for word in words):
        return
    if not files:
        raise UserError("which configuration? Give --config=configs/alexnet.py")
    keys = dict(flatten(_load(files[-1])))
    for word in words:
        if not (match := re.match(r"--?(?:no)?config\.([^=]+)", word)):
            continue
        key = match[1]
        if key not in keys:
            names = {name.rsplit(".", 1)[-1]: name for name in keys}
            near = difflib.get_close_matches(key, keys, 1, 0.5)
            near = near or [names[name] for name in difflib.get_close_matches(key.rsplit(".", 1)[-1], names, 1, 0.5)]
            hint = f"; did you mean config.{near[0]} ({keys[near[0]]!r})?" if near else ""
            raise UserError(f"unknown key config.{key}{hint}")


def _load(config_file: str) -> ConfigDict:
    config = ConfigFileFlagParser(name="config").parse(config_file)
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={config_file}: no such file; there is configs/alexnet.py")
    return config


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("section.key", value) for every key of a nested config."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


FREE_KEYS = ("epochs", "max_steps", "eval_batch_size", "log_every_steps", "data.prepared_dir", "data.num_threads")
"""Keys that a resumed run may change, beside those of "parallel" and "checkpoint"."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys in which two plain configs describe different experiments, as "key: old -> new"."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [
        f"config.{key}: {_plain(before.get(key))!r} -> {_plain(after.get(key))!r}"
        for key in sorted(before.keys() | after.keys())
        if _plain(before.get(key)) != _plain(after.get(key))
        and key not in FREE_KEYS
        and not key.startswith(("parallel.", "checkpoint."))
    ]


def _plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples become lists."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "batch_size eval_batch_size log_every_steps data.synthetic_examples data.num_threads data.crop "
        "model.hidden_width optimizer.patience checkpoint.keep",
        lambda value: value >= 1,
        "must be at least 1",
    ),
    (
        "epochs eval_every_epochs optimizer.learning_rate optimizer.bias_rate_multiplier",
        lambda value: value > 0,
        "must be more than 0",
    ),
    (
        "seed max_steps optimizer.weight_decay optimizer.cooldown optimizer.threshold optimizer.minimum_rate "
        "optimizer.min_divisions parallel.num_devices checkpoint.every_steps",
        lambda value: value >= 0,
        "must not be negative",
    ),
    ("seed", lambda value: value < 2**31, "must be less than 2^31"),
    ("model.dropout_rate optimizer.momentum", lambda value: 0 <= value < 1, "must be in [0, 1)"),
    ("data.validation_fraction optimizer.factor", lambda value: 0 < value < 1, "must be between 0 and 1"),
    ("optimizer.dexp_target", lambda value: value > 1, "must be more than 1"),
    ("optimizer.dexp_steps", lambda value: value >= 2, "must be at least 2"),
    ("data.mean data.std", lambda value: _is_row(value, float, float, float), "must be three numbers: R, G, B"),
    ("data.std", lambda value: all(std > 0 for std in value), "must be more than 0"),
    ("optimizer.step_epochs", lambda value: _is_row(value, *[float] * len(value)), "must be numbers of epochs"),
    (
        "optimizer.weight_decay_overrides",
        lambda value: all(_is_row(row, str, float) for row in value),
        "must be ((pattern, decay), ...)",
    ),
    (
        "optimizer.rate_multipliers",
        lambda value: all(_is_row(row, str, float, float) for row in value),
        "must be ((pattern, from epoch, factor), ...)",
    ),
)
"""Keys, what their values must be, and how to say so."""


def check(config: Mapping[str, Any]) -> None:
    """Raises UserError if a value of a plain config cannot work."""
    values = dict(flatten(config))
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{key}={value} must be finite")
    for keys, holds, text in _RULES:
        for key in keys.split():
            if values[key] is not None and not holds(values[key]):
                raise UserError(f"config.{key}={values[key]!r} {text}")
    if values["data.crop"] > values["data.image_size"]:
        raise UserError(
            f"config.data.crop={values['data.crop']} is larger than config.data.image_size={values['data.image_size']}"
        )


def _is_row(value: Any, *kinds: type) -> bool:
    """True for a sequence of the given kinds; an int will do for a float."""
    if not isinstance(value, list | tuple) or len(value) != len(kinds):
        return False
    return all(
        isinstance(item, (int, float) if kind is float else kind) for item, kind in zip(value, kinds, strict=True)
    )
