"""Many small runs on a CPU: one process a core does more of them in the same time than one process on all cores."""

import os
import subprocess
import sys
from collections.abc import Sequence

import jax

from alexnet_jax.system.machine import available_cores
from alexnet_jax.system.signals import raise_on_sigterm

SMALL = 1_000_000
"""Parameters of a network of which every core may train one."""


def default_count(parameters: int) -> int:
    """A process a core, where the processor trains and the networks are small; else one."""
    return available_cores() if jax.default_backend() == "cpu" and parameters <= SMALL else 1


def run_on_each_core(words: Sequence[str], count: int) -> None:
    """Runs `python -m alexnet_jax WORDS` so many times at once, each on a core; only the first shows its output.

    What they share out among them is for them to see to. A signal to this process reaches all.

    Raises:
      SystemExit: with the status of the first that fails, once all have ended.
    """
    command = [sys.executable, "-m", "alexnet_jax", *words]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    workers = []
    for number in range(count):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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
            if worker.poll() is None:
                worker.terminate()
        for worker in workers:
            worker.wait()
    if failed := next(filter(None, statuses), None):
        raise SystemExit(failed if failed > 0 else 128 - failed)
