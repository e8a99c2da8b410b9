"""The configs that ship with the package, found by name: `--config=alexnet.py:digits` works in any folder."""

from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Where they are: in an installed package, and in a checkout."""


def find_file(path: Path) -> Path:
    """The path itself; if nothing is there, the shipped file of that name.

    Args:
      path: of a config or a search space, such as alexnet.py, configs/alexnet.py or configs/sweeps/rates.py.
    """
    if path.exists():
        return path
    name = path.relative_to("configs") if path.is_relative_to("configs") else path
    for folder in _FOLDERS:
        if folder / name in folder.rglob("*.py"):
            return folder / name
    return path


def find_config(text: str) -> str:
    """The value of a --config flag, FILE.py or FILE.py:CHOICES, with the file that `find_file` finds."""
    path, colon, choices = text.partition(":")
    return f"{find_file(Path(path))}{colon}{choices}" if path else text


def find_configs(words: Sequence[str]) -> list[str]:
    """A command line in which each value of --config names a file that is there, if one can be found."""
    found = list(words)
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            found[index] = f"{flag}={find_config(value)}"
        elif index + 1 < len(words):
            found[index + 1] = find_config(words[index + 1])
    return found
