"""`alexnet train --config=FILE:CHOICES`: trains a network, as `python main.py --config=FILE:CHOICES` does."""

import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from alexnet_jax.cli.flags import exit_on_user_error, parse_flags, refuse_words
from alexnet_jax.system.versions import shell_command

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration: FILE.py or FILE.py:CHOICES.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/ and the name of the config.")

HELP = """usage: {command} --config=FILE.py:CHOICES [--workdir=FOLDER] [--config.KEY=VALUE ...]

  --config      a configuration, such as configs/alexnet.py:digits; that file says what choices there are
  --workdir     folder of the run; by default runs/ and the name of the config
  --config.KEY  another value of a key of the configuration, such as --config.epochs=10
  --helpfull    lists the flags of all libraries, too
"""


def main(words: list[str]) -> None:
    """Runs `alexnet train WORDS` or `python -m alexnet_jax train WORDS`."""
    is_console_command = Path(sys.argv[0]).stem == "alexnet"
    run([*(["alexnet"] if is_console_command else ["-m", "alexnet_jax"]), "train"], words)


def run(program: Sequence[str], words: Sequence[str]) -> None:
    """Trains as a command line says.

    Args:
      program: its first words as the run records them, such as "main.py", or "alexnet", "train".
      words: the flags that follow.
    """
    if "--help" in words or "-h" in words:
        print(HELP.format(command=shell_command(program)), end="")
        return
    train = exit_on_user_error(functools.partial(_train, command=[*program, *words]))
    app.run(train, [program[-1], *words], flags_parser=parse_flags)


def _train(argv: list[str], command: list[str]) -> None:
    refuse_words(argv)
    logging.set_verbosity(logging.FATAL)  # Orbax logs each error with a page of traceback before it raises it
    from alexnet_jax.train import train_and_evaluate

    source = config_flags.get_config_filename(flags.FLAGS["config"])
    train_and_evaluate(CONFIG.value, WORKDIR.value or default_workdir(source), command)


def default_workdir(config: str) -> str:
    """configs/alexnet.py:digits,smoke -> runs/alexnet-digits-smoke."""
    path, _, choices = config.partition(":")
    return f"runs/{re.sub(r'[^A-Za-z0-9_.]+', '-', f'{Path(path).stem} {choices}'.strip())}"
