"""`python -m alexnet_jax evaluate RUN`: the exact error of a run, from its folder alone."""

import argparse
import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax import metrics, terminal
from alexnet_jax.augment import VIEWS
from alexnet_jax.checkpoint import checkpoint_names, restore
from alexnet_jax.config import check
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import make_evaluate, make_preprocessing, open_dataset
from alexnet_jax.models import get_model
from alexnet_jax.parallel import DataParallel, use_compilation_cache


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

    directory = arguments.run / "checkpoints"
    restored = restore(directory, _choose(directory, arguments.checkpoint))
    check(restored.metadata["config"])
    config = ConfigDict(restored.metadata["config"])
    use_compilation_cache(config.compilation_cache_dir)
    data = config.data
    dataset = open_dataset(data)
    if list(dataset.class_names) != restored.metadata["class_names"]:
        raise UserError(f"{data.name} in {data.prepared_dir} has other classes than the run in {arguments.run}")
    if restored.metadata["data"] != dataset.content:
        terminal.warn(f"the images of {data.name} have changed since the run")
    if arguments.split not in dataset.splits:
        raise UserError(f"--split={arguments.split}: {data.name} has {', '.join(dataset.splits)}")
    devices = DataParallel.create(0)
    model, views = get_model(config.model, dataset.num_classes), arguments.views or config.test_views
    preprocessing = dataclasses.replace(make_preprocessing(data, dataset.statistics), **restored.tree["preprocessing"])
    evaluate = make_evaluate(config, model, dataset, preprocessing, devices, views)
    trained = restored.tree.get("average", restored.tree["params"])
    params, batch_stats = devices.place((trained, restored.tree["batch_stats"]))
    *_, totals = evaluate(params, batch_stats, arguments.split)
    summary = metrics.summarize(totals, dataset.num_classes)
    top5 = f", top-5 error {terminal.percent(summary['top5_error'])}" if summary["top5_error"] is not None else ""
    terminal.show(
        f"{arguments.split}: top-1 error {terminal.percent(summary['top1_error'])}{top5}, loss {summary['loss']:.4f} "
        f"({totals['top1_correct']:,} and {totals['top5_correct']:,} of {totals['count']:,} right), "
        f"views {views}, checkpoint {restored.examples_seen}"
    )


def _choose(directory: Path, name: str) -> int:
    """The checkpoint that --checkpoint means."""
    names = checkpoint_names(directory)
    if not names:
        raise UserError(f"{directory} holds no checkpoint")
    if name == "latest":
        return names[-1]
    if name == "best":
        metadata = restore(directory, names[-1]).metadata
        best = metadata.get("best", metadata["progress"]["best_examples_seen"])
        return names[-1] if best is None else best
    if not name.isdigit() or int(name) not in names:
        raise UserError(f"--checkpoint={name}: {directory} has {', '.join(map(str, names))}")
    return int(name)
