"""`python -m alexnet_jax ablate --table=paper`: what each idea of the paper is worth, all else equal.

Trains the network of --config as it is and without each idea, with each seed, and prints the test errors beside those
of the paper and of its source. Runs lie in WORKDIR/ROW/seed-N, where main.py can continue them; finished ones are not
repeated. With --table=presets the rows are the presets, with --table=modern the recipes of 2012 and of today, with
--table=ladder_2012 and ladder_modern the networks from one layer to ResNet by these recipes, with --table=large_batch
ways to train with large batches.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.cli import arguments, flags, workers
from alexnet_jax.errors import UserError, check_choice
from alexnet_jax.experiment import open_dataset
from alexnet_jax.experiments.ablations import COST_HEADER, TABLES, Ablation, Cost, RowResult
from alexnet_jax.experiments.results import describe_data, results_command, write_results
from alexnet_jax.experiments.search_space import apply
from alexnet_jax.experiments.trials import Outcome, Trial, is_finished, run_named_trials, wait_for_claim
from alexnet_jax.inference.evaluation import evaluate_run
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.models.summary import summarize
from alexnet_jax.system import console
from alexnet_jax.system.files import read_json, write_json

SEEDS = (0, 1, 2)
MAX_EPOCHS = 60.0

DEFAULTS = {
    "paper": ["--config=configs/alexnet.py:folder,small", "--config.epochs=5", "--config.optimizer.min_drops=1"],
    "presets": ["--config=configs/alexnet.py:digits"],
    "modern": ["--config=configs/alexnet.py:folder", "--config.epochs=8"],
    "ladder_2012": ["--config=configs/alexnet.py:fashion_mnist", "--config.epochs=10"],
    "ladder_modern": ["--config=configs/alexnet.py:fashion_mnist", "--config.epochs=10"],
    "large_batch": [
        "--config=configs/alexnet.py:fashion_mnist,lenet",
        "--config.epochs=6",
        "--config.data.crop=24",
        "--config.optimizer.learning_rate=0.03",
        "--config.optimizer.schedule=quadratic",
    ],
}
"""The config of each table if no --config is given: CIFAR-10 as a folder, or Fashion-MNIST's own files, in
--config.data.dir=DIR, or the digits."""

Results = dict[str, RowResult]
"""The results by the name of the row."""


def main(argv: list[str]) -> None:
    """Trains the runs that are missing, then prints the table."""
    program = arguments.program("ablate")
    parser = arguments.config_parser(program, __doc__, f"[{arguments.CONFIG}] [--table=TABLE] [OPTION ...]")
    parser.add_argument("--table", choices=TABLES, default="paper", help="decides the rows and the default of --config")
    parser.add_argument("--rows", nargs="+", help="names of rows beside the first of the table; by default all")
    parser.add_argument("--workdir", type=Path, help="folder of the runs; by default runs/ablate-TABLE")
    parser.add_argument("--output", type=Path, help="JSON file of the results; by default WORKDIR/ablations_TABLE.json")
    parser.add_argument(
        "--macs-per-image",
        type=float,
        help="instead of config.epochs: as many epochs, up to 60, as have so many forward MACs for each image",
    )
    workers.add_flags(parser, seeds=SEEDS)
    options, words = arguments.parse(parser, argv)
    if options.macs_per_image is not None and not 0 < options.macs_per_image < math.inf:
        raise UserError(f"--macs-per-image={options.macs_per_image:g} must be more than 0, such as 5e7")
    if not any(word.startswith("--config=") for word in words):
        words = [*DEFAULTS[options.table], *words]
    workdir = options.workdir or Path("runs") / f"ablate-{options.table}"
    output = options.output or workdir / f"ablations_{options.table}.json"
    rows = _choose(options.table, options.rows)
    trials = make_trials(rows, words, options.seeds, workdir)
    config = trials[rows[0].name, options.seeds[0]].config
    # Prepared by all cores; what is wrong with it is wrong with every row.
    num_classes = open_dataset(config.data).num_classes
    if options.macs_per_image:
        if config.max_steps:
            raise UserError(f"--macs-per-image gives runs their lengths: leave out config.max_steps={config.max_steps}")
        trials = make_trials(rows, words, options.seeds, workdir, options.macs_per_image, num_classes)
    baseline = [trials[rows[0].name, seed] for seed in options.seeds]
    rows = [row for row in rows if row.views != config.test_views]  # which would be the first row again
    defaults = {"rows": None, "seeds": SEEDS, "macs_per_image": None}
    command = results_command("ablate", options, defaults, [f"--table={options.table}", *words])
    results: Results = {}
    with workers.share_out("ablate", argv, options.processes, config):
        measured = [row for row in rows if row.views is None or not options.train_only]
        for results in _measure(measured, trials, num_classes):
            if not options.train_only:
                with wait_for_claim(workdir):  # the same command may have been given twice
                    _write(output, command, rows, results, baseline, options.macs_per_image)
    if not options.train_only:
        _show(options.table, rows, results, baseline, options.macs_per_image)
        console.show(f"The results lie in {output}, the runs in {workdir}")


def _choose(table: str, names: Sequence[str] | None) -> list[Ablation]:
    first, *others = TABLES[table]
    known = [row.name for row in others]
    for name in names or ():
        if name != first.name:
            check_choice("--rows", name, known)
    return [first, *(row for row in others if names is None or row.name in names)]


def make_trials(
    rows: Sequence[Ablation],
    words: Sequence[str],
    seeds: Sequence[int],
    workdir: Path,
    macs_per_image: float | None = None,
    num_classes: int = 1,
) -> dict[tuple[str, int], Trial]:
    """The runs by row and seed, all rows of a seed before the next seed; rows that only test have no run.

    Args:
      rows: of a table.
      words: of the command line that give the config.
      seeds: of the runs of each row.
      workdir: folder of their folders.
      macs_per_image: gives each run as many epochs as have so many forward MACs for each image; None: all the same.
      num_classes: of the data, on which the MACs depend.
    """
    trials = {}
    for seed, row in itertools.product(seeds, rows):
        if row.views is not None:
            continue
        own_words = flags.with_choice(words, row.choice)
        config = flags.config_from_flags("ablate", own_words)
        values = {**row.changes, "seed": seed}
        if row.learning_rate_factor != 1:
            whole = values.get("optimizer.learning_rate", config.optimizer.learning_rate)
            values["optimizer.learning_rate"] = whole * row.learning_rate_factor
        if macs_per_image is not None:
            planned = apply(values, config)
            epochs = _affordable_epochs(planned, macs_per_image, num_classes)
            values |= {"epochs": epochs, "optimizer.warmup_epochs": min(planned.optimizer.warmup_epochs, epochs / 10)}
        trials[row.name, seed] = workers.make_trial(own_words, config, values, workdir / row.name / f"seed-{seed}")
    return trials


def _affordable_epochs(config: ConfigDict, macs_per_image: float, num_classes: int) -> float:
    """The epochs that have so many forward MACs for each image, up to MAX_EPOCHS."""
    layers = summarize(get_model(config.model, num_classes), config.data.crop)
    return min(MAX_EPOCHS, float(f"{macs_per_image / sum(layer.macs for layer in layers):.4g}"))


def _measure(rows: Sequence[Ablation], trials: Mapping[tuple[str, int], Trial], num_classes: int) -> Iterator[Results]:
    """Trains the missing runs, and yields all results so far after each."""
    results = {row.name: RowResult() for row in rows}
    for (name, seed), outcome in run_named_trials(trials):
        cost = Cost.of(outcome.trial.config, outcome.trial.workdir, num_classes) if outcome.test else None
        results[name] = results[name].with_seed(outcome.test, outcome.failure, cost)
        result = outcome.failure or console.percent(outcome.test["top1_error"] if outcome.test else None)
        console.show(f"{name}, seed {seed}: {result}")
        for row in rows:
            if name == rows[0].name and row.views is not None:
                results[row.name] = results[row.name].with_seed(*_test_with_views(outcome, row.views))
        yield results


def _test_with_views(outcome: Outcome, views: int) -> tuple[Mapping[str, Any] | None, str | None]:
    """Tests a run with another number of views, and keeps the result beside it; or says why there is none.

    Returns the test record and None, or None and the reason.
    """
    if outcome.test is None:
        return None, "the baseline failed"
    run, seen, data = outcome.trial.workdir, outcome.test["examples_seen"], outcome.trial.config.data
    checkpoint, path = str(outcome.test.get("checkpoint", seen)), run / f"views-{views}.json"
    with wait_for_claim(run):
        kept: dict[str, Any] = read_json(path, dict) if path.exists() else {}
        if kept.get("examples_seen") != seen:  # a run may have been made longer
            try:
                with console.muted():
                    evaluation = evaluate_run(run, "test", checkpoint, views, data.dir, data.prepared_dir)
            except UserError as error:
                return None, str(error)
            kept = {"examples_seen": seen, **evaluation.summary}
            write_json(path, kept)
    return kept, None


def _write(
    output: Path,
    command: Sequence[str],
    rows: Sequence[Ablation],
    results: Results,
    baseline: Sequence[Trial],
    macs_per_image: float | None,
) -> None:
    config, seeds = baseline[0].config, [trial.config.seed for trial in baseline]
    table = {
        row.name: {**dataclasses.asdict(results[row.name]), "what": row.what, "paper": row.paper, "source": row.source}
        for row in rows
    }
    length = {"macs_per_image": macs_per_image} if macs_per_image else {"epochs": config.epochs}
    about = {"preset": config.model.preset, **length, "batch_size": config.batch_size}
    write_results(output, command, _data(baseline), seeds, {**about, "rows": table})


def _data(baseline: Sequence[Trial]) -> str:
    """The data set, as a finished run describes it; "unknown" if none is finished."""
    finished = next(filter(is_finished, baseline), None)
    return "unknown" if finished is None else describe_data(finished.config, finished.workdir)


def _show(
    table: str,
    rows: Sequence[Ablation],
    results: Results,
    baseline: Sequence[Trial],
    macs_per_image: float | None,
) -> None:
    first, config = results[rows[0].name], baseline[0].config
    texts = [[row.what, results[row.name].text(), results[row.name].difference(first)] for row in rows]
    if all(row.paper == row.source == "-" for row in rows):
        costs = [results[row.name].cost for row in rows]
        texts = [[*text, *(cost.texts() if cost else [])] for text, cost in zip(texts, costs, strict=True)]
        console.show_table(["network", "test error", "against the first", *COST_HEADER], texts, right=COST_HEADER)
    else:
        texts = [[*text, row.paper, row.source, row.where] for text, row in zip(texts, rows, strict=True)]
        header = ["what is changed", "test error", "against the first", "paper", "authors' code", "where"]
        console.show_table(header, texts)
    names = "" if any(row.choice for row in rows) else f"preset {config.model.preset}, "
    if macs_per_image:
        length = f"{macs_per_image:g} MACs for each image, {MAX_EPOCHS:g} epochs at most"
    else:
        length = f"{config.max_steps:,} steps" if config.max_steps else f"{config.epochs:g} epochs"
    seeds = ", ".join(str(trial.config.seed) for trial in baseline)
    console.show(f"Test top-1 error on {_data(baseline)}; {names}{length}; seeds {seeds}, mean ± standard deviation.")
    if table == "paper":
        console.show("Paper and authors' code: ImageNet, 90 epochs, top-1 / top-5; + means worse than with the idea.")
