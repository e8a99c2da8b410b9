"""Command-line arguments that several commands share, and what --help prints."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ml_collections import ConfigDict

from alexnet_jax.cli.flags import config_from_flags, show_keys
from alexnet_jax.config_keys import KEYS
from alexnet_jax.system import console
from alexnet_jax.system.files import local_path
from alexnet_jax.system.versions import shell_command

RUN = "the folder of a run, or a .safetensors file that export made of it"

CHECKPOINT_HELP = "latest, best, its examples seen, or by default tested: the best with early stopping, else the latest"

CONFIG = "--config=FILE.py:CHOICES"
"""How a usage line shows that a config must be given."""

CONFIG_HELP = "such as configs/alexnet.py:digits; --config.KEY=VALUE changes a key, and --help then lists all keys"


class _Parser(argparse.ArgumentParser):
    """A parser whose errors name words of the command line, such as names of files, without control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(console.printable(message))


def program_words() -> list[str]:
    """The words that started this process, without "python": "alexnet", or "-m" and "alexnet_jax"."""
    return ["alexnet"] if Path(sys.argv[0]).stem == "alexnet" else ["-m", "alexnet_jax"]


def program(command: str) -> str:
    """The line that starts a command as this process was started: `alexnet NAME` or `python -m alexnet_jax NAME`."""
    return f"{shell_command(program_words())} {command}"


def command_parser(command: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for the command of that name, described by the docstring of its module."""
    return _Parser(prog=program(command), description=_purpose(doc))


def run_parser(
    command: str, doc: str | None, run: str = RUN, checkpoint: bool = True, views: bool = False, data: bool = False
) -> argparse.ArgumentParser:
    """A parser for the commands on a run, with the argument RUN.

    Args:
      command: its name.
      doc: the docstring of its module, which becomes the description.
      run: what RUN may be.
      checkpoint: whether there is --checkpoint.
      views: whether there is --views.
      data: whether there are --data-dir, --prepared-dir and --labels.
    """
    parser = command_parser(command, doc)
    parser.add_argument("run", type=local_path, help=run)
    if checkpoint:
        parser.add_argument("--checkpoint", default="tested", help=CHECKPOINT_HELP)
    if views:
        from alexnet_jax.augment import VIEWS  # here: it imports JAX, which takes seconds

        parser.add_argument("--views", type=int, choices=VIEWS, help="views to average; by default config.test_views")
    if data:
        parser.add_argument("--data-dir", help="folder of the original images, or of new ones")
        default = KEYS["data.prepared_dir"].default
        parser.add_argument("--prepared-dir", help=f"folder of prepared data sets; by default {default}")
        parser.add_argument("--labels", default="", help="of --data-dir: table of labels, outer or inner")
    return parser


def config_parser(program: str, doc: str | None, *usage: str) -> argparse.ArgumentParser:
    """A parser for the commands that take a config, with the argument --config; see `parse`.

    Args:
      program: the words that start the command.
      doc: the docstring of its module, which becomes the description.
      usage: the words of its usage line, between `program` and the keys of the config.
    """
    line = " ".join([program, *usage, "[--config.KEY=VALUE ...]"])
    parser = _Parser(program, line, _purpose(doc), allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.py:CHOICES", help=CONFIG_HELP)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a `config_parser`, and the words that are left: --config and keys of it.

    Raises SystemExit after --help, which lists the keys of the config if there is one.
    """
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        show_keys(argv)
        raise SystemExit(0)
    options, words = parser.parse_known_args(argv)
    return options, words if options.config is None else [f"--config={options.config}", *words]


def parse_config(command: str, doc: str | None, argv: Sequence[str]) -> ConfigDict:
    """The config of a command that takes nothing but a config, checked."""
    _, words = parse(config_parser(program(command), doc, CONFIG), argv)
    return config_from_flags(command, words)


def _purpose(doc: str | None) -> str:
    """The docstring of a command's module without the command line that it begins with."""
    return (doc or "").partition("`: ")[2]
