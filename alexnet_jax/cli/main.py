"""`alexnet COMMAND` or `python -m alexnet_jax COMMAND`: trains a network, and does all that can be done with a run."""

import importlib
import sys

from absl import logging

from alexnet_jax.cli.arguments import program
from alexnet_jax.cli.flags import exit_on_user_error

COMMANDS = {
    "train": "trains a network, or continues a run",
    "sweep": "which settings train best; many processes and machines can share the work",
    "explain": "where the paper, its source, Caffe and a config differ, and by how much that changes the error",
    "ablate": "what each idea of the paper is worth: the test error without it, all else equal",
    "figure1": "the paper's Figure 1: how much sooner ReLU learns than tanh",
    "prepare": "makes a data set ready to be read fast, and says what is in it",
    "show_batch": "a picture of augmented training images, as the network sees them",
    "benchmark": "how fast the training step is here, and what limits it",
    "benchmark_input": "how fast images come to the training step, and what limits them",
    "audit": "checks that a run used every image once an epoch",
    "evaluate": "the error of a run on one of its splits, image by image",
    "predict": "the likeliest classes of your images",
    "report": "one page on a run: curves, kernels, predictions, mistakes, neighbours, timing, config",
    "convert": "converts weights of torchvision or Caffe to a run, or a run to such weights",
    "export": "a trained network as one file for other programs, checked against the network",
}


def run() -> None:
    """The program `alexnet`: runs the command that sys.argv names."""
    exit_on_user_error(main)(sys.argv)


def main(argv: list[str]) -> None:
    """Runs the command that argv[1] names, with - or _; without one, or with --help, lists the commands."""
    command = argv[1].replace("-", "_") if len(argv) > 1 else ""
    if command not in COMMANDS:
        print(f"usage: {program('COMMAND')} [...]\n", file=sys.stderr)
        for name, purpose in COMMANDS.items():
            print(f"  {name:<16} {purpose}", file=sys.stderr)
        print(f"\nThe options of a command: {program('COMMAND --help')}", file=sys.stderr)
        sys.exit(0 if argv[1:] in (["-h"], ["--help"]) else 2)
    logging.set_verbosity(logging.FATAL)  # libraries log what is raised or shown anyway
    importlib.import_module(f"alexnet_jax.cli.{command}").main(argv[2:])
