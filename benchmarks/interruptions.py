"""Kills training at random moments, resumes it, and compares the result with that of an undisturbed run.

    python -m benchmarks.interruptions --trials 30

Each trial runs `python main.py` on synthetic images, which it prepares itself. It is killed by SIGKILL at a moment of
one of five kinds: at the start, while preparing images, in a step, in an evaluation, during a save. The same command
resumes the run, may be killed again, and finally finishes. Parameters and velocity of the last checkpoint, and
metrics.jsonl, must be bit-for-bit those of the undisturbed run. What a kill really hit is inferred from the files left
behind; it may be two things, as saving runs in parallel with steps and evaluations.
"""

import argparse
import collections
import dataclasses
import hashlib
import operator
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alexnet_jax.checkpoint import checkpoint_names, restore
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.run_plan import RunPlan
from configs import alexnet

KINDS = {"start": 4.0, "preparing": 0.4, "step": 0.03, "evaluation": 0.15, "save": 0.02}
"""The kinds of moments, each with the maximum of a random delay in seconds once the process has reached it."""


@dataclasses.dataclass(frozen=True)
class Stop:
    """A signal to a process: the intended kind of moment, what it hit, and how the process ended."""

    kind: str
    hit: tuple[str, ...]
    epoch: float
    after_seconds: float  # from the start of the process
    ended_in_seconds: float  # from the signal
    status: int

    def __str__(self) -> str:
        hit = "" if self.hit == (self.kind,) else f", hit {' and '.join(self.hit)}"
        return f"{self.kind} (after {self.after_seconds:.2f} s, epoch {self.epoch:.2f}{hit})"


@dataclasses.dataclass(frozen=True)
class Trial:
    """The result of a trial: its kills, the epochs reached, and the differences from the undisturbed run."""

    stops: list[Stop]
    epochs: float
    differences: list[str]

    def __str__(self) -> str:
        end = f"DIFFERENT: {', '.join(self.differences)}" if self.differences else "equal"
        return f"{'; '.join(map(str, self.stops))}; {self.epochs:.2f} epochs reached, {end}"


class Run:
    """A training run in a folder of its own, observed from outside."""

    def __init__(self, folder: Path, compiled: Path, examples: int):
        self.folder, self.workdir, self.checkpoints = folder, folder / "run", folder / "run" / "checkpoints"
        settings: dict[str, Any] = {
            "data.prepared_dir": str(folder / "data"),
            "data.synthetic_examples": examples,
            "epochs": 4.0,
            "batch_size": 64,
            "eval_batch_size": 4,  # many steps, so that an evaluation lasts long enough to be hit
            "log_every_steps": 1,
            "checkpoint.every_steps": 7,
            "optimizer.patience": 1,  # the learning rate drops during the run
        }
        config = alexnet.get_config("synthetic,lenet")
        config.update_from_flattened_dict(settings)
        self.plan = RunPlan.create(config, examples, num_shards=1)
        words = [f"--config.{key}={value}" for key, value in settings.items()]
        self._command = [sys.executable, "main.py", "--config=configs/alexnet.py:synthetic,lenet", *words]
        self._command.append(f"--workdir={self.workdir}")
        cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        # NPROC: jax 0.10.2 deadlocks in collectives of virtual devices on few cores.
        self._environment = {**cache, **os.environ, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
        folder.mkdir(parents=True)

    def interrupt(self, kind: str, random: np.random.Generator, number: signal.Signals = signal.SIGKILL) -> Stop:
        """Starts or resumes the run and sends it a signal at a moment of a kind; it may have ended before that."""
        self._marks_before, self._begins_at = self._marks(), max([0, *checkpoint_names(self.checkpoints)])
        position = self._begins_at + random.uniform(0, 0.7) * (self.plan.total_examples - self._begins_at)
        process, began = self._start(), time.monotonic()
        while process.poll() is None and not (
            kind in self._doing() and (kind in ("start", "preparing") or self._last_record()[1] >= position)
        ):
            time.sleep(0.0005)
        time.sleep(random.uniform(0, KINDS[kind]))
        sent = time.monotonic()
        process.send_signal(number)
        status = process.wait(timeout=600)
        hit = self._doing() if status else ("nothing",)
        return Stop(kind, hit, self.epochs(), sent - began, time.monotonic() - sent, status)

    def finish(self) -> int:
        """Starts or resumes the run, waits for its end and returns the exit status."""
        return self._start().wait(timeout=600)

    def outcome(self) -> dict[str, str]:
        """SHA-256 digests of the final parameters, velocity and metrics."""
        tree = restore(self.checkpoints, checkpoint_names(self.checkpoints)[-1]).tree
        leaves = jax.tree.leaves({name: tree[name] for name in ("params", "velocity")})
        contents = {
            "parameters and velocity": b"".join(np.asarray(leaf).tobytes() for leaf in leaves),
            "metrics.jsonl": (self.workdir / "metrics.jsonl").read_bytes(),
        }
        return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}

    def epochs(self) -> float:
        """The epochs that are recorded."""
        return self.plan.epoch(self._last_record()[1])

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log.txt").open("ab") as log:
            repository = Path(__file__).parent.parent
            return subprocess.Popen(self._command, cwd=repository, env=self._environment, stdout=log, stderr=log)

    def _doing(self) -> tuple[str, ...]:
        """What the process is doing, or was doing when it ended, according to its files."""
        has_locked, has_opened_record = map(operator.ne, self._marks(), self._marks_before)
        if has_locked and list(self.folder.glob("data/*.partial")):
            return ("preparing",)
        kind, position = self._last_record()
        if not has_opened_record or position <= self._begins_at:
            return ("start",)
        # An evaluation runs if the last record is the step before it, or the last epoch, which the test follows.
        is_last = kind == "epoch" and position >= self.plan.total_examples
        is_evaluating = is_last or (kind == "step" and self.plan.is_evaluation(position))
        # Incomplete checkpoints of earlier processes were removed before the first step.
        is_saving = bool(list(self.checkpoints.glob("*tmp*")))
        return ("evaluation" if is_evaluating else "step", *["save"] * is_saving)

    def _marks(self) -> tuple[list[int], list[int]]:
        """Time stamps and inodes that change when a process starts to prepare, and when it has restored the run."""
        locks, records = self.folder.glob("data/*.lock"), self.workdir.glob("metrics.jsonl")
        return [path.stat().st_mtime_ns for path in locks], [path.stat().st_ino for path in records]

    def _last_record(self) -> tuple[str, int]:
        """Kind and position (examples seen) of the last record in metrics.jsonl."""
        record = [{"kind": "none", "examples_seen": 0}, *read_metrics(self.workdir)][-1]
        return record["kind"], record["examples_seen"]


