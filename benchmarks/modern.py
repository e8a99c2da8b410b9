"""What the modern recipe adds to the network of 2012 in the same number of epochs, on CIFAR-10; prints Markdown.

    python -m benchmarks.modern --data-dir=cifar10

cifar10 holds train/CLASS/*.jpg and test/CLASS/*.jpg. `small` and `small_modern` train on the same images, with the same
seeds and for as many epochs, each by its own rates, and are tested once, at the end. Runs are ordinary ones, below
--workdir: what is finished is not run again, and what was interrupted is continued.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.experiment import open_dataset
from alexnet_jax.models import get_model, summarize
from alexnet_jax.results import Spread, write_results
from alexnet_jax.trials import Trial, run_trials
from configs import alexnet

PRESETS = ("small", "small_modern")

Run = dict[str, Any]
"""preset, seed, test_top1_error and test_loss."""


def main(argv: Sequence[str] | None = None) -> None:
    """Does the runs that are missing, writes the file and prints a line for each preset."""
    options = parse(argv)
    made = [(preset, seed, make_config(options, preset, seed)) for seed in options.seeds for preset in PRESETS]
    trials = [Trial(config, options.workdir / f"{preset}-{seed}", command(config)) for preset, seed, config in made]
    of_trial = {trial.workdir: (preset, seed) for trial, (preset, seed, _) in zip(trials, made, strict=True)}
    runs: list[Run] = []
    for outcome in run_trials(trials):
        preset, seed = of_trial[outcome.trial.workdir]
        if outcome.test is None:
            print(f"{preset}, seed {seed}: {outcome.failure}", flush=True)
            continue
        test = outcome.test
        runs.append({"preset": preset, "seed": seed, "test_top1_error": test["top1_error"], "test_loss": test["loss"]})
        print(f"{preset}, seed {seed}: test top-1 error {test['top1_error']:.2%}", flush=True)
    if not runs:
        raise SystemExit("no run came to its test")
    dataset = open_dataset(made[0][2].data)
    classes = dataset.num_classes
    sizes = {preset: size_of(make_config(options, preset, 0), classes) for preset in PRESETS}
    splits = ", ".join(f"{len(records.labels):,} {split}" for split, records in dataset.splits.items())
    results = {"epochs": options.epochs, "presets": compare(runs, sizes), "runs": runs}
    words = ["-m", "benchmarks.modern", "--data-dir=cifar10", f"--epochs={options.epochs:g}"]
    words.append(f"--seeds={','.join(map(str, options.seeds))}")
    write_results(options.output, words, f"CIFAR-10 as a folder: {splits}", options.seeds, results)
    print(f"\n{table(results['presets'], options.epochs)}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; --seeds as a list without repetitions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as a folder")
    parser.add_argument("--epochs", type=float, default=10.0, help="of every run")
    parser.add_argument("--seeds", type=_seeds, default="0,1,2", help="of each preset, like 0,1,2")
    parser.add_argument("--prepared-dir", default="data", help="folder of prepared data sets")
    parser.add_argument("--compilation-cache-dir", default="data/compiled", help="folder of compiled programs")
    parser.add_argument("--workdir", type=Path, default=Path("runs/modern"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("results/modern.json"))
    return parser.parse_args(argv)


def _seeds(text: str) -> list[int]:
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


def make_config(options: argparse.Namespace, preset: str, seed: int) -> ConfigDict:
    """The preset as it is, on the folder."""
    config = alexnet.get_config(f"folder,{preset}")
    config.update({"seed": seed, "epochs": options.epochs, "compilation_cache_dir": options.compilation_cache_dir})
    config.data.update({"dir": str(options.data_dir), "prepared_dir": options.prepared_dir})
    return config


def command(config: ConfigDict) -> list[str]:
    """The words after "python" that do one of the runs."""
    return [
        "main.py",
        f"--config=configs/alexnet.py:folder,{config.model.preset}",
        f"--config.data.dir={config.data.dir}",
        f"--config.epochs={config.epochs:g}",
        f"--config.seed={config.seed}",
    ]


def size_of(config: ConfigDict, classes: int) -> dict[str, int]:
    """Parameters of a network and its multiply-accumulates an image."""
    rows = summarize(get_model(config.model, classes), config.data.crop)
    return {"parameters": sum(row.parameters for row in rows), "macs": sum(row.macs for row in rows)}


def compare(runs: Sequence[Run], sizes: Mapping[str, dict[str, int]]) -> dict[str, dict[str, Any]]:
    """By preset that has runs: its size, mean and standard deviation of its accuracy, in [0, 1], and its seeds."""
    cells = {}
    for preset in dict.fromkeys(run["preset"] for run in runs):
        spread = Spread.of([1 - run["test_top1_error"] for run in runs if run["preset"] == preset])
        accuracy = {"test_top1_mean": spread.mean, "test_top1_std": spread.std, "seeds": spread.count}
        cells[preset] = {**sizes[preset], **accuracy}
    return cells


def table(presets: dict[str, dict[str, Any]], epochs: float) -> str:
    """A line for each preset."""
    lines = [
        f"| preset | parameters | multiply-accumulates | test top-1 after {epochs:g} epochs | seeds |",
        "|---|--:|--:|--:|--:|",
    ]
    for preset, cells in presets.items():
        spread = Spread(cells["test_top1_mean"], cells["test_top1_std"], cells["seeds"])
        lines.append(
            f"| `{preset}` | {cells['parameters']:,} | {cells['macs']:,} | {spread.text('.2%')} | {spread.count} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
