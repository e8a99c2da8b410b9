"""Reading a config from the command line; a mistake ends the program with one line and status 2."""

import functools
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from alexnet_jax.cli.config_files import find_configs
from alexnet_jax.config import check, flatten, nearest
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
