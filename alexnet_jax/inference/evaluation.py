"""Evaluation of a trained run: loss, errors and a prediction for every image of a split."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import metrics
from alexnet_jax.data.arrays import ARRAYS
from alexnet_jax.data.dataset import BUILT_IN, PUBLISHED, Dataset, find_prepared
from alexnet_jax.data.loader import eval_batches
from alexnet_jax.data.manifest import damaged_error
from alexnet_jax.data.storage import Records
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import make_storage_options, open_dataset
from alexnet_jax.inference.loaded_run import TrainedRun, load_run
from alexnet_jax.parallel.compilation import use_compilation_cache
from alexnet_jax.parallel.devices import data_parallel
from alexnet_jax.steps import make_predictions_step
from alexnet_jax.system import console
from alexnet_jax.system.files import read_json


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Predictions for every image of a split.

    Attributes:
      run: the trained network.
      split: "train", "validation" or "test".
      views: number of views (crops and mirror images) whose probabilities were averaged.
      files: name of each image.
      labels: true classes, int32, [images].
      predicted: the five most probable classes, the most probable first, int32, [images, min(5, classes)]; -1 where the
        network returned NaN.
      probabilities: the probabilities of `predicted`, float32, same shape.
      losses: cross-entropy of each image in nats, float32, [images].
    """

    run: TrainedRun
    split: str
    views: int
    files: Sequence[str]
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray

    @property
    def summary(self) -> dict[str, Any]:
        """Mean loss, and top-1 and top-5 errors in [0, 1]; see `metrics.summarize`."""
        correct = {f"top{k}_correct": int(self.is_right(k).sum()) for k in (1, 5)}
        totals = {"loss_sum": float(self.losses.sum(dtype=np.float64)), **correct, "count": len(self.labels)}
        return metrics.summarize(totals, len(self.run.class_names))

    def predictions(self, number: int) -> Iterator[tuple[int, float]]:
        """The (class, probability) pairs of one image, the most probable class first."""
        return zip(self.predicted[number].tolist(), self.probabilities[number].tolist(), strict=True)

    def is_right(self, k: int) -> np.ndarray:
        """Whether the label is among the k most probable classes, bool, [images]."""
        return (self.predicted[:, :k] == self.labels[:, None]).any(axis=1)

    def mistakes(self) -> np.ndarray:
        """The number of images of each class taken for another class, or of others for it, int, [classes].

        Images predicted as an unused output of the network, or as none because of NaN, are left out.
        """
        classes, top1 = len(self.run.class_names), self.predicted[:, 0]
        wrong = (top1 >= 0) & (top1 < classes) & (top1 != self.labels)
        return np.bincount(self.labels[wrong], minlength=classes) + np.bincount(top1[wrong], minlength=classes)

    def confusion(self, classes: np.ndarray) -> np.ndarray:
        """The confusion matrix of some classes: image counts by label (row) and prediction (column).

        Args:
          classes: labels in ascending order, int, [classes].

        Returns:
          The counts, int, [classes, classes].
        """
        top1, counts = self.predicted[:, 0], np.zeros((len(classes), len(classes)), int)
        among = np.isin(self.labels, classes) & np.isin(top1, classes)
        np.add.at(counts, (np.searchsorted(classes, self.labels[among]), np.searchsorted(classes, top1[among])), 1)
        return counts

    def calibration_error(self, bins: int = 15) -> float:
        """The expected calibration error: the mean distance between top-1 probability and accuracy, over equal bins."""
        probability, right = self.probabilities[:, 0].astype(np.float64), self.is_right(1)
        chosen = np.minimum(np.nan_to_num(probability) * bins, bins - 1).astype(int)
        gaps = np.bincount(chosen, weights=right - np.nan_to_num(probability), minlength=bins)
        return float(np.abs(gaps).sum() / len(right))

    def scores(self) -> np.ndarray:
        """Precision, recall and F1 of each class, float64, [classes, 3]; 0 where there is nothing to divide by."""
        classes, top1 = len(self.run.class_names), self.predicted[:, 0]
        is_class = (top1 >= 0) & (top1 < classes)
        right = np.bincount(self.labels[self.is_right(1)], minlength=classes)
        predicted = np.bincount(top1[is_class], minlength=classes)
        labelled = np.bincount(self.labels, minlength=classes)
        pairs = ((right, predicted), (right, labelled), (2 * right, predicted + labelled))
        return np.stack([part / np.maximum(whole, 1) for part, whole in pairs], axis=1)

    def pairs(self) -> Iterator[tuple[str, str, int]]:
        """Yields the cells of the confusion matrix that are not 0: label, prediction, images."""
        cells, counts = np.unique(np.stack([self.labels, self.predicted[:, 0]]), axis=1, return_counts=True)
        for label, predicted, count in zip(*cells.tolist(), counts.tolist(), strict=True):
            yield self.run.name_of(label), self.run.name_of(predicted), count

    def errors(self) -> Iterator[tuple[int, int, float, float]]:
        """Yields (k, wrong images, lower and upper end of the error's 95 % interval): k = 1, and 5 of more classes."""
        for k in (1, 5) if len(self.run.class_names) > 5 else (1,):
            wrong = int((~self.is_right(k)).sum())
            yield k, wrong, *metrics.confidence_interval(wrong, len(self.labels))

    def worst_classes(self) -> list[tuple[str, int, int, int]]:
        """The rows of `by_class` that have images, the highest top-1 error first."""
        return sorted((row for row in self.by_class() if row[1]), key=lambda row: row[2] / row[1], reverse=True)

    def by_class(self) -> Iterator[tuple[str, int, int, int]]:
        """Yields (name, images, images wrong at top-1, images wrong at top-5) for each class."""
        names, chosen = self.run.class_names, (slice(None), ~self.is_right(1), ~self.is_right(5))
        counts = [np.bincount(self.labels[images], minlength=len(names)).tolist() for images in chosen]
        yield from zip(names, *counts, strict=True)


