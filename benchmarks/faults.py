"""Tests the diagnosis of stuck runs on six planted faults and 20 healthy runs; prints Markdown.

    python -m benchmarks.faults

Scanned digits and synthetic images, small networks, minutes on 2 cores; writes results/faults.json.
"""

import argparse
import contextlib
import dataclasses
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import experiment
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.errors import TrainingStuckError, UserError
from alexnet_jax.experiments.results import write_results
from alexnet_jax.models.presets import PRESETS
from alexnet_jax.train import train_and_evaluate
from configs import alexnet

STEPS = 150
"""Steps within which a faulty run must start."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A planted fault, with which a run cannot learn.

    Attributes:
      name: a description of the fault.
      cause: the cause that the diagnosis should name first.
      choices: the choices of configs/alexnet.py.
      settings: config values to change, by key.
      layer: returns the fields to replace in a layer of the network.
      shuffled: shuffle the labels.
    """

    name: str
    cause: str
    choices: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    layer: Callable[[Any], dict[str, Any]] | None = None
    shuffled: bool = False


def _small(layer: Any) -> dict[str, Any]:
    return {"init": layer.init / 20}


def _negative(layer: Any) -> dict[str, Any]:
    return {"bias": -10.0} if layer.kind == "fc" and layer.features else {}


FAULTS = (
    Fault("kernels 20 times too small", "initialisation", "digits,source", {"model.hidden_width": 64}, _small),
    Fault("biases from -10 in hidden layers", "biases", "digits,lenet", layer=_negative),
    Fault("learning rate 1e-7", "learning rate", "digits,lenet", {"optimizer.learning_rate": 1e-7}),
    Fault("learning rate that kills units", "learning rate", "digits,lenet", {"optimizer.learning_rate": 0.1}),
    Fault("labels shuffled", "labels", "digits,lenet", shuffled=True),
    Fault("inputs divided by 100,000", "inputs", "digits,lenet", {"data.std": (1e5, 1e5, 1e5)}),
)

HEALTHY: tuple[tuple[str, int, int], ...] = (
    ("digits,lenet", 200, 5),
    ("synthetic,lenet", 200, 4),
    ("synthetic,cifar_18pct", 300, 3),
    ("synthetic,cifar_19pct", 300, 4),
    ("digits,source", 300, 2),
    ("digits,bn", 200, 2),
)
"""Data and preset, `stuck_after_steps`, and number of seeds."""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each fault and for each healthy configuration, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared-dir", default="data", help="folder of prepared data sets")
    parser.add_argument("--output", type=Path, default=Path("results/faults.json"))
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    alarms, runs = [], 0
    print("| fault | first diagnosis | right |\n|---|---|---|")
    for fault in FAULTS:
        error = run_fault(fault, options.prepared_dir)
        cause = cause_of(error)
        rows.append({"fault": fault.name, "config": fault.choices, "diagnosis": cause, "right": cause == fault.cause})
        print(f"| {fault.name} | {cause} | {'yes' if cause == fault.cause else 'no'} |", flush=True)
        print(f"  {error}", flush=True)
        rows[-1]["message"] = None if error is None else str(error)
    for choices, steps, seeds in HEALTHY:
        found = [run_healthy(choices, steps, seed, options.prepared_dir) for seed in range(seeds)]
        alarms += [f"{choices}, seed {seed}: {error}" for seed, error in enumerate(found) if error is not None]
        runs += seeds
        print(
            f"healthy: {choices}, {seeds} seeds, {steps} steps: {sum(error is not None for error in found)} alarms",
            flush=True,
        )
    right = sum(bool(row["right"]) for row in rows)
    print(f"named {right} of {len(rows)} faults; false alarms {len(alarms)} of {runs}")
    results = {"faults": rows, "named": right, "healthy_runs": runs, "false_alarms": alarms}
    seeds_used = sorted({seed for _, _, seeds in HEALTHY for seed in range(seeds)})
    command = ["-m", "benchmarks.faults"]
    write_results(options.output, command, "digits (1,257 training images), synthetic (1,024)", seeds_used, results)


def run_fault(fault: Fault, prepared_dir: str) -> UserError | None:
    """Runs a config with the fault; returns the error that ended the run, or None."""
    config = alexnet.get_config(fault.choices)
    config.stuck_after_steps = STEPS
    config.update_from_flattened_dict(fault.settings)
    with _planted(fault, config):
        return run(config, STEPS, prepared_dir)


def run_healthy(choices: str, steps: int, seed: int, prepared_dir: str) -> UserError | None:
    """Runs an unchanged config; returns the error that ended the run, or None."""
    config = alexnet.get_config(choices)
    config.seed, config.batch_size, config.stuck_after_steps = seed, 32, steps
    if config.model.hidden_width:
        config.model.hidden_width = 64
    return run(config, steps, prepared_dir)


def run(config: ConfigDict, steps: int, prepared_dir: str) -> UserError | None:
    """Trains without output for a number of steps; returns the error that ended the run early, or None."""
    config.max_steps, config.eval_every_epochs, config.data.prepared_dir = steps, 1e9, prepared_dir
    workdir = tempfile.mkdtemp()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train_and_evaluate(config, workdir)
    except UserError as error:
        return error
    finally:
        shutil.rmtree(workdir)
    return None


def cause_of(error: UserError | None) -> str:
    """The first cause that the diagnosis names, or the kind of another error."""
    if not isinstance(error, TrainingStuckError):
        return "none" if error is None else type(error).__name__
    return str(error).partition("most likely cause: ")[2].partition(" (")[0]


@contextlib.contextmanager
def _planted(fault: Fault, config: ConfigDict) -> Iterator[None]:
    """Plants faults that no config can express: changed layers as a new preset, shuffled labels in the data set."""
    with contextlib.ExitStack() as stack:
        if fault.layer is not None:
            preset = PRESETS[config.model.preset]
            layers = tuple(dataclasses.replace(layer, **fault.layer(layer)) for layer in preset["layers"])
            stack.enter_context(mock.patch.dict(PRESETS, {"faulty": {**preset, "layers": layers}}))
            config.model.preset = "faulty"
        if fault.shuffled:
            opened = experiment.open_dataset
            stack.enter_context(mock.patch.object(experiment, "open_dataset", lambda *data: _shuffled(opened(*data))))
        yield


def _shuffled(dataset: Dataset) -> Dataset:
    for records in dataset.splits.values():
        np.random.default_rng(0).shuffle(records.labels)
    return dataset


if __name__ == "__main__":
    main()
