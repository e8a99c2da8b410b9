"""`python -m alexnet_jax ablate --table=paper`: what each idea of the paper is worth, all else equal.

Trains the network of --config as it is and without each idea, with each seed, and shows the test errors next to
those of the paper and of its source. Runs lie in WORKDIR/ROW/seed-N, where main.py can continue them; finished ones are
not repeated. With --table=presets the rows are the presets, with --table=modern the recipes of 2012 and of today.
"""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import terminal, workers
from alexnet_jax.ablations import TABLES, Ablation
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import evaluate_run
from alexnet_jax.metric_writer import write_json
from alexnet_jax.models import get_model, summarize
from alexnet_jax.results import Spread, describe_data, public, write_results
from alexnet_jax.search_space import apply, flags
from alexnet_jax.trials import Trial, run_trials

DEFAULTS = {
    "paper": ["--config=configs/alexnet.py:folder,small", "--config.epochs=6"],
    "presets": ["--config=configs/alexnet.py:digits"],
    "modern": ["--config=configs/alexnet.py:folder", "--config.epochs=10"],
}
"""What is measured if no --config is given: CIFAR-10 as a folder, --config.data.dir=DIR; or the digits."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What came of a row.

    Attributes:
      errors: of the test, top-1, in [0, 1], by seed; without those that failed.
      top5_errors: the same; empty where top-5 says nothing.
      failure: of one of the seeds, in a line.
    """

    errors: tuple[float, ...]
    top5_errors: tuple[float, ...]
    failure: str | None = None


def main(argv: list[str]) -> None:
    """Does the runs that are missing, then shows the table."""
    parser = argparse.ArgumentParser(prog="python -m alexnet_jax ablate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--table", choices=TABLES, default="paper")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--rows", nargs="+", help="names of rows, the first of the table always; by default all")
    parser.add_argument("--workdir", type=Path, help="folder of the runs; by default runs/ablate-TABLE")
    parser.add_argument("--output", type=Path, help="by default results/ablations_TABLE.json")
    parser.add_argument("--processes", type=int, help="that share the runs; by default one a core for small networks")
    parser.add_argument("--train-only", action="store_true", help="show and write nothing: another process does")
    options, words = parser.parse_known_args(argv)
    if not any(word.startswith("--config=") for word in words):
        words = [*DEFAULTS[options.table], *words]
    workdir = options.workdir or Path("runs") / f"ablate-{options.table}"
    rows = _choose(options.table, options.rows)
    trials = make_trials(rows, words, options.seeds, workdir)
    config = trials[rows[0].name][0].config
    network = summarize(get_model(config.model, num_classes=1), config.data.crop)
    processes = options.processes or workers.default_count(sum(layer.parameters for layer in network))
    if processes > 1:
        workers.run_on_each_core(["ablate", *argv, "--processes=1", "--train-only"], processes)
    with terminal.muted() if processes > 1 else contextlib.nullcontext():  # a worker has shown it
        cells = _train(trials)
    if options.train_only:
        return
    for row in rows:
        if row.views > 1:
            cells[row.name] = _with_views(trials[rows[0].name], row.views)
    _show(options, rows, cells, config, workdir, words)


def _choose(table: str, names: Sequence[str] | None) -> list[Ablation]:
    first, *others = TABLES[table]
    known = [row.name for row in others]
    for name in names or ():
        if name not in (first.name, *known):
            raise UserError(f"--rows={name} is unknown; there are: {', '.join(known)}")
    return [first, *(row for row in others if names is None or row.name in names)]


def make_trials(
    rows: Sequence[Ablation], words: Sequence[str], seeds: Sequence[int], workdir: Path
) -> dict[str, list[Trial]]:
    """The runs of each row, one a seed; rows that train nothing have none."""
    trials: dict[str, list[Trial]] = {}
    for row in rows:
        if row.views > 1:
            continue
        own = config_lib.with_choice(words, row.choice)
        config = config_lib.config_from_flags("ablate", own)
        changes = dict(row.changes)
        if row.rate_factor != 1:
            changes["optimizer.learning_rate"] = config.optimizer.learning_rate * row.rate_factor
        trials[row.name] = []
        for seed in seeds:
            values = {**changes, "seed": seed}
            folder = workdir / row.name / f"seed-{seed}"
            command = ["main.py", *own, *flags(values), f"--workdir={folder}"]
            trials[row.name].append(Trial(apply(values, config), folder, command))
    return trials