def evaluate_run(
    path: Path,
    split: str | None = None,
    checkpoint: str = "tested",
    views: int | None = None,
    data_dir: str | None = None,
    prepared_dir: str | None = None,
    labels: str = "",
) -> Evaluation:
    """Loads a run and evaluates it on one of its splits.

    Args:
      path, checkpoint: see `load_run`.
      split: the split to evaluate; see `evaluate`.
      views: number of views to average over; None for `config.test_views`.
      data_dir, prepared_dir, labels: see `open_run_dataset`.

    Raises UserError if the run, the data or the split cannot be used.
    """
    run = load_run(path, checkpoint)
    return evaluate(run, open_run_dataset(run, data_dir, prepared_dir, labels), split, views)


def open_run_dataset(
    run: TrainedRun, data_dir: str | None = None, prepared_dir: str | None = None, labels: str = ""
) -> Dataset:
    """Opens the data set of a run, and prepares it first if that is necessary and needs no more than `data_dir`.

    A run tells the name of its data set, never a place. Without `data_dir` the images are looked for among the prepared
    ones, by their content; TFDS is never asked, because a name alone makes it download data and run code.

    Args:
      run: the run whose config names the data set.
      data_dir: folder of the original images.
      prepared_dir: folder of prepared data sets; None for the default.
      labels: of the images in `data_dir`; see `config.data.labels`.

    Raises UserError if the images are not found, or the classes differ from the run's. Different images only cause a
    warning.
    """
    if labels and not data_dir:
        raise UserError(f"--labels={labels}: give --data-dir=FOLDER, too, the folder of the images with these labels")
    data = run.config.data.copy_and_resolve_references()
    data.update({"dir": data_dir or data.dir, "prepared_dir": prepared_dir or data.prepared_dir, "labels": labels})
    if data.name in BUILT_IN or (data_dir and (data.name in PUBLISHED or not data.name.startswith("tfds:"))):
        dataset = open_dataset(data)
    else:
        dataset = _find(run, data)
    if sorted(dataset.class_names) == sorted(run.class_names):
        dataset = _in_order_of(run, dataset)
    if dataset.class_names != run.class_names:
        raise UserError(
            f"the classes of {data.name} in {dataset.directory} differ from those of the run in {run.path}: "
            f"{_difference(run.class_names, dataset.class_names)}"
        )
    if run.content not in ("", dataset.content):
        console.warn(
            f"the images of {data.name} or their splits are not those of the run: "
            "some that are evaluated may be among those it was trained on"
        )
    return dataset


