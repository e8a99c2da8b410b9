"""Reads a config from the command line; a mistake ends the program with one line and exit code 2.

The configs that ship with the package are found by name: `--config=alexnet.py:digits` works in any folder.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from alexnet_jax.cli.exits import leave
from alexnet_jax.config import check, decisive, flatten, nearest
from alexnet_jax.config_keys import KEYS, RENAMED
from alexnet_jax.errors import UserError
from alexnet_jax.system import console
from alexnet_jax.system.files import expand_home

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Where configs are: in an installed package, and in a checkout."""


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses absl flags with a --config; returns the other words. A mistake ends the program: one line, exit code 2."""
    argv = find_configs(argv)
    given = [value for _, _, value in _values_of_config(argv)]
    try:
        if given:
            _check_keys(argv[1:], given[-1])
        remaining = values(argv)
        if not given:
            raise UserError("--config is required, such as --config=configs/alexnet.py; --help lists the options")
        return remaining
    except UserError as error:
        leave(str(error))
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        leave(" ".join(str(error).split()))


def config_from_flags(program: str, argv: Sequence[str]) -> ConfigDict:
    """The config that `--config=FILE:CHOICES --config.KEY=VALUE ...` describe, checked."""
    words, values = [program, *argv], flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "FILE.py:CHOICES", values, lock_config=True, sys_argv=words)
    refuse_words(parse_flags(words, values))
    config: ConfigDict = values["config"].value
    check(config.to_dict())
    return config


def overrides(config_file: str, config: ConfigDict) -> dict[str, Any]:
    """The values of keys that make a config another experiment than its file does, or name other images or labels.

    Args:
      config_file: the value of --config.
      config: the config after all flags.
    """
    before, after = (
        decisive(plain) | {f"data.{key}": plain["data"][key] for key in ("dir", "labels")}
        for plain in (_load(config_file).to_dict(), config.to_dict())
    )
    return {name: value for name, value in after.items() if value != before.get(name)}


def show_keys(words: Sequence[str]) -> None:
    """Prints every key of the config that a command line names, its default there and its meaning; else nothing."""
    given = [value for _, _, value in _values_of_config(find_configs(words))]
    if given:
        defaults = dict(flatten(_load(given[-1])))
        console.show(f"\nkeys of {given[-1]}, as --config.KEY=VALUE, with their defaults:\n")
        console.show_facts({name: f"{defaults.get(name)!r:<8} {key.comment}" for name, key in KEYS.items()})


def find_file(path: Path) -> Path:
    """The path itself; if there is no such file, the shipped file of that name.

    Args:
      path: of a config or a search space, such as alexnet.py, configs/alexnet.py or configs/sweeps/rates.py.
    """
    if path.exists():
        return path
    name = path.relative_to("configs") if path.is_relative_to("configs") else path
    return next((folder / name for folder in _FOLDERS if folder / name in folder.rglob("*.py")), path)


def find_config(text: str) -> str:
    """The value of a --config flag, FILE.py or FILE.py:CHOICES, with the file that `find_file` finds."""
    path, colon, choices = text.partition(":")
    return f"{find_file(Path(path))}{colon}{choices}" if path else text


def find_configs(words: Sequence[str]) -> list[str]:
    """A command line in which each value of --config names an existing file, if one can be found."""
    found = list(words)
    for index, flag, value in _values_of_config(words):
        found[index] = flag + find_config(value)
    return found


def _values_of_config(words: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Of each value of --config: the index of its word, what stands before it in that word, and the value."""
    for index, word in enumerate(words):
        if flag := re.match(r"--?config=", word):
            yield index, flag[0], word[flag.end() :]
        elif index and re.fullmatch(r"--?config", words[index - 1]):
            yield index, "", word


def expand_words(words: Sequence[str]) -> list[str]:
    """A command line with ~ expanded at the start of a word and of a flag's value; shells leave out the latter."""
    parts = [word.rpartition("=") if word.startswith("--") else ("", "", word) for word in words]
    return [f"{flag}{equals}{expand_home(value)}" for flag, equals, value in parts]


def with_choice(words: Sequence[str], choice: str) -> list[str]:
    """The words of a command line, with one more choice for the config file if `choice` is not empty."""
    return [
        f"{word}{',' if ':' in word else ':'}{choice}" if choice and word.startswith("--config=") else word
        for word in words
    ]


def seeds(text: str) -> tuple[int, ...]:
    """Reads the value of --seeds, such as "0,1,2". Raises ValueError unless it lists different seeds."""
    values = tuple(int(part) for part in text.split(","))
    if len(set(values)) < len(values) or not all(0 <= value < 2**31 for value in values):
        raise ValueError
    return values


def refuse_words(argv: list[str]) -> None:
    """Raises UserError if words of a command line are left once its flags are parsed; the first is the program."""
    if argv[1:]:
        raise UserError(f"unexpected argument {argv[1]!r}; settings are given as --config.KEY=VALUE")


def _check_keys(words: list[str], config_file: str) -> None:
    """Raises UserError for a key that does not exist or has another name now; it names the key probably meant."""
    keys = dict(flatten(_load(config_file)))
    if old := next((key for key in keys if key in RENAMED), None):
        raise UserError(f"--config={config_file}: config.{old} is now called config.{RENAMED[old]}")
    for word in words:
        match = re.match(r"--?(?:no)?config\.([^=]+)", word)
        if match and match[1] not in keys:
            if match[1] in RENAMED:
                raise UserError(f"config.{match[1]} is now called config.{RENAMED[match[1]]}")
            near = nearest(match[1], list(keys))
            hint = f"; did you mean config.{near} ({keys[near]!r})?" if near else ""
            raise UserError(f"unknown key config.{match[1]}{hint}")


def _load(config_file: str) -> ConfigDict:
    """What the get_config of a config file returns. Raises UserError that names the file if it fails."""
    path = Path(config_file.split(":", 1)[0])
    if not path.exists():
        raise UserError(f"--config={config_file}: no such file; there is configs/alexnet.py")
    try:
        config = ConfigFileFlagParser(name="config").parse(config_file)
    except Exception as error:  # a config file is code: anything can happen in it
        # ml_collections gives ValueErrors a traceback for text; its last line is the message.
        message = re.sub(r"^[A-Za-z]+Error: ", "", str(error).strip().rpartition("\n")[2])
        raise UserError(f"--config={config_file}: {message or repr(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={config_file}: get_config() must return a ConfigDict")
    return config
