"""`python -m alexnet_jax ablate --table=paper`: what each idea of the paper is worth, all else equal.

Trains the network of --config as it is and without each idea, with each seed, and shows the test errors next to
those of the paper and of its source. Runs lie in WORKDIR/ROW/seed-N, where main.py can continue them; finished ones are
not repeated. With --table=presets the rows are the presets, with --table=modern the recipes of 2012 and of today.
"""

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from alexnet_jax.cli import flags as flags_lib
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import open_dataset
from alexnet_jax.experiments import workers
from alexnet_jax.experiments.ablations import TABLES, Ablation
from alexnet_jax.experiments.results import Spread, describe_data, public, write_results
from alexnet_jax.experiments.search_space import apply, flags
from alexnet_jax.experiments.trials import POLL_SECONDS, Outcome, Trial, is_finished, run_trials
from alexnet_jax.inference.evaluation import evaluate_run
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.models.summary import summarize
from alexnet_jax.run import run_folder
from alexnet_jax.system import console
from alexnet_jax.system.files import write_json

DEFAULTS = {
    "paper": ["--config=configs/alexnet.py:folder,small", "--config.epochs=5", "--config.optimizer.min_divisions=1"],
    "presets": ["--config=configs/alexnet.py:digits"],
    "modern": ["--config=configs/alexnet.py:folder", "--config.epochs=8"],
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


Cells = dict[str, Cell]
"""By the name of the row."""


def main(argv: list[str]) -> None:
    """Does the runs that are missing, then shows the table."""
    parser = argparse.ArgumentParser(prog="python -m alexnet_jax ablate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--table", choices=TABLES, default="paper")
    parser.add_argument("--seeds", type=flags_lib.seeds, default=(0, 1, 2), help="0,1,2")
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
    rows = [row for row in rows if row.views != config.test_views]  # which would be the first row again
    network = summarize(get_model(config.model, num_classes=1), config.data.crop)
    open_dataset(config.data)  # prepared by all cores; what is wrong with it is wrong with every row
    processes = options.processes or workers.default_count(sum(layer.parameters for layer in network))
    if processes > 1:
        workers.run_on_each_core(["ablate", *argv, "--processes=1", "--train-only"], processes)
    if options.train_only:
        _measure([row for row in rows if row.views is None], trials, lambda _: None)
        return
    output = options.output or Path("results") / f"ablations_{options.table}.json"
    command = ["-m", "alexnet_jax", "ablate", f"--table={options.table}", *public(words)]
    command += ["--rows", *options.rows] if options.rows else []
    command += [] if options.seeds == (0, 1, 2) else [f"--seeds={','.join(map(str, options.seeds))}"]

    def write(cells: Cells) -> None:
        with _claim(workdir):  # the same command may have been given twice
            _write(output, command, rows, cells, trials[rows[0].name], options.seeds)

    with console.muted() if processes > 1 else contextlib.nullcontext():  # a worker has shown it
        cells = _measure(rows, trials, write)
    _show(options, rows, cells, trials[rows[0].name])
    console.show(f"The numbers lie in {output}, the runs in {workdir}")


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
        if row.views is not None:
            continue
        own = flags_lib.with_choice(words, row.choice)
        config = flags_lib.config_from_flags("ablate", own)
        changes = dict(row.changes)
        if row.rate_factor != 1:
            changes["optimizer.learning_rate"] = config.optimizer.learning_rate * row.rate_factor
        trials[row.name] = []
        for seed in seeds:
            values = {**changes, "seed": seed}
            folder = workdir / row.name / f"seed-{seed}"
            command = [*run_folder.training_program(), *own, *flags(values), f"--workdir={folder}"]
            trials[row.name].append(Trial(apply(values, config), folder, command))
    return trials


def _measure(
    rows: Sequence[Ablation], trials: Mapping[str, Sequence[Trial]], on_change: Callable[[Cells], None]
) -> Cells:
    """Does the runs; `on_change` gets the cells after each."""
    names = {trial.workdir: name for name, of_row in trials.items() for trial in of_row}
    by_seed = [trial for of_seed in zip(*trials.values(), strict=True) for trial in of_seed]
    cells = {row.name: Cell((), ()) for row in rows}
    for outcome in run_trials(by_seed):
        name, seed = names[outcome.trial.workdir], outcome.trial.config.seed
        cells[name] = _with(cells[name], outcome.test, outcome.failure)
        result = outcome.failure or console.percent(outcome.test["top1_error"] if outcome.test else None)
        console.show(f"{name}, seed {seed}: {result}")
        for row in rows:
            if name == rows[0].name and row.views is not None:
                cells[row.name] = _with(cells[row.name], *_test_with_views(outcome, row.views))
        on_change(cells)
    return cells


def _with(cell: Cell, test: Mapping[str, Any] | None, failure: str | None) -> Cell:
    """The cell with one more seed."""
    if test is None:
        return dataclasses.replace(cell, failure=failure or "the baseline failed")
    top1, top5 = test["top1_error"], test["top5_error"]
    return Cell((*cell.errors, top1), (*cell.top5_errors, *([] if top5 is None else [top5])), cell.failure)


def _test_with_views(outcome: Outcome, views: int) -> tuple[Mapping[str, Any] | None, str | None]:
    """The test of a run once more, kept beside it; or why there is none."""
    if outcome.test is None:
        return None, "the baseline failed"
    run, seen = outcome.trial.workdir, outcome.test["examples_seen"]
    path = run / f"views-{views}.json"
    with _claim(run):
        kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if kept.get("examples_seen") != seen:  # a run may have been made longer
            try:
                with console.muted():
                    kept = {"examples_seen": seen, **evaluate_run(run, checkpoint=str(seen), views=views).summary}
            except UserError as error:
                return None, str(error)
            write_json(path, kept)
    return kept, None


def _claim(folder: Path) -> TextIO:
    """`run_folder.claim`, once no other process has one."""
    while (claim := run_folder.claim(folder)) is None:
        time.sleep(POLL_SECONDS)
    return claim


def _write(
    output: Path,
    command: Sequence[str],
    rows: Sequence[Ablation],
    cells: Cells,
    baseline: Sequence[Trial],
    seeds: Sequence[int],
) -> None:
    config = baseline[0].config
    results = {
        row.name: {**dataclasses.asdict(cells[row.name]), "what": row.what, "paper": row.paper, "source": row.source}
        for row in rows
    }
    about = {"preset": config.model.preset, "epochs": config.epochs, "batch_size": config.batch_size}
    write_results(output, command, _data(baseline), seeds, {**about, "rows": results})


def _data(baseline: Sequence[Trial]) -> str:
    """The data set, as a finished run knows it."""
    finished = next(filter(is_finished, baseline), None)
    return "unknown" if finished is None else describe_data(finished.config, finished.workdir)


def _show(options: argparse.Namespace, rows: Sequence[Ablation], cells: Cells, baseline: Sequence[Trial]) -> None:
    first, config = cells[rows[0].name], baseline[0].config
    texts = [
        [row.what, _spread(cells[row.name]), difference(cells[row.name], first), row.paper, row.source, row.where]
        for row in rows
    ]
    if all(row.paper == row.source == "-" for row in rows):
        console.show_table(["network", "test error", "against the first"], [text[:3] for text in texts])
    else:
        header = ["what is changed", "ours", "against the first", "paper", "its source", "where"]
        console.show_table(header, texts)
    names = "" if any(row.choice for row in rows) else f"preset {config.model.preset}, "
    network = names + (f"{config.max_steps:,} steps" if config.max_steps else f"{config.epochs:g} epochs")
    seeds = ", ".join(map(str, options.seeds))
    console.show(f"Ours: test top-1 error on {_data(baseline)}; {network}; seeds {seeds}, mean ± standard deviation.")
    if options.table == "paper":
        console.show("The paper's and its source's: ImageNet, 90 epochs, top-1 / top-5; + is worse than with the idea.")


def _spread(cell: Cell) -> str:
    if not cell.errors:
        return f"failed: {cell.failure}"
    return Spread.of(cell.errors).text(".2%") + (f" (one failed: {cell.failure})" if cell.failure else "")


def difference(cell: Cell, first: Cell) -> str:
    """In points of percent."""
    if cell is first or not cell.errors or not first.errors:
        return "-"
    return f"{100 * (Spread.of(cell.errors).mean - Spread.of(first.errors).mean):+.2f}"
