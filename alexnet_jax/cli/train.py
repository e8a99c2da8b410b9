"""`alexnet train --config=FILE:CHOICES`: trains a network, or continues a run; main.py does the same."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from alexnet_jax.cli import arguments
from alexnet_jax.cli.exits import exit_on_user_error
from alexnet_jax.cli.flags import parse_flags, refuse_words
from alexnet_jax.system.versions import shell_command

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration: FILE.py or FILE.py:CHOICES.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/ and the name of the config.")


def main(words: list[str]) -> None:
    """Trains, as `alexnet train` or `python -m alexnet_jax train`."""
    run([*arguments.program_words(), "train"], words)


def run(program: Sequence[str], words: Sequence[str]) -> None:
    """Trains as a command line says, or prints its help.

    Args:
      program: its first words as the run records them, such as "main.py", or "alexnet", "train".
      words: the flags that follow.
    """
    if "--help" in words or "-h" in words:
        exit_on_user_error(functools.partial(_help, program))(list(words))
    train = exit_on_user_error(functools.partial(_train, command=[*program, *words]))
    app.run(train, [program[-1], *words], flags_parser=parse_flags)


def _help(program: Sequence[str], words: list[str]) -> None:
    """Prints the usage, the options, and the keys of a config if there is one; ends the program."""
    parser = arguments.config_parser(shell_command(program), __doc__, arguments.CONFIG, "[--workdir=FOLDER]")
    parser.add_argument("--workdir", metavar="FOLDER", help="of the run; by default runs/ and the name of the config")
    parser.add_argument("--helpfull", action="store_true", help="list the flags of all libraries, too")
    arguments.parse(parser, words)


def _train(argv: list[str], command: list[str]) -> None:
    refuse_words(argv)
    logging.set_verbosity(logging.FATAL)  # Orbax logs each error with a page of traceback before it raises it
    from alexnet_jax.train import train_and_evaluate

    source = config_flags.get_config_filename(flags.FLAGS["config"])
    train_and_evaluate(CONFIG.value, WORKDIR.value or default_workdir(source), command)


def default_workdir(config: str) -> str:
    """The folder of a run for the value of --config: configs/alexnet.py:digits -> runs/alexnet-digits."""
    path, _, choices = config.partition(":")
    return f"runs/{re.sub(r'[^A-Za-z0-9_.]+', '-', f'{Path(path).stem} {choices}'.strip())}"
