"""A standing attack on all that reads or writes files: no try may end wrong in silence, in a traceback or a hang.

    python -m benchmarks.attack --tries=1000
    python -m benchmarks.attack --only=fault:17

Kinds of tries, each reproducible by its kind and number:

  kill     a command is killed, or gets SIGTERM or SIGINT, before a file operation or at a time; then the same command
           has to make what an undisturbed one makes, bit for bit
  fault    a file operation of a command fails (ENOSPC, EIO, EXDEV, EMFILE), once or from then on; the same
  damage   a byte of a file of a run or of its prepared data is flipped, or the file is cut or removed; then a command
           reads them: it makes what it should, or says what is wrong
  image    an image file is mutated and decoded
  weights  a file of weights is mutated and read
  labels   a table of labels is mutated and read

Faults, and kills before a file operation, need a C compiler named cc. Writes a table and results/attack.json.
"""

import argparse
import collections
import dataclasses
import hashlib
import importlib
import json
import multiprocessing.connection
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from alexnet_jax.cli.main import COMMANDS
from alexnet_jax.experiments.results import write_results
from alexnet_jax.inference import report_figures
from alexnet_jax.system.files import write_bytes
from alexnet_jax.system.machine import available_cores
from benchmarks import tables
from benchmarks.attack import mutations, shim, tries
from benchmarks.attack.processes import FORK
from benchmarks.attack.target import TASKS, Target
from benchmarks.attack.tries import GOOD, OUTCOMES, READERS, Result

KINDS = {
    "kill": tries.kill,
    "fault": tries.fault,
    "damage": tries.damage,
    "image": mutations.image,
    "weights": mutations.weights,
    "labels": mutations.labels,
}

FOLDER = "ATTACK_FOLDER"
"""The environment variable with the folder of the attack, in the process that attacks."""


def main() -> None:
    """Prints the bad tries and a table; exits with status 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas; by default all")
    parser.add_argument("--tries", type=int, default=30, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first try, to make them in parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=available_cores(), help="tries at the same time")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="does one try, prints its output and keeps its folder")
    parser.add_argument("--output", type=Path, default=Path("results/attack.json"))
    options = parser.parse_args()
    if FOLDER not in os.environ:
        _restart(Path(tempfile.mkdtemp(prefix="attack")))
    folder = Path(os.environ[FOLDER])
    _import_all()
    _draw_once(folder / "figures")
    target = Target(folder, has_shim="LD_PRELOAD" in os.environ)
    if options.only:
        kind, _, number = options.only.partition(":")
        result = _try(target, kind, int(number), options.seed)
        sys.exit(f"{result.output}\n{options.only}: {result.outcome}: {result.about}; its files lie in {folder}")
    kinds = [kind for kind in options.kinds.split(",") if target.has_shim or kind != "fault"]
    results = {kind: _attack(target, kind, options) for kind in kinds}
    shutil.rmtree(folder)
    _write(results, options)
    sys.exit(any(result.outcome not in GOOD for found in results.values() for result in found))


def _restart(folder: Path) -> NoReturn:
    """Starts this program again with the environment of an attack."""
    library = shim.build(folder)
    if library is None:
        print("no C compiler named cc: no faults, and no kills before a file operation", flush=True)
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),  # or that of the caller
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
        **({} if library is None else {"LD_PRELOAD": str(library)}),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        FOLDER: str(folder),
    }
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks.attack", *sys.argv[1:]], environment)


def _import_all() -> None:
    """Imports what commands import, so that forked processes need not."""
    for name in (*(f"alexnet_jax.cli.{command}" for command in COMMANDS), "alexnet_jax.train"):
        importlib.import_module(name)
    for name in ("matplotlib.pyplot", "onnx", "optuna", "pi_heif", "tensorboardX"):
        importlib.import_module(name)


def _draw_once(folder: Path) -> None:
    """Makes reports take figures of the same data from a folder: drawing is most of their work and touches no files."""
    folder.mkdir()
    draw_and_encode = report_figures.render

    def render(draw: Callable[..., None], data: tuple[Any, ...], theme: str) -> bytes:
        path = folder / hashlib.sha256(pickle.dumps((draw.__name__, data, theme))).hexdigest()
        if not path.exists():
            write_bytes(path, draw_and_encode(draw, data, theme))
        return path.read_bytes()

    report_figures.render = render


def _attack(target: Target, kind: str, options: argparse.Namespace) -> list[Result]:
    """Does all tries of a kind, several at a time, and prints the bad ones."""
    for name in {"kill": TASKS, "fault": TASKS, "damage": READERS}.get(kind, ()):
        target.undisturbed(name)  # here: what a forked process finds out is lost
    running: dict[Any, tuple[int, Any]] = {}
    found: dict[int, Result] = {}
    waiting = collections.deque(range(options.first, options.first + options.tries))
    while waiting or running:
        while waiting and len(running) < options.workers:
            number = waiting.popleft()
            process = FORK.Process(target=_try_and_write, args=(target, kind, number, options.seed))
            process.start()
            running[process.sentinel] = number, process
        for sentinel in multiprocessing.connection.wait(list(running)):
            number, process = running.pop(sentinel)
            process.join()
            found[number] = Result(**json.loads((target.folder / f"{kind}{number}.json").read_text()))
            if found[number].outcome not in GOOD:
                print(f"{kind}:{number} {found[number].outcome}: {found[number].about}", flush=True)
                print("\n".join(f"    {line}" for line in found[number].output.splitlines()), flush=True)
    return [found[number] for number in sorted(found)]


def _try(target: Target, kind: str, number: int, seed: int) -> Result:
    random = np.random.default_rng([seed, *kind.encode(), number])
    return KINDS[kind](target, number, random, f"{kind}{number}")


def _try_and_write(target: Target, kind: str, number: int, seed: int) -> None:
    """Does a try in a process of its own, and removes its files."""
    result = _try(target, kind, number, seed)
    for path in target.folder.glob(f"{kind}{number}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (target.folder / f"{kind}{number}.json").write_text(json.dumps(dataclasses.asdict(result)))


def _write(results: Mapping[str, Sequence[Result]], options: argparse.Namespace) -> None:
    """Writes and prints the outcomes of each kind; writes the bad tries with the commands that do them again."""
    command = ["-m", "benchmarks.attack", f"--tries={options.tries}", f"--seed={options.seed}"]
    if options.first:
        command.append(f"--first={options.first}")
    if options.kinds != ",".join(KINDS):
        command.append(f"--kinds={options.kinds}")
    outcomes = {kind: collections.Counter(result.outcome for result in found) for kind, found in results.items()}
    kinds = {
        kind: {"tries": counts.total(), **{outcome: counts[outcome] for outcome in OUTCOMES}}
        for kind, counts in outcomes.items()
    }
    bad = [
        {"try": result.about, "outcome": result.outcome, "again": f"--only={kind}:{number} --seed={options.seed}"}
        for kind, found in results.items()
        for number, result in enumerate(found, start=options.first)
        if result.outcome not in GOOD
    ]
    outcome = {"kinds": kinds, "bad": bad}
    write_results(options.output, command, "60 images of 3 classes", [options.seed], outcome)
    print("\n".join(tables.attack(outcome)))


if __name__ == "__main__":
    main()