def _in_order_of(run: TrainedRun, dataset: Dataset) -> Dataset:
    """A data set of the run's classes with its labels in their order; classes of numbers were once sorted as text."""
    order = np.array([run.class_names.index(name) for name in dataset.class_names], np.int32)
    splits = {split: copy.copy(records) for split, records in dataset.splits.items()}
    for records in splits.values():
        records.labels = order[records.labels]
    return dataclasses.replace(dataset, splits=splits, class_names=run.class_names)


def _find(run: TrainedRun, data: ConfigDict) -> Dataset:
    """The prepared images of a run. Raises UserError, which says where they could be, if they are not there."""
    dataset = find_prepared(data.prepared_dir, run.content, make_storage_options(data))
    if dataset is None:
        originals = "--data-dir=FOLDER with the originals (evaluate needs --split=test, too)"
        if data.name == ARRAYS:
            originals = "train once more with the same arrays, which prepares them"
        elif data.name.startswith("tfds:") and data.name not in PUBLISHED:
            originals = "prepare them by the command prepare"
        raise UserError(
            f"the images of {run.path} ({data.name}) are not among those prepared in {data.prepared_dir}: "
            f"give --prepared-dir=FOLDER if they lie elsewhere, or {originals}"
        )
    return dataset


def _difference(old: Sequence[str], new: Sequence[str]) -> str:
    """Describes the first class that differs, or the two numbers of classes."""
    for number, (before, now) in enumerate(zip(old, new, strict=False)):
        if before != now:
            return f"class {number} is {now!r}, not {before!r}"
    return f"{len(new)} classes, not {len(old)}"


def evaluate(run: TrainedRun, dataset: Dataset, split: str | None = None, views: int | None = None) -> Evaluation:
    """Predicts every image of a split, on all devices.

    Args:
      run: the trained network.
      dataset: the data set of the run.
      split: the split to evaluate; None for the test split, or the validation split if there is no test split.
      views: number of views to average over; None for `config.test_views`.

    Raises UserError if the data set has no such split.
    """
    split = split or ("test" if "test" in dataset.splits else "validation")
    if split not in dataset.splits:
        raise UserError(f"--split={split}: {run.config.data.name} has {', '.join(dataset.splits)}")
    records, table = dataset.splits[split], dataset.directory / f"{split}_files.json"
    files = read_json(table, list)
    if len(files) != len(records.labels) or not all(isinstance(file, str) for file in files):
        raise damaged_error(dataset.directory, f"{table.name} (other files than its images)")
    views = run.config.test_views if views is None else views
    return Evaluation(
        run, split, views, files, np.asarray(records.labels), *predict_records(run, records, views, split)
    )


def predict_records(run: TrainedRun, records: Records, views: int, name: str) -> Iterator[np.ndarray]:
    """Predicts all images of a split, on all devices: `predicted`, `probabilities` and `losses` of an `Evaluation`."""
    use_compilation_cache(run.config.compilation_cache_dir)
    devices = data_parallel()
    step = make_predictions_step(run.model, run.preprocessing, views, devices.axes)
    program = devices.compile_eval_step(step, by_image=True)
    params, batch_stats = devices.place((run.params, run.batch_stats))
    batches: list[dict[str, np.ndarray]] = []
    with console.work_progress(f"evaluating {name}", len(records.labels)) as progress:
        batch_size = devices.round_up(run.config.eval_batch_size)
        for batch in eval_batches(records, batch_size=batch_size, num_threads=run.config.data.num_threads):
            outputs = devices.batch_on_host(program(params, batch_stats, devices.shard(batch)))
            batches.append({name: values[batch["mask"]] for name, values in outputs.items()})
            count = int(batch["mask"].sum())
            progress.advance(count, count)
    return (np.concatenate([batch[name] for batch in batches]) for name in ("prediction", "probability", "loss"))
