"""Reading a config from the command line, and refusing what cannot work, in one line that names the key."""

import difflib
import functools
import io
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from alexnet_jax.cli.config_files import find_configs
from alexnet_jax.errors import UserError
from alexnet_jax.system.signals import Terminated


def exit_on_user_error(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """Wraps a program's main: a UserError or a signal becomes one line on stderr and the exit status."""

    @functools.wraps(main)
    def wrapped(argv: list[str]) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be Unicode, nor terminals show all of it
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            main(argv)
            sys.stdout.flush()
        except BrokenPipeError:  # nobody reads on, as after `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except UserError as error:
            _exit(str(error), error.exit_code)
        except Terminated:
            _exit("terminated", 143)
        except KeyboardInterrupt:
            _exit("interrupted", 130)

    return wrapped


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses absl flags with a --config; a mistake ends the program with one line and status 2."""
    argv = find_configs(argv)
    try:
        config_file = _config_file(argv[1:])
        if config_file:
            _check_keys(argv[1:], config_file)
        remaining = values(argv)
        if not config_file:
            raise UserError("which configuration? Give --config=configs/alexnet.py")
        return remaining
    except UserError as error:
        _exit(str(error))
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        _exit(" ".join(str(error).split()))


def config_from_flags(program: str, argv: Sequence[str]) -> ConfigDict:
    """The config that a program's `--config=FILE --config.KEY=VALUE` describe, checked."""
    words, values = [program, *argv], flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "FILE.py or FILE.py:CHOICES", values, lock_config=True, sys_argv=words
    )
    refuse_words(parse_flags(words, values))
    config: ConfigDict = values["config"].value
    check(config.to_dict())
    return config


def with_choice(words: Sequence[str], choice: str) -> list[str]:
    """Words of a command line, with one more choice for the config file if `choice` is not empty."""
    return [
        f"{word}{',' if ':' in word else ':'}{choice}" if choice and word.startswith("--config=") else word
        for word in words
    ]


def seeds(text: str) -> tuple[int, ...]:
    """The value of a program's --seeds: "0,1,2". Raises ValueError for what is no list of different seeds."""
    values = tuple(int(part) for part in text.split(","))
    if len(set(values)) < len(values) or not all(0 <= value < 2**31 for value in values):
        raise ValueError
    return values


def refuse_words(argv: list[str]) -> None:
    """Raises UserError if something is left of a command line once its flags are parsed."""
    if argv[1:]:
        raise UserError(f"what is {argv[1]!r}? Settings are given as --config.KEY=VALUE")


