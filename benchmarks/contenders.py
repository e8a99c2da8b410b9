"""Who is timed: our step and PyTorch's, as functions that do so many steps, each in a process of its own."""

import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from ml_collections import ConfigDict

from alexnet_jax.system.machine import peak_memory_bytes

# Nothing at the top may import JAX or torch: a process that starts others lends them its own peak memory (Linux counts
# from the fork on), and neither contender should hold the other's library.

Steps = Callable[[int], object]
"""Does so many steps and returns when their results are there."""


class ContenderError(Exception):
    """A contender could not start or go on, for the reason in the text."""


class Child:
    """A contender in a process of its own, warmed up. Raises ContenderError, from `round` too."""

    def __init__(self, make_steps: Callable[[], Steps], batch_size: int, round_seconds: float) -> None:
        """Starts it.

        Args:
          make_steps: called in the process; something that can be pickled.
          batch_size: images a step.
          round_seconds: how long a round is to take.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make_steps), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the child ends the wait for its answer
        self._batch_size, self._steps = batch_size, 1
        try:
            rate, _ = self.round()
        except ContenderError:
            self.close()
            raise
        self._steps = max(1, round(round_seconds * rate / batch_size))

    def round(self) -> tuple[float, float]:
        """Images/s of a round, and the process' peak memory so far in GB."""
        try:
            self._connection.send(self._steps)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ContenderError("its process was ended") from error
        if isinstance(answer, str):
            raise ContenderError(answer)
        seconds, gigabytes = answer
        return self._steps * self._batch_size / seconds, gigabytes

    def cpu_seconds(self) -> float:
        """Time that the process has spent on all cores."""
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """Ends the process, by force if it is busy."""
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()


def _serve(connection: Connection, make_steps: Callable[[], Steps]) -> None:
    """Compiles, warms up, and answers each number of steps with their seconds and the peak memory in GB.

    An exception is answered with its text and ends the process.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run = make_steps()
        run(3)
        while steps := connection.recv():
            began = time.perf_counter()
            run(steps)
            seconds = time.perf_counter() - began
            connection.send((seconds, peak_memory_bytes() / 1e9))
    except EOFError:
        return  # the parent has closed
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """Ends this process when its parent ends, whatever it is doing then."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def spread(values: list[float], form: str) -> str:
    """The median with the smallest and the largest value."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def our_steps(config: ConfigDict, training: bool = True) -> Steps:
    """Training steps, or forward passes in testing, of this project."""
    from benchmarks.jax_alexnet import load_steps

    return load_steps(config, training)


def torch_steps(config: ConfigDict, path: Path, training: bool = True, **settings: Any) -> Steps:
    """The same in PyTorch, of the network that `save_network` left; see `torch_alexnet.load_steps` for settings."""
    from benchmarks.torch_alexnet import load_steps

    return load_steps(config, path, training, **settings)


def save_network(config: ConfigDict, path: Path) -> None:
    """Leaves the network in PyTorch, so that the peers need no JAX."""
    from benchmarks.torch_alexnet import save_network

    save_network(config, path)
