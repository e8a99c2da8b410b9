"""Commands in processes forked from one that has imported everything: how they are disturbed, and how they end."""

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from alexnet_jax.cli import main as program
from benchmarks.attack import shim

FORK = multiprocessing.get_context("fork")

LIMIT = 60.0
"""Seconds after which a process counts as hanging."""

ENDS = (0, 1, 2, 130, 141, 143, -signal.SIGKILL, -signal.SIGTERM)
"""Exit codes that are in order: done, errors of the run and of the user, SIGINT, a closed pipe, SIGTERM, and kills."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
      status: its exit code; minus the signal that it died of; None if it hung.
      output: what it printed.
      seconds: how long it took.
    """

    status: int | None
    output: str
    seconds: float

    @property
    def is_broken(self) -> bool:
        """Whether it showed a traceback, crashed, or failed without a line that says why."""
        is_silent = self.status in (1, 2) and not self.warns
        return "Traceback (most recent call last)" in self.output or is_silent or self.status not in (None, *ENDS)

    @property
    def warns(self) -> bool:
        """Whether it said in a line that something is wrong."""
        return any(line.startswith(("warning:", "error:", "skipped:")) for line in self.output.splitlines())


@dataclasses.dataclass(frozen=True)
class Signal:
    """A signal to a process so many seconds after its start."""

    number: signal.Signals
    after: float

    def __str__(self) -> str:
        return f"{self.number.name} after {self.after:.2f} s"


def command(words: Sequence[str], folder: Path, disturbance: shim.Hit | Signal | None = None) -> Ended:
    """Runs `alexnet WORDS` in a folder.

    Args:
      words: the command and its arguments.
      folder: the current folder of the process; the file operations below it may be hit.
      disturbance: what happens to it.
    """

    counts = folder.with_suffix(".counts")

    def act() -> None:
        os.chdir(folder)
        sys.argv = ["alexnet", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what is in the background without it
        if isinstance(disturbance, shim.Hit):
            shim.arm(folder, disturbance)
        try:
            program.run()
        finally:
            if disturbance == shim.COUNT:
                counts.write_text(json.dumps(shim.seen()))

    return forked(act, folder.with_suffix(".log"), disturbance if isinstance(disturbance, Signal) else None)


def forked(act: Callable[[], None], log: Path, disturbance: Signal | None = None, limit: float = LIMIT) -> Ended:
    """Runs a function in a forked process, which leads a group of its own, and kills the group if it hangs."""

    def redirected() -> None:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        act()

    process, began = FORK.Process(target=redirected), time.monotonic()
    process.start()
    assert process.pid is not None
    if disturbance:
        process.join(disturbance.after)
        if process.is_alive():
            os.kill(process.pid, disturbance.number)
    process.join(limit)
    status = process.exitcode
    if status is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return Ended(status, log.read_text(errors="replace"), time.monotonic() - began)
