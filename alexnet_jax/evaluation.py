"""The exact error of a run on one of its splits, from its folder alone."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import metrics, terminal
from alexnet_jax.checkpoint import checkpoint_names, restore
from alexnet_jax.config import check
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import make_evaluate, make_preprocessing, open_dataset
from alexnet_jax.models import get_model
from alexnet_jax.parallel import DataParallel, use_compilation_cache


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What came of it.

    Attributes:
      totals: sums over the images; see `metrics.classification_sums`.
      summary: loss and errors in [0, 1]; see `metrics.summarize`.
      views: that a prediction was averaged over.
      examples_seen: the checkpoint.
    """

    totals: dict[str, Any]
    summary: dict[str, Any]
    views: int
    examples_seen: int


def evaluate_run(run: Path, split: str = "test", checkpoint: str = "latest", views: int | None = None) -> Evaluation:
    """Evaluates the parameters of a checkpoint.

    Args:
      run: the folder of a run.
      split: "train", "validation" or "test".
      checkpoint: "latest", "best", or a number of examples seen.
      views: that a prediction is averaged over; None for those of the run's tests.

    Raises UserError for what the run does not have, or if the data have other classes by now.
    """
    directory = run / "checkpoints"
    restored = restore(directory, _choose(directory, checkpoint))
    check(restored.metadata["config"])
    config = ConfigDict(restored.metadata["config"])
    use_compilation_cache(config.compilation_cache_dir)
    data = config.data
    dataset = open_dataset(data)
    if list(dataset.class_names) != restored.metadata["class_names"]:
        raise UserError(f"{data.name} in {data.prepared_dir} has other classes than the run in {run}")
    if restored.metadata["data"] != dataset.content:
        terminal.warn(f"the images of {data.name} have changed since the run")
    if split not in dataset.splits:
        raise UserError(f"--split={split}: {data.name} has {', '.join(dataset.splits)}")
    devices = DataParallel.create(0)
    model = get_model(config.model, dataset.num_classes)
    views = views or config.test_views
    preprocessing = dataclasses.replace(make_preprocessing(data, dataset.statistics), **restored.tree["preprocessing"])
    evaluate = make_evaluate(config, model, dataset, preprocessing, devices, views)
    trained = restored.tree.get("average", restored.tree["params"])
    params, batch_stats = devices.place((trained, restored.tree["batch_stats"]))
    *_, totals = evaluate(params, batch_stats, split)
    return Evaluation(totals, metrics.summarize(totals, dataset.num_classes), views, restored.examples_seen)


def _choose(directory: Path, name: str) -> int:
    """The checkpoint that is meant."""
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