def fuzz(
    trials: int, kills: int, seed: int, folder: Path, kinds: Sequence[str] = tuple(KINDS), examples: int = 3001
) -> list[Trial]:
    """Runs and prints trials, and keeps the folders of runs that differ from the undisturbed one.

    Args:
      trials: number of trials.
      kills: most kills in a trial; the kind of the first one cycles through `kinds`.
      seed: seed of the random moments.
      folder: where the runs are made.
      kinds: the kinds of moments to kill at.
      examples: number of synthetic images.
    """
    undisturbed = Run(folder / "undisturbed", folder / "compiled", examples)
    if undisturbed.finish():
        raise RuntimeError((undisturbed.folder / "log.txt").read_text())
    expected, random, results = undisturbed.outcome(), np.random.default_rng(seed), []
    for number in range(trials):
        run, stops = Run(folder / f"trial{number + 1}", folder / "compiled", examples), list[Stop]()
        for kill in range(random.integers(1, kills, endpoint=True)):
            possible = [kind for kind in kinds if kind != "preparing" or not run.workdir.exists()]
            stops.append(run.interrupt(random.choice(possible) if kill else kinds[number % len(kinds)], random))
        statuses = [stop.status for stop in stops if stop.status not in (-signal.SIGKILL, 0)] + [run.finish()]
        differences = [f"exit status {status}" for status in statuses if status]
        if not differences:
            found = run.outcome()
            differences = [name for name in expected if found[name] != expected[name]]
        results.append(Trial(stops, run.epochs(), differences))
        print(f"{number + 1:3}. {results[-1]}", flush=True)
        if not differences:
            shutil.rmtree(run.folder)
    return results


def summarize(results: Sequence[Trial]) -> str:
    """A summary: the number of equal runs, and how often each kind of moment was hit."""
    equal = sum(not trial.differences for trial in results)
    stops = [stop for trial in results for stop in trial.stops]
    hits = collections.Counter(kind for stop in stops for kind in stop.hit)
    counts = ", ".join(f"{kind} {count}" for kind, count in hits.most_common())
    return f"{equal} of {len(results)} runs equal the undisturbed one\n{len(stops)} kills hit: {counts}"


def main() -> None:
    """Prints a line per trial and a summary; exits with status 1 if a run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--kills", type=int, default=2, help="most kills in a trial")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="interruptions"))
    results = fuzz(options.trials, options.kills, options.seed, folder)
    print(summarize(results))
    if any(trial.differences for trial in results):
        sys.exit(f"the runs that differ are kept in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
