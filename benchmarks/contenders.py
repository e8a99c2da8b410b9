"""The contenders of the benchmarks: our step and PyTorch's, each run in a process of its own."""

import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from ml_collections import ConfigDict

from alexnet_jax.system.machine import keep_freed_memory, peak_memory_bytes

# Neither JAX nor torch may be imported at the top: a child process inherits the peak memory of its parent (Linux counts
# from the fork), and no contender should load the other's library.

Steps = Callable[[int], object]
"""A function that runs a number of steps and returns once their results are ready."""


class ContenderError(Exception):
    """A contender failed to start or to continue, for the reason in the text."""


class Child:
    """A warmed-up contender in a process of its own. Its methods raise ContenderError if the process fails."""

    def __init__(self, make_steps: Callable[[], Steps], batch_size: int, round_seconds: float) -> None:
        """Starts the process and times one step.

        Args:
          make_steps: creates the contender in the process; must be picklable.
          batch_size: images per step.
          round_seconds: target duration of a round.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make_steps), daemon=True)
        self._process.start()
        theirs.close()  # so that recv() raises EOFError when the child ends
        self._batch_size, self._steps = batch_size, 1
        try:
            rate, _ = self.round()
        except ContenderError:
            self.close()
            raise
        self._steps = max(1, round(round_seconds * rate / batch_size))

    def round(self) -> tuple[float, float]:
        """Runs a round; returns its images/s and the peak memory so far in GB, see `memory_bytes`."""
        try:
            self._connection.send(self._steps)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ContenderError("its process was killed") from error
        if isinstance(answer, str):
            raise ContenderError(answer)
        seconds, gigabytes = answer
        return self._steps * self._batch_size / seconds, gigabytes

    def cpu_seconds(self) -> float:
        """CPU time of the process on all cores, in seconds."""
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """Ends the process, and kills it if it is busy."""
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()


def _serve(connection: Connection, make_steps: Callable[[], Steps]) -> None:
    """Main loop of a contender's process: receives a number of steps, sends their seconds and the memory in GB.

    If an exception occurs, its text is sent and the process ends.
    """
    keep_freed_memory()  # as this project's programs do; PyTorch also gains by it
    end_with_parent()
    try:
        run = make_steps()
        run(3)
        while steps := connection.recv():
            began = time.perf_counter()
            run(steps)
            seconds = time.perf_counter() - began
            connection.send((seconds, memory_bytes() / 1e9))
    except EOFError:
        return  # the parent has closed
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def memory_bytes() -> int:
    """Peak memory so far, of the accelerator that this process computes on, or of the process if on the CPU."""
    if jax := sys.modules.get("jax"):
        statistics = jax.local_devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] if statistics else peak_memory_bytes()
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else peak_memory_bytes()


def end_with_parent() -> None:
    """Makes this process end as soon as its parent does, however that ends; a leftover would hold the device."""
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def spread(values: list[float], form: str) -> str:
    """Formats the median, smallest and largest of some values."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def our_steps(config: ConfigDict, training: bool = True) -> Steps:
    """Creates this project's training steps, or its forward passes in testing."""
    from benchmarks.jax_alexnet import load_steps

    return load_steps(config, training)


def torch_steps(config: ConfigDict, path: Path, training: bool = True, **settings: Any) -> Steps:
    """Creates PyTorch's steps for the network that `save_network` wrote; see `torch_alexnet.load_steps`."""
    from benchmarks.torch_alexnet import load_steps

    return load_steps(config, path, training, **settings)


def save_network(config: ConfigDict, path: Path) -> None:
    """Writes the network as a PyTorch module, so that PyTorch's processes need not load JAX."""
    from benchmarks.torch_alexnet import save_network

    save_network(config, path)