def _exit(message: str, status: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _config_file(words: list[str]) -> str | None:
    """The last value given to --config, also where absl would take it from the next word."""
    files = [word.split("=", 1)[1] for word in words if re.match(r"--?config=", word)]
    files += [value for word, value in itertools.pairwise(words) if re.fullmatch(r"--?config", word)]
    return files[-1] if files else None


def _check_keys(words: list[str], config_file: str) -> None:
    """Raises UserError if some --config.KEY does not exist, naming the nearest key."""
    keys = dict(flatten(_load(config_file)))
    for word in words:
        match = re.match(r"--?(?:no)?config\.([^=]+)", word)
        if match and match[1] not in keys:
            near = nearest(match[1], list(keys))
            hint = f"; did you mean config.{near} ({keys[near]!r})?" if near else ""
            raise UserError(f"unknown key config.{match[1]}{hint}")


def nearest(key: str, keys: list[str]) -> str | None:
    """The key that was probably meant: the same name in another section, its initials (lr), or a similar spelling."""
    name = key.rsplit(".", 1)[-1]
    names = {known.rsplit(".", 1)[-1]: known for known in keys}
    initials = {"".join(word[0] for word in known.split("_")): known for known in names if "_" in known}
    if name in initials:
        name = initials[name]
    if name in names:
        return names[name]
    similar = difflib.get_close_matches(key, keys, 1)
    return similar[0] if similar else next((names[n] for n in difflib.get_close_matches(name, names, 1, 0.5)), None)


def _load(config_file: str) -> ConfigDict:
    """What the file's get_config returns. Raises UserError that names the file if it cannot be had."""
    path = Path(config_file.split(":", 1)[0])
    if not path.exists():
        raise UserError(f"--config={config_file}: no such file; there is configs/alexnet.py")
    try:
        config = ConfigFileFlagParser(name="config").parse(config_file)
    except Exception as error:  # a config file is code: anything can happen in it
        # ml_collections gives ValueErrors a traceback for text; its last line is the message.
        message = (str(error).strip().splitlines() or [""])[-1]
        raise UserError(
            f"--config={config_file}: {re.sub(r'^[A-Za-z]+Error: ', '', message) or repr(error)}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={config_file}: get_config() must return a ConfigDict")
    return config


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("section.key", value) for every key of a nested config."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


FREE_KEYS = (
    "batch_size",
    "epochs",
    "max_steps",
    "stop_at_train_error",
    "eval_batch_size",
    "log_every_steps",
    "stuck_after_steps",
    "compilation_cache_dir",
    "profile_steps",
    "data.dir",
    "data.prepared_dir",
    "data.residence",
    "data.num_threads",
    "data.max_quarantined",
)
"""What a resumed run may change, beside "parallel" and "checkpoint" keys; a change of the images is noticed."""


LENGTH_KEYS = ("batch_size", "epochs", "max_steps", "stop_at_train_error")
"""What of these decides how long a run is, and so what comes of it."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys in which two plain configs describe different experiments, as "key: old -> new"."""
    before, after = decisive(old), decisive(new)
    return [
        f"config.{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a plain config that make it the experiment it is, beside its length."""
    return {
        key: _plain(value)
        for key, value in flatten(config)
        if key not in FREE_KEYS and not key.startswith(("parallel.", "checkpoint."))
    }


def shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a plain config that many processes of one run must have in common."""
    own = ("parallel.process_id", "data.dir", "data.prepared_dir", "data.num_threads", "compilation_cache_dir")
    return {key: _plain(value) for key, value in flatten(config) if key not in own}


def _plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples become lists."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "batch_size eval_batch_size log_every_steps data.synthetic_examples data.crop "
        "model.hidden_width model.num_classes optimizer.patience optimizer.base_batch_size parallel.towers "
        "parallel.micro_batches parallel.num_processes parallel.timeout_seconds checkpoint.keep",
        lambda value: value >= 1,
        "must be at least 1",
    ),
    (
        "epochs eval_every_epochs optimizer.learning_rate optimizer.bias_rate_multiplier",
        lambda value: value > 0,
        "must be more than 0",
    ),
    (
        "seed max_steps stuck_after_steps profile_steps optimizer.weight_decay optimizer.cooldown optimizer.threshold "
        "optimizer.minimum_rate optimizer.min_divisions parallel.num_devices "
        "parallel.process_id checkpoint.every_steps data.num_threads",
        lambda value: value >= 0,
        "must not be negative",
    ),
    ("data.mixup optimizer.warmup_epochs", lambda value: value >= 0, "must not be negative"),
    ("label_smoothing optimizer.ema_decay", lambda value: 0 <= value < 1, "must be in [0, 1)"),
    ("parallel.mode", lambda value: value in ("pmap", "mesh"), "must be pmap or mesh"),
    ("optimizer.batch_scaling", lambda value: value in ("none", "linear", "sqrt"), "must be none, linear or sqrt"),
    (
        "parallel.coordinator",
        lambda value: value in ("", "auto") or re.fullmatch(r".+:\d+", value) is not None,
        "must be HOST:PORT, auto or empty",
    ),
    ("model.compute_dtype", lambda value: value in ("float32", "bfloat16"), "must be float32 or bfloat16"),
    ("checkpoint.on_failure", lambda value: value in ("stop", "continue"), "must be stop or continue"),
    ("test_views", lambda value: value in (1, 2, 10), "must be 1, 2 or 10"),
    ("data.color_noise data.color_noise_until_epoch", lambda value: value >= 0, "must not be negative"),
    (
        "data.pca_std",
        lambda value: _is_row(value, float, float, float) and min(value) >= 0,
        "must be three numbers >= 0",
    ),
    (
        "data.pca_vectors",
        lambda value: len(value) == 3 and all(_is_row(row, float, float, float) for row in value),
        "must be three rows of three numbers",
    ),
    (
        "optimizer.bias_schedule",
        lambda value: value in ("same", "constant", "halfway"),
        "must be same, constant or halfway",
    ),
    ("data.jpeg_quality", lambda value: 1 <= value <= 100, "must be from 1 to 100"),
    ("data.image_size", lambda value: 1 <= value <= 4096, "must be from 1 to 4096"),
    (
        "model.without_layers",
        lambda value: _is_row(value, *[str] * len(value)),
        "must be names of layers: ('conv3',)",
    ),
    ("stop_at_train_error data.test_fraction data.max_quarantined", lambda value: 0 <= value < 1, "must be in [0, 1)"),
    ("data.max_megapixels", lambda value: value > 0, "must be more than 0"),
    ("seed", lambda value: value < 2**31, "must be less than 2^31"),
    ("model.dropout_rate optimizer.momentum", lambda value: 0 <= value < 1, "must be in [0, 1)"),
    ("data.validation_fraction optimizer.factor", lambda value: 0 < value < 1, "must be between 0 and 1"),
    ("optimizer.dexp_target", lambda value: value > 1, "must be more than 1"),
    ("optimizer.dexp_steps", lambda value: value >= 2, "must be at least 2"),
    ("data.mean data.std", lambda value: _is_row(value, float, float, float), "must be three numbers: R, G, B"),
    ("data.std", lambda value: all(std > 0 for std in value), "must be more than 0"),
    ("optimizer.threshold", lambda value: value < 1, "must be less than 1"),
    ("optimizer.step_epochs", lambda value: _is_row(value, *[float] * len(value)), "must be numbers of epochs"),
    (
        "optimizer.weight_decay_overrides",
        lambda value: all(_is_row(row, str, float) and row[1] >= 0 for row in value),
        "must be ((pattern, decay), ...), no decay negative",
    ),
    (
        "optimizer.rate_multipliers",
        lambda value: all(_is_row(row, str, float, float) and row[2] >= 0 for row in value),
        "must be ((pattern, from epoch, factor), ...), no factor negative",
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
            if key not in values:
                raise UserError(f"config.{key} is missing; configs/alexnet.py shows all keys")
            if values[key] is not None and not _holds(holds, values[key]):
                raise UserError(f"config.{key}={values[key]!r} {text}")
    if values["data.validation_fraction"] + values["data.test_fraction"] >= 1:
        raise UserError("config.data.validation_fraction and config.data.test_fraction leave nothing to train on")
    if values["optimizer.warmup_epochs"] >= values["epochs"]:
        raise UserError(
            f"config.optimizer.warmup_epochs={values['optimizer.warmup_epochs']} takes the whole run of "
            f"config.epochs={values['epochs']}"
        )
    if values["parallel.towers"] > 1 and values["parallel.mode"] != "mesh":
        raise UserError(f"config.parallel.towers={values['parallel.towers']} needs config.parallel.mode='mesh'")
    if values["data.crop"] > values["data.image_size"]:
        raise UserError(
            f"config.data.crop={values['data.crop']} is larger than config.data.image_size={values['data.image_size']}"
        )


def _holds(rule: Callable[[Any], bool], value: Any) -> bool:
    try:
        return rule(value)
    except TypeError:
        return False


def _is_row(value: Any, *kinds: type) -> bool:
    """True for a sequence of the given kinds, numbers finite; an int will do for a float."""
    if not isinstance(value, list | tuple) or len(value) != len(kinds):
        return False
    return all(
        isinstance(item, int | float) and math.isfinite(item) if kind is float else isinstance(item, kind)
        for item, kind in zip(value, kinds, strict=True)
    )
