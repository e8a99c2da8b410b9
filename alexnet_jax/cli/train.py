"""`alexnet train --config=FILE:CHOICES`: trains a network, or continues a run; main.py does the same."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from alexnet_jax.cli import arguments
from alexnet_jax.cli.exits import exit_on_user_error
from alexnet_jax.cli.flags import expand_words, overrides, parse_flags, refuse_words
from alexnet_jax.config import check
from alexnet_jax.system.versions import shell_command

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration: FILE.py or FILE.py:CHOICES.", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default runs/ and the name of config and changes."
)

LONGEST = 60
"""Characters of the changed keys in the name of a default folder."""


def main(words: list[str]) -> None:
    """Trains, as `alexnet train` or `python -m alexnet_jax train`."""
    run([*arguments.program_words(), "train"], words)


def run(program: Sequence[str], words: Sequence[str]) -> None:
    """Trains as a command line says, or prints its help.

    Args:
      program: its first words as the run records them, such as "main.py", or "alexnet", "train".
      words: the flags that follow.
    """
    words = expand_words(words)
    if "--help" in words or "-h" in words:
        exit_on_user_error(functools.partial(_help, program))(list(words))
    train = exit_on_user_error(functools.partial(_train, command=[*program, *words]))
    app.run(train, [program[-1], *words], flags_parser=parse_flags)


def _help(program: Sequence[str], words: list[str]) -> None:
    """Prints the usage, the options, and the keys of a config if there is one; ends the program."""
    parser = arguments.config_parser(shell_command(program), __doc__, arguments.CONFIG, "[--workdir=FOLDER]")
    parser.add_argument(
        "--workdir", metavar="FOLDER", help="of the run; by default runs/ and the name of config and changes"
    )
    parser.add_argument("--helpfull", action="store_true", help="list the flags of all libraries, too")
    arguments.parse(parser, words)


def _train(argv: list[str], command: list[str]) -> None:
    refuse_words(argv)
    logging.set_verbosity(logging.FATAL)  # Orbax logs each error with a page of traceback before it raises it
    from alexnet_jax.train import train_and_evaluate

    source, config = config_flags.get_config_filename(flags.FLAGS["config"]), CONFIG.value
    check(config.to_dict())
    workdir = WORKDIR.value or default_workdir(source, overrides(source, config))
    train_and_evaluate(config, workdir, command)


def default_workdir(config: str, changes: Mapping[str, Any]) -> str:
    """The folder of a run: runs/alexnet-digits-seed=1 for configs/alexnet.py:digits with --config.seed=1.

    Args:
      config: the value of --config.
      changes: keys of another value, see `flags.overrides`; where they would make a long name, it has their digest.
    """
    path, _, choices = config.partition(":")
    words = [
        Path(value).name if key == "data.dir" else f"{key.split('.')[-1]}={value}" for key, value in changes.items()
    ]
    if len(" ".join(words)) > LONGEST:
        words = [hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]]
    return f"runs/{re.sub(r'[^A-Za-z0-9_.=]+', '-', ' '.join([Path(path).stem, choices, *words])).strip('-')}"
