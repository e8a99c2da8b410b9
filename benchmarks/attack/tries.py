"""Tries against commands: kills and signals, faults of the file system, and damaged files of runs and prepared data."""

import dataclasses
import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.attack import shim
from benchmarks.attack.processes import Ended, Signal, command
from benchmarks.attack.target import TASKS, Products, Target

OUTCOMES = ("clean", "one line", "lost", "silent wrong", "traceback", "hang")
"""The right result; a line that says what is wrong, and nothing lost; and the four outcomes that must not be."""

GOOD = OUTCOMES[:2]

READERS = ("resume", "evaluate", "predict", "report", "audit", "export")
"""The tasks that read a run and its prepared data."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

FIRST = 0.05
"""Seconds until a forked process has reached its command."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a try came to.

    Attributes:
      outcome: one of OUTCOMES.
      about: what was tried.
      output: what the processes printed.
    """

    outcome: str
    about: str
    output: str


def kill(target: Target, number: int, random: np.random.Generator, folder: str) -> Result:
    """Kills a command at a random moment, or sends it SIGTERM or SIGINT; then runs it again, which has to succeed."""
    name = list(TASKS)[number % len(TASKS)]
    undisturbed, sent = target.undisturbed(name), SIGNALS[int(random.integers(len(SIGNALS)))]
    changes, by_clock = undisturbed.count(shim.CHANGES), random.random() < 0.5
    disturbance: shim.Hit | Signal
    if changes and (sent == signal.SIGKILL or not by_clock):
        disturbance = shim.Hit(shim.CHANGES, int(random.integers(1, changes + 1)), signal=sent)
    else:
        disturbance = Signal(sent, random.uniform(FIRST, FIRST + undisturbed.seconds))
    return _disturbed(target, name, disturbance, folder)


def fault(target: Target, number: int, random: np.random.Generator, folder: str) -> Result:
    """Makes a file operation of a command fail, once or from then on; if it fails, it has to succeed when run again."""
    name = list(TASKS)[number % len(TASKS)]
    counts = {code: target.undisturbed(name).count(operations) for code, operations in shim.FAULTS.items()}
    code = int(random.choice([code for code, count in counts.items() if count]))
    at, all_later = int(random.integers(1, counts[code] + 1)), bool(random.random() < 0.5)
    return _disturbed(target, name, shim.Hit(shim.FAULTS[code], at, code, all_later=all_later), folder)


def damage(target: Target, number: int, random: np.random.Generator, folder: str) -> Result:
    """Flips a byte of a file, cuts it or removes it; the command has to work all the same, or to say what is wrong."""
    name = READERS[number % len(READERS)]
    task, copy = TASKS[name], target.copy(TASKS[name].before, folder)
    files = [path for part in ("run", "data") for path in (copy / part).rglob("*") if path.is_file()]
    path = sorted(files, key=_order)[number // len(READERS) % len(files)]
    action = _damage(path, random)
    ended = command(task.words, copy)
    outcome = judge(target.undisturbed(name).products, task.products(copy, ended), [ended])
    return Result(outcome, f"{name}, {path.relative_to(copy)} {action}", _end(ended.output))


def judge(expected: Products, found: Products, ended: Sequence[Ended]) -> str:
    """The outcome of a try.

    Args:
      expected: what the undisturbed command makes.
      found: what the last process has made.
      ended: the processes, in order; the last of several was to recover from what happened to those before.
    """
    last = ended[-1]
    if any(process.status is None for process in ended):
        return "hang"
    if any(process.is_broken for process in ended):
        return "traceback"
    if found == expected:
        return "one line" if any(process.status in (1, 2) for process in ended) else "clean"
    if last.status == 0 and not last.warns:
        return "silent wrong"
    return "one line" if len(ended) == 1 and last.warns else "lost"


def _disturbed(target: Target, name: str, disturbance: shim.Hit | Signal, folder: str) -> Result:
    """Runs a command disturbed, and again unless it succeeds in spite of it."""
    task, copy = TASKS[name], target.copy(TASKS[name].before, folder)
    ended = [command(task.words, copy, disturbance)]
    if ended[0].status != 0:
        ended.append(command(task.words, copy))
    outcome = judge(target.undisturbed(name).products, task.products(copy, ended[-1]), ended)
    return Result(outcome, f"{name}, {disturbance}", "\n-- again --\n".join(_end(process.output) for process in ended))


def _end(output: str, lines: int = 15) -> str:
    """The last lines of an output."""
    return "\n".join(output.splitlines()[-lines:])


def _order(path: Path) -> tuple[str, int]:
    """A key by which files lie in the same order each time: Orbax draws some names."""
    return re.sub(r"[0-9a-f]{32}|\d{10}", "", json.dumps(path.parts)), path.stat().st_size


def _damage(path: Path, random: np.random.Generator) -> str:
    """Damages a file and says how."""
    content = bytearray(path.read_bytes())
    action = random.choice(["flipped", "cut", "removed"], p=[0.7, 0.2, 0.1]) if content else "removed"
    if action == "removed":
        path.unlink()
        return "removed"
    at = int(random.integers(len(content)))
    if action == "cut":
        os.truncate(path, at)
        return f"cut to {at} bytes"
    before, content[at] = content[at], content[at] ^ int(random.integers(1, 256))
    path.write_bytes(content)
    return f"byte {at}: {before} -> {content[at]}"
