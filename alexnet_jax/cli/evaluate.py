"""`python -m alexnet_jax evaluate RUN`: the exact error of a run, and its predictions for every image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.cli.arguments import run_parser
from alexnet_jax.data.imagenet import TRAIN
from alexnet_jax.inference.evaluation import Evaluation, evaluate_run
from alexnet_jax.inference.folder_evaluation import evaluate_folder
from alexnet_jax.inference.loaded_run import load_run
from alexnet_jax.system import console
from alexnet_jax.system.files import local_path, make_folder, write_csv

MOST_ROWS = 10
"""Classes in the printed table; the file has all."""

SPLIT_HELP = (
    "of the run's own images: train, validation or test; by default test, or validation if there is no test, but all "
    "images of the folder that --data-dir names"
)


def main(argv: list[str]) -> None:
    """Prints errors, scores and the classes with the most mistakes, and writes three tables."""
    parser = run_parser("evaluate", __doc__, views=True, data=True)
    parser.add_argument("--split", help=SPLIT_HELP)
    parser.add_argument("--output", type=local_path, help="folder of the tables; by default RUN/evaluation")
    options = parser.parse_args(argv)
    if options.data_dir and not options.split and not (Path(options.data_dir) / TRAIN).is_file():
        run = load_run(options.run, options.checkpoint)
        evaluation = evaluate_folder(run, Path(options.data_dir), options.labels, options.views)
    else:
        evaluation = evaluate_run(
            options.run,
            options.split,
            options.checkpoint,
            options.views,
            options.data_dir,
            options.prepared_dir,
            options.labels,
        )
    _show(evaluation)
    write_tables(evaluation, options.output or make_folder(evaluation.run.folder / "evaluation"))


def _show(evaluation: Evaluation) -> None:
    count, run = len(evaluation.labels), evaluation.run
    where = f"checkpoint {run.examples_seen:,}, {evaluation.views} view{'s' if evaluation.views > 1 else ''}"
    console.show(f"{evaluation.split}: {count:,} images, {where}", style="bold")
    for k, wrong, low, high in evaluation.errors():
        error = console.percent(wrong / count)
        console.show(f"top-{k} error {error:>7}  ({wrong:,} of {count:,} wrong; 95 % interval {low:.2%} to {high:.2%})")
    console.show(f"loss {evaluation.summary['loss']:.4f}")
    present = np.bincount(evaluation.labels, minlength=len(run.class_names)) > 0
    precision, recall, f1 = evaluation.scores()[present].mean(axis=0)
    console.show(f"precision {precision:.2%}, recall {recall:.2%}, F1 {f1:.2%} (means over {present.sum():,} classes)")
    console.show(f"expected calibration error {evaluation.calibration_error():.2%}")
    worst = [row for row in evaluation.worst_classes() if row[2]][:MOST_ROWS]
    if worst:
        rows = [[name, f"{images:,}", f"{wrong:,}", f"{wrong / images:.1%}"] for name, images, wrong, _ in worst]
        console.show_table(["worst classes", "images", "wrong", "top-1 error"], rows)


def write_tables(evaluation: Evaluation, folder: Path) -> None:
    """Writes predictions-, classes- and confusion-SPLIT.csv; prints where they lie."""
    ranks = range(1, evaluation.predicted.shape[1] + 1)
    columns = [f"{name}{rank}" for rank in ranks for name in ("prediction", "class", "probability")]
    names = ("predictions", "classes", "confusion")
    predictions, classes, confusion = (folder / f"{name}-{evaluation.split}.csv" for name in names)
    write_csv(predictions, [["id", "file", "label", "class", *columns], *_prediction_rows(evaluation)])
    scores = ([f"{score:.6g}" for score in row] for row in evaluation.scores())
    rows = ([*counts, *row] for counts, row in zip(evaluation.by_class(), scores, strict=True))
    write_csv(classes, [["class", "images", "wrong_top1", "wrong_top5", "precision", "recall", "f1"], *rows])
    write_csv(confusion, [["class", "prediction", "images"], *map(list, evaluation.pairs())])
    console.show(
        f"The predictions for each image lie in {predictions}, the errors of each class in {classes}, what was taken "
        f"for what in {confusion}"
    )


def _prediction_rows(evaluation: Evaluation) -> Iterator[list[Any]]:
    run = evaluation.run
    for number, (file, label) in enumerate(zip(evaluation.files, evaluation.labels.tolist(), strict=True)):
        row = [number, file, label, run.name_of(label)]
        for predicted, probability in evaluation.predictions(number):
            row += [predicted, run.name_of(predicted), f"{probability:.6g}"]
        yield row
