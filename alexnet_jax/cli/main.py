"""`alexnet COMMAND` or `python -m alexnet_jax COMMAND`: trains a network, and does all that can be done with a run."""

import importlib
import sys

from alexnet_jax.cli.exits import run_program

COMMANDS = {
    "train": "trains a network, or continues a run",
    "sweep": "which settings train best; many processes and machines can share the work",
    "explain": "where the paper, its source, Caffe and a config differ, and by how much that changes the error",
    "ablate": "what each idea of the paper is worth: the test error without it, all else equal",
    "figure1": "the paper's Figure 1: how much sooner ReLU learns than tanh",
    "prepare": "makes a data set ready to be read fast, and says what is in it",
    "show_batch": "a picture of augmented training images, as the network sees them",
    "verify": "compares every file of a prepared data set with its digest",
    "benchmark": "how fast the training step is here, and what limits it",
    "benchmark_input": "how fast images come to the training step, and what limits them",
    "audit": "checks that a run used every image once an epoch",
    "evaluate": "the error of a run on one of its splits, image by image",
    "predict": "the likeliest classes of your images",
    "explain_prediction": "what a network saw in an image: where it looks, strongest kernels, nearest training images",
    "report": "one page on a run: curves, kernels, predictions, mistakes, neighbours, timing, config",
    "convert": "converts weights of torchvision or Caffe to a run, or a run to such weights",
    "export": "a trained network as one file for other programs, checked against the network",
}


def run() -> None:
    """The program `alexnet`: runs the command that sys.argv names."""
    run_program(main, sys.argv)


def train() -> None:
    """The program main.py: trains."""
    run_program(_train, sys.argv)


def _train(argv: list[str]) -> None:
    from alexnet_jax.cli import train

    train.run(argv[:1], argv[1:])


def main(argv: list[str]) -> None:
    """Runs the command that argv[1] names, with - or _. Without one, or with --help, lists the commands."""
    from absl import logging

    from alexnet_jax.cli.arguments import program
    from alexnet_jax.cli.flags import expand_words

    asked, command = argv[1:] in (["-h"], ["--help"]), "".join(argv[1:2]).replace("-", "_")
    if asked or command not in COMMANDS:
        names = "\n".join(f"  {name:<18} {purpose}" for name, purpose in COMMANDS.items())
        usage = f"usage: {program('COMMAND')} [...]\n\n{names}\n\nThe options of a command: {program('COMMAND --help')}"
        print(usage, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    logging.set_verbosity(logging.FATAL)  # libraries log what is raised or shown anyway
    importlib.import_module(f"alexnet_jax.cli.{command}").main(expand_words(argv[2:]))
