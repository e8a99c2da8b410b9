"""Many small runs on a CPU: one process a core trains more of them in the same time than one process on all cores."""

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from alexnet_jax.cli import flags as flags_lib
from alexnet_jax.experiments.search_space import Settings, apply, flags
from alexnet_jax.experiments.trials import Trial
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.models.summary import summarize
from alexnet_jax.run.run_folder import training_program
from alexnet_jax.system import console
from alexnet_jax.system.machine import available_cores
from alexnet_jax.system.signals import raise_on_sigterm

SMALL = 1_000_000
"""Up to so many parameters a network is small: each core trains one."""


def add_flags(parser: argparse.ArgumentParser, seeds: tuple[int, ...]) -> None:
    """Adds the options that all commands of many runs have."""
    parser.add_argument("--seeds", type=flags_lib.seeds, default=seeds, help="seeds of the runs of each setting: 0,1,2")
    parser.add_argument("--processes", type=int, help="sharing the runs; by default one a core for small networks")
    parser.add_argument("--train-only", action="store_true", help="print and write no results: another process does")


def make_trial(words: Sequence[str], config: ConfigDict, settings: Settings, folder: Path) -> Trial:
    """A run of a config with other settings.

    Args:
      words: of the command line that gave the config.
      config: without the settings.
      settings: values by key.
      folder: of the run.
    """
    command = [*training_program(), *words, *flags(settings), f"--workdir={folder}"]
    return Trial(apply(settings, config), folder, command)


def share_out(
    command: str, argv: Sequence[str], processes: int | None, config: ConfigDict
) -> contextlib.AbstractContextManager[None]:
    """Has several processes train the runs of a command, if that is faster; afterwards all are finished.

    Args:
      command: its name.
      argv: its words.
      processes: how many; None for `default_count`.
      config: of the first network.

    Returns:
      A context for the work after them, in which nothing is printed a second time.
    """
    processes = processes or default_count(config)
    if processes == 1:
        return contextlib.nullcontext()
    run_on_each_core([command, *argv, "--processes=1", "--train-only"], processes)
    return console.muted()


def default_count(config: ConfigDict) -> int:
    """Processes to train with: one a core if the network is small and trained on a CPU; else one."""
    layers = summarize(get_model(config.model, num_classes=1), config.data.crop)
    is_small = sum(layer.parameters for layer in layers) <= SMALL
    return available_cores() if is_small and jax.default_backend() == "cpu" else 1


def run_on_each_core(words: Sequence[str], count: int) -> None:
    """Runs `count` processes of `python -m alexnet_jax WORDS`, each on a core; only the first shows its output.

    They share the work out among themselves. SIGINT and SIGTERM to this process reach all.

    Raises:
      SystemExit: with the exit code of the first that fails, once all have ended.
    """
    command = [sys.executable, "-m", "alexnet_jax", *words]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    environment, workers = {**os.environ, "OMP_NUM_THREADS": "1"}, []
    for number in range(count):
        output = None if number == 0 else subprocess.DEVNULL
        # In a session of its own: what the terminal sends, a worker gets from here, once.
        worker = subprocess.Popen(command, env=environment, stdout=output, start_new_session=True)
        if cores:
            os.sched_setaffinity(worker.pid, {cores[number % len(cores)]})
        workers.append(worker)
    try:
        with raise_on_sigterm():
            statuses = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.terminate()  # without effect if it has ended
        for worker in workers:
            worker.wait()
    if failed := next(filter(None, statuses), None):
        raise SystemExit(failed if failed > 0 else 128 - failed)
