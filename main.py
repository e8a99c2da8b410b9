"""Trains AlexNet: `python main.py --config=configs/alexnet.py`."""

import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from alexnet_jax.cli.flags import exit_on_user_error, parse_flags, refuse_words

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration: FILE.py or FILE.py:CHOICES.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/ and the name of the config.")


def main(argv: list[str]) -> None:
    """Runs the training that the flags describe and exits with its status."""
    refuse_words(argv)
    logging.set_verbosity(logging.FATAL)  # Orbax logs each error with a page of traceback before it raises it
    from alexnet_jax.train import train_and_evaluate

    source = config_flags.get_config_filename(flags.FLAGS["config"])
    train_and_evaluate(CONFIG.value, WORKDIR.value or default_workdir(source), command=sys.argv)


def default_workdir(config: str) -> str:
    """configs/alexnet.py:digits,smoke -> runs/alexnet-digits-smoke."""
    path, _, choices = config.partition(":")
    return f"runs/{re.sub(r'[^A-Za-z0-9_.]+', '-', f'{Path(path).stem} {choices}'.strip())}"


if __name__ == "__main__":
    app.run(exit_on_user_error(main), flags_parser=parse_flags)
