"""`python -m alexnet_jax evaluate RUN`: the exact error of a run, from its folder alone."""

import argparse
from pathlib import Path

from alexnet_jax import terminal
from alexnet_jax.augment import VIEWS
from alexnet_jax.evaluation import evaluate_run


def main(argv: list[str]) -> None:
    """Prints top-1 and top-5 error with counts."""
    parser = argparse.ArgumentParser(prog="python -m alexnet_jax evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--split", default="test", help="train, validation or test (default)")
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a number of examples seen")
    parser.add_argument(
        "--views", type=int, choices=VIEWS, help="views a prediction is averaged over; as the run's tests"
    )
    arguments = parser.parse_args(argv)
    evaluation = evaluate_run(arguments.run, arguments.split, arguments.checkpoint, arguments.views)
    totals, summary = evaluation.totals, evaluation.summary
    top5 = f", top-5 error {terminal.percent(summary['top5_error'])}" if summary["top5_error"] is not None else ""
    terminal.show(
        f"{arguments.split}: top-1 error {terminal.percent(summary['top1_error'])}{top5}, loss {summary['loss']:.4f} "
        f"({totals['top1_correct']:,} and {totals['top5_correct']:,} of {totals['count']:,} right), "
        f"views {evaluation.views}, checkpoint {evaluation.examples_seen}"
    )
