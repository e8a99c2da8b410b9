"""Command-line arguments that the commands on a trained run share."""

import argparse
from pathlib import Path

from alexnet_jax.augment import VIEWS

RUN = "the folder of a run, or a .safetensors file that export made of it"


def run_parser(
    command: str, description: str | None, run: str = RUN, views: bool = False, data: bool = False
) -> argparse.ArgumentParser:
    """A parser of RUN and --checkpoint.

    Args:
      command: its name.
      description: of the command.
      run: what RUN may be.
      views: whether there is --views.
      data: whether there are --data-dir and --prepared-dir.
    """
    parser = argparse.ArgumentParser(prog=f"python -m alexnet_jax {command}", description=description)
    parser.add_argument("run", type=Path, help=run)
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a number of examples seen")
    if views:
        parser.add_argument("--views", type=int, choices=VIEWS, help="views averaged over; as the run's tests")
    if data:
        parser.add_argument("--data-dir", help="where the images are by now, in place of config.data.dir")
        parser.add_argument("--prepared-dir", help="folder of prepared data sets, in place of config.data.prepared_dir")
    return parser