def _train(trials: Mapping[str, Sequence[Trial]]) -> dict[str, Cell]:
    names = {trial.workdir: name for name, of_row in trials.items() for trial in of_row}
    by_seed = [trial for of_seed in zip(*trials.values(), strict=True) for trial in of_seed]
    cells = {name: Cell((), ()) for name in trials}
    for outcome in run_trials(by_seed):
        name, seed = names[outcome.trial.workdir], outcome.trial.config.seed
        cells[name] = _with(cells[name], outcome.test, outcome.failure)
        result = outcome.failure or terminal.percent(outcome.test["top1_error"] if outcome.test else None)
        terminal.show(f"{name}, seed {seed}: {result}")
    return cells


def _with_views(trials: Sequence[Trial], views: int) -> Cell:
    cell = Cell((), ())
    for trial in trials:
        cell = _with(cell, _test_with_views(trial.workdir, views), None)
    return cell


def _with(cell: Cell, test: Mapping[str, Any] | None, failure: str | None) -> Cell:
    """The cell with one more seed."""
    if test is None:
        return dataclasses.replace(cell, failure=failure or "the baseline failed")
    top1, top5 = test["top1_error"], test["top5_error"]
    return Cell((*cell.errors, top1), (*cell.top5_errors, *([] if top5 is None else [top5])), cell.failure)


def _test_with_views(run: Path, views: int) -> Mapping[str, Any] | None:
    """The test of a run once more, kept beside it; None if there is no finished run."""
    path = run / f"views-{views}.json"
    if not path.exists():
        if not (run / "checkpoints").exists():
            return None
        with terminal.muted():
            write_json(path, evaluate_run(run, views=views).summary)
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def _show(
    options: argparse.Namespace,
    rows: Sequence[Ablation],
    cells: Mapping[str, Cell],
    config: ConfigDict,
    workdir: Path,
    words: Sequence[str],
) -> None:
    first = cells[rows[0].name]
    texts = [
        [row.what, _spread(cells[row.name]), _difference(cells[row.name], first), row.paper, row.source, row.where]
        for row in rows
    ]
    if all(row.paper == row.source == "-" for row in rows):
        terminal.show_table(["network", "test error", "against the first"], [text[:3] for text in texts])
    else:
        header = ["what is changed", "ours", "against the first", "paper", "its source", "where"]
        terminal.show_table(header, texts)
    data = "unknown" if not first.errors else describe_data(config, workdir / rows[0].name / f"seed-{options.seeds[0]}")
    names = "" if any(row.choice for row in rows) else f"preset {config.model.preset}, "
    network = f"{names}{config.epochs:g} epochs"
    seeds = ", ".join(map(str, options.seeds))
    terminal.show(f"Ours: test top-1 error on {data}; {network}; seeds {seeds}, mean ± standard deviation.")
    if options.table == "paper":
        terminal.show(
            "The paper's and its source's: ImageNet, 90 epochs, top-1 / top-5; + is worse than with the idea."
        )
    results = {
        row.name: {**dataclasses.asdict(cells[row.name]), "what": row.what, "paper": row.paper, "source": row.source}
        for row in rows
    }
    output = options.output or Path("results") / f"ablations_{options.table}.json"
    about = {"preset": config.model.preset, "epochs": config.epochs, "batch_size": config.batch_size}
    command = ["-m", "alexnet_jax", "ablate", f"--table={options.table}", *public(words)]
    write_results(output, command, data, options.seeds, {**about, "rows": results})
    terminal.show(f"The numbers lie in {output}, the runs in {workdir}")


def _spread(cell: Cell) -> str:
    if not cell.errors:
        return f"failed: {cell.failure}"
    return Spread.of(cell.errors).text(".2%") + (f" (one failed: {cell.failure})" if cell.failure else "")


def _difference(cell: Cell, first: Cell) -> str:
    """In points of percent."""
    if cell is first or not cell.errors or not first.errors:
        return "-"
    return f"{100 * (Spread.of(cell.errors).mean - Spread.of(first.errors).mean):+.2f}"
