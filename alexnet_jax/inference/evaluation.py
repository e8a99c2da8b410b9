"""The exact error of a run on one of its splits, image by image, from its folder alone."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax import metrics
from alexnet_jax.config import check
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.loader import eval_batches
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import open_dataset
from alexnet_jax.inference.loaded_run import TrainedRun, load_run
from alexnet_jax.parallel.compilation import use_compilation_cache
from alexnet_jax.parallel.devices import data_parallel
from alexnet_jax.steps import make_predictions_step
from alexnet_jax.system import console


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Predictions for every image of a split.

    Attributes:
      run: the network.
      split: which images.
      views: that a prediction was averaged over.
      files: name of each image.
      labels: int32, [images].
      guesses: the five likeliest classes of each, the likeliest first, int32, [images, 5 or fewer]; -1 after a NaN.
      probabilities: theirs, float32.
      losses: minus the logarithm of the label's, in nats, float32, [images].
    """

    run: TrainedRun
    split: str
    views: int
    files: Sequence[str]
    labels: np.ndarray
    guesses: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray

    @property
    def summary(self) -> dict[str, Any]:
        """Loss and errors in [0, 1]; see `metrics.summarize`."""
        correct = {f"top{k}_correct": int(self.is_right(k).sum()) for k in (1, 5)}
        totals = {"loss_sum": float(self.losses.sum(dtype=np.float64)), **correct, "count": len(self.labels)}
        return metrics.summarize(totals, len(self.run.class_names))

    def predictions(self, number: int) -> Iterator[tuple[int, float]]:
        """The likeliest classes of an image and their probabilities."""
        return zip(self.guesses[number].tolist(), self.probabilities[number].tolist(), strict=True)

    def is_right(self, k: int) -> np.ndarray:
        """Whether the label is among the k likeliest classes, bool, [images]."""
        return (self.guesses[:, :k] == self.labels[:, None]).any(axis=1)

    def confusion(self) -> np.ndarray:
        """Images of each class (row) by the class that they were taken for, int, [classes, classes].

        An answer that is no class of the data, or none at all, is left out.
        """
        classes = len(self.run.class_names)
        answers = self.guesses[:, 0]
        known = (answers >= 0) & (answers < classes)
        counts = np.zeros((classes, classes), int)
        np.add.at(counts, (self.labels[known], answers[known]), 1)
        return counts

    def errors(self) -> Iterator[tuple[int, int, float, float]]:
        """(k, images wrong at top k, ends of the 95 % interval of that error) for the k that say something."""
        for k in (1, 5) if len(self.run.class_names) > 5 else (1,):
            wrong = int((~self.is_right(k)).sum())
            yield k, wrong, *metrics.confidence_interval(wrong, len(self.labels))

    def worst_classes(self) -> list[tuple[str, int, int, int]]:
        """The rows of `by_class` that have images, the largest top-1 error first."""
        return sorted((row for row in self.by_class() if row[1]), key=lambda row: row[2] / row[1], reverse=True)

    def by_class(self) -> Iterator[tuple[str, int, int, int]]:
        """(name, images, wrong at top 1, wrong at top 5) of each class."""
        names, chosen = self.run.class_names, (slice(None), ~self.is_right(1), ~self.is_right(5))
        counts = [np.bincount(self.labels[images], minlength=len(names)).tolist() for images in chosen]
        yield from zip(names, *counts, strict=True)


def evaluate_run(
    path: Path,
    split: str = "test",
    checkpoint: str = "latest",
    views: int | None = None,
    data_dir: str | None = None,
    prepared_dir: str | None = None,
) -> Evaluation:
    """Evaluates a run; see `load_run` for path and checkpoint, `open_run_dataset` for the last two.

    `views` are those that a prediction is averaged over; None for those of the run's tests.
    """
    run = load_run(path, checkpoint)
    return evaluate(run, open_run_dataset(run, data_dir, prepared_dir), split, views)


def open_run_dataset(run: TrainedRun, data_dir: str | None = None, prepared_dir: str | None = None) -> Dataset:
    """The data of a run, prepared anew if need be.

    Args:
      run: whose config says which.
      data_dir, prepared_dir: where they are by now, in place of `config.data.dir` and `config.data.prepared_dir`.

    Raises UserError if they have other classes by now; other images are a warning.
    """
    config = run.config.copy_and_resolve_references()
    for key, value in (("dir", data_dir), ("prepared_dir", prepared_dir)):
        if value is not None:
            config.data[key] = value
    check(config.to_dict())
    dataset = open_dataset(config.data)
    if dataset.class_names != run.class_names:
        raise UserError(
            f"{config.data.name} in {dataset.directory} has other classes than the run in {run.path}: "
            f"{_difference(run.class_names, dataset.class_names)}"
        )
    if run.content not in ("", dataset.content):
        console.warn(f"the images of {config.data.name} have changed since the run")
    return dataset


def _difference(old: Sequence[str], new: Sequence[str]) -> str:
    """The first class that differs, or how many there are."""
    for number, (before, now) in enumerate(zip(old, new, strict=False)):
        if before != now:
            return f"class {number} is {now!r}, not {before!r}"
    return f"{len(new)}, not {len(old)}"


def evaluate(run: TrainedRun, dataset: Dataset, split: str, views: int | None = None) -> Evaluation:
    """Answers for every image of a split, on all devices. Raises UserError for a split that there is not."""
    if split not in dataset.splits:
        raise UserError(f"--split={split}: {run.config.data.name} has {', '.join(dataset.splits)}")
    use_compilation_cache(run.config.compilation_cache_dir)
    devices, records = data_parallel(), dataset.splits[split]
    views = run.config.test_views if views is None else views
    step = make_predictions_step(run.model, run.preprocessing, views, devices.axes)
    program = devices.compile_eval_step(step, by_image=True)
    params, batch_stats = devices.place((run.params, run.batch_stats))
    parts: list[dict[str, np.ndarray]] = []
    with console.work_progress(f"evaluating {split}", len(records.labels)) as progress:
        batch_size = devices.round_up(run.config.eval_batch_size)
        for batch in eval_batches(records, batch_size=batch_size, num_threads=run.config.data.num_threads):
            answers = devices.batch_on_host(program(params, batch_stats, devices.shard(batch)))
            parts.append({name: values[batch["mask"]] for name, values in answers.items()})
            count = int(batch["mask"].sum())
            progress.advance(count, count)
    whole = (np.concatenate([part[name] for part in parts]) for name in ("prediction", "probability", "loss"))
    files = json.loads((dataset.directory / f"{split}_files.json").read_text())
    return Evaluation(run, split, views, files, np.asarray(records.labels), *whole)
