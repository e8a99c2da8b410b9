"""How often each full-size preset starts to learn, on CIFAR-10 enlarged to 256 pixels; prints Markdown.

    python -m benchmarks.starting --data-dir=cifar10

cifar10 holds train/CLASS/*.jpg and test/CLASS/*.jpg. A run differs from the preset only in its batch size and, with
--learning-rate, in its learning rate, which then is the same at every step; it ends once it has started
(alexnet_jax/diagnosis/start_watch.py) or after --steps. results/starting.json is written after each run; runs that it
already holds are not repeated.
"""

import argparse
import contextlib
import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.diagnosis.start_watch import StartWatch
from alexnet_jax.experiment import open_experiment
from alexnet_jax.experiments.results import write_results
from alexnet_jax.system import console
from alexnet_jax.system.machine import processor_name
from configs import alexnet

FULL_SIZE = ("source", "paper", "caffe", "caffenet", "single_tower", "owt", "bn", "modern")
PRESETS = tuple(preset for preset in FULL_SIZE if preset in alexnet.PRESETS)
IMAGES_A_CLASS = {"train": 200, "test": 5}

BUDGET = ("steps", "batch", "learning_rate")

Run = dict[str, Any]
"""preset, seed, steps allowed, batch, learning_rate (None for the preset's), started_at (step or None), mean_loss at the
end, seconds, processor."""


def main(argv: Sequence[str] | None = None) -> None:
    """Does the missing runs, then prints a row for each preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as a folder")
    parser.add_argument("--prepared-dir", default="data", help="folder of prepared data sets")
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--seeds", type=int, help="seeds of each preset; by default 3, and 5 of source")
    parser.add_argument("--steps", type=int, default=150, help="steps within which a run must start")
    parser.add_argument("--batch", type=int, default=32, help="images per step; small for a CPU, papers use 128 or 256")
    parser.add_argument("--learning-rate", type=float, help="by default the preset's")
    parser.add_argument("--output", type=Path, default=Path("results/starting.json"))
    options = parser.parse_args(argv)
    folder = _subset(options.data_dir, Path(options.prepared_dir) / "starting")
    before: list[Run] = json.loads(options.output.read_text())["results"]["runs"] if options.output.exists() else []
    runs = [{"learning_rate": None, **run} for run in before]
    budget = {"steps": options.steps, "batch": options.batch, "learning_rate": options.learning_rate}
    print(f"batches of {options.batch}, {options.steps} steps at most, {IMAGES_A_CLASS['train']} images per class")
    for preset in options.presets:
        for seed in range(options.seeds or (5 if preset == "source" else 3)):
            about = {"preset": preset, "seed": seed, **budget}
            if not any(about.items() <= run.items() for run in runs):
                runs.append({**about, **start(_config(folder, options.prepared_dir, about), options.steps)})
                _write(options.output, runs)
                print(runs[-1], flush=True)
    chosen = [run for run in runs if run["preset"] in options.presets and budget.items() <= run.items()]
    print("| preset | started | median steps to start |\n|---|--:|--:|")
    for preset, cells in summarize(chosen).items():
        print(f"| `{preset}` | {cells['started']} of {cells['seeds']} | {cells['median_steps'] or '-'} |")


def start(config: ConfigDict, steps: int) -> Run:
    """Trains as main.py does until the run has started, for at most `steps` steps."""
    began = time.monotonic()
    with console.muted():
        experiment = open_experiment(config)
    size, watch = experiment.plan.batch_size, StartWatch(experiment.class_shares, steps)
    learning_rates, state = experiment.make_learning_rates(), experiment.init_state()
    batches = experiment.source.batches(0, batch_size=size, seed=config.seed, rows=slice(None))
    with contextlib.closing(batches):
        for step, batch in enumerate(itertools.islice(batches, steps)):
            current = learning_rates.at(experiment.plan.epoch(step * size)).by_parameter
            state = experiment.with_learning_rates(state, current)
            state, sums = experiment.train_step(state, experiment.devices.shard(batch))
            loss = float(sums["loss_sum"]) / float(sums["count"])
            if not math.isfinite(loss) or watch.is_stuck(step + 1, loss) or watch.started_at is not None:
                break
    return {
        "started_at": watch.started_at,
        "mean_loss": watch.mean,
        "seconds": round(time.monotonic() - began),
        "processor": processor_name(),
    }


def summarize(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Number of seeds, number that started, and their median step, by preset."""
    cells = {}
    for preset in dict.fromkeys(run["preset"] for run in runs):
        steps = [run["started_at"] for run in runs if run["preset"] == preset]
        started = [step for step in steps if step is not None]
        median = statistics.median(started) if started else None
        cells[preset] = {"seeds": len(steps), "started": len(started), "median_steps": median}
    return cells


def _config(folder: Path, prepared_dir: str, about: Run) -> ConfigDict:
    config = alexnet.get_config(f"folder,{about['preset']}")
    config.update({"seed": about["seed"], "batch_size": about["batch"]})
    config.data.update({"dir": str(folder), "prepared_dir": prepared_dir})
    if about["learning_rate"]:
        config.optimizer.update(
            {"learning_rate": about["learning_rate"], "batch_scaling": "none", "warmup_epochs": 0.0}
        )
    return config


def _subset(source: Path, folder: Path) -> Path:
    """Copies the first images of each class to a folder, which takes less time to prepare."""
    for split, images in IMAGES_A_CLASS.items():
        for directory in sorted(path for path in (source / split).iterdir() if path.is_dir()):
            (folder / split / directory.name).mkdir(parents=True, exist_ok=True)
            for file in sorted(directory.iterdir())[:images]:
                if not (folder / split / directory.name / file.name).exists():
                    shutil.copy(file, folder / split / directory.name)
    return folder


def _write(path: Path, runs: list[Run]) -> None:
    seeds = sorted({run["seed"] for run in runs})
    data = f"CIFAR-10, {IMAGES_A_CLASS['train']} training images a class, enlarged to 256 pixels"
    by_budget: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run["steps"], run["batch"], run["learning_rate"] or 0)):
        by_budget.setdefault(tuple(run[name] for name in BUDGET), []).append(run)
    summaries = [
        {**dict(zip(BUDGET, budget, strict=True)), "presets": summarize(some)} for budget, some in by_budget.items()
    ]
    command = ["-m", "benchmarks.starting", "--data-dir=cifar10"]
    write_results(path, command, data, seeds, {"summaries": summaries, "runs": runs})


if __name__ == "__main__":
    main()
