"""The HTML report on a run, whether it is finished, still running or has crashed."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.checkpoint import newest_metadata
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.storage import read_images
from alexnet_jax.errors import UserError, check_keys, reason
from alexnet_jax.fidelity.decisions import REFERENCES, explain
from alexnet_jax.inference import report_figures, report_page
from alexnet_jax.inference.activations import activation_statistics, nearest_neighbours
from alexnet_jax.inference.evaluation import Evaluation, evaluate, open_run_dataset
from alexnet_jax.inference.loaded_run import TrainedRun, load_run
from alexnet_jax.inference.training_batch import first_training_images
from alexnet_jax.run.metrics_log import find_fault, read_metrics, read_timing
from alexnet_jax.run.record_kinds import check_metrics, check_timing
from alexnet_jax.system import console
from alexnet_jax.system.files import read_json
from alexnet_jax.system.versions import shell_command

SHOWN, WORST, QUERIES, NEIGHBOURS = 8, 8, 5, 6
"""Images shown: with predictions, as worst mistakes, as queries of the neighbour search; and neighbours of each."""

MOST_CLASSES = 30
"""Most rows of the confusion matrix and of the table of errors: the classes with the most mistakes."""

MOST_SEARCHED, MOST_MEASURED = 10_000, 1_000
"""Most training images among which neighbours are searched, and most images over which activations are measured."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the report: a function of report_figures, the data that it draws, and a caption."""

    name: str
    text: str
    draw: Callable[..., None]
    data: tuple[Any, ...]

    def png(self, theme: str = "light") -> bytes:
        """Draws the figure and returns the content of a PNG file."""
        return report_figures.render(self.draw, self.data, theme)

    def html(self) -> str:
        """The figure as HTML, for light and dark screens, with its caption."""
        return report_page.figure(self.png("light"), self.png("dark"), self.text)


Part = str | Figure
"""A piece of a section: HTML or a figure."""

Records = Mapping[str, Sequence[Mapping[str, Any]]]
"""The records of metrics.jsonl by kind; an empty list for a kind without records."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report: title, one line of summary, and the parts of each section by its heading."""

    title: str
    summary: str
    sections: Mapping[str, Sequence[Part]]

    def figures(self) -> Iterator[Figure]:
        """Yields all figures, in order."""
        for parts in self.sections.values():
            yield from (part for part in parts if isinstance(part, Figure))

    def html(self) -> str:
        """The report as one HTML page."""
        content = {
            name: "".join(part if isinstance(part, str) else part.html() for part in parts)
            for name, parts in self.sections.items()
        }
        return report_page.page(self.title, self.summary, content)


def make_report(
    workdir: Path,
    checkpoint: str = "tested",
    data_dir: str | None = None,
    prepared_dir: str | None = None,
    labels: str = "",
) -> Report:
    """Collects everything that is shown about a run.

    Without a checkpoint or without the images, the report says so and contains the rest.

    Args:
      workdir: the run folder.
      checkpoint: see `load_run`.
      data_dir, prepared_dir, labels: see `open_run_dataset`.

    Raises UserError if the folder holds no run.
    """
    config, versions = _read_config(workdir), _read_json(workdir / "versions.json")
    check_keys(f"{workdir / 'versions.json'}", versions, {"command": list, "packages": dict})
    metrics, timing = read_metrics(workdir), read_timing(workdir)
    check_metrics(workdir / "metrics.jsonl", metrics)
    check_timing(workdir / "timing.jsonl", timing)
    records = defaultdict(list)
    for record in metrics:
        records[record["kind"]].append(record)
    run, dataset, missing = None, None, ""
    try:
        run = load_run(workdir, checkpoint)
        dataset = open_run_dataset(run, data_dir, prepared_dir, labels)
    except UserError as error:
        missing = f"No {'images are' if run else 'network is'} shown: {error}."
        console.warn(missing)
    sections: dict[str, Sequence[Part]] = {"Training": [*_faults(workdir), *_training(records)]}
    if run:
        sections["First layer"] = [_kernels(run)]
    if run and dataset:
        sections["Training images"] = [_training_images(run, dataset)]
        split = "test" if records["test"] and "test" in dataset.splits else "validation"
        sections |= _predictions(evaluate(run, dataset, split), dataset)
    if missing:
        sections["Missing"] = [report_page.paragraph(missing)]
    sections["Time"] = [_timing(timing)]
    sections["Config"] = [_config(config)]
    if run:
        sections["Paper, source, Caffe and this run"] = [_fidelity(run)]
    sections["Versions"] = [_versions(versions)]
    return Report(f"Run {workdir.resolve().name}", _summary(config, records, dataset), sections)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path.parent} holds no run: {path.name} is missing")
    return read_json(path, dict)


def _read_config(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    stored = _read_json(path)
    try:
        config_lib.check(stored)
        return config_lib.complete(stored)
    except (KeyError, TypeError) as error:  # a section that is none
        raise UserError(f"{path} is damaged: {reason(error)}") from error


def _faults(workdir: Path) -> Iterator[Part]:
    """A paragraph on each file that is not as the run wrote it, which is also printed."""
    saved = newest_metadata(workdir / "checkpoints")
    faults = [find_fault(workdir, saved.get("records", ""))]
    for name in ("config", "versions"):
        path = workdir / f"{name}.json"
        if name in saved and read_json(path, dict) != saved[name]:
            why = "it was edited or damaged, or the run has been started again since"
            faults.append(f"{path} is not what the newest checkpoint says: {why}")
    for fault in filter(None, faults):
        console.warn(fault)
        yield report_page.paragraph(fault)


def _summary(config: Mapping[str, Any], records: Records, dataset: Dataset | None) -> str:
    what = f"{config['model']['preset']} on {config['data']['name']}"
    if dataset:
        what += ", " + ", ".join(f"{len(split.labels):,} {name}" for name, split in dataset.splits.items()) + " images"
    if records["test"]:
        last = records["test"][-1]
        top1, top5 = console.percent(last["top1_error"]), console.percent(last["top5_error"])
        return f"{what}. {last['split'].capitalize()} error: top-1 {top1}, top-5 {top5} ({last['count']:,} images)."
    if not records["epoch"]:
        return f"{what}. Not finished: no epoch has been evaluated yet."
    last = records["epoch"][-1]
    error = console.percent(last["validation_top1_error"])
    return f"{what}. Not finished: epoch {last['epoch']:.2f} of {config['epochs']:g}, validation top-1 error {error}."


def _training(records: Records) -> Iterator[Part]:
    if not records["start"]:
        yield report_page.paragraph("Nothing is recorded yet.")
        return
    size, drops = records["start"][0]["train_examples"], records["division"]
    losses = [(record["examples_seen"] / size, record["loss"]) for record in records["step"]]
    learning_rates = [(record["examples_seen"] / size, record["learning_rate"]) for record in drops]
    data = records["epoch"], losses, learning_rates, records["test"][-1] if records["test"] else {}
    text = "Errors and losses after each epoch. Dashed lines mark learning-rate drops, labelled with the new value."
    yield Figure("curves", text, report_figures.curves, data)
    pairs = zip(learning_rates, drops, strict=True)
    rows = [[f"{epoch:.2f}", f"{learning_rate:.3g}", drop["reason"]] for (epoch, learning_rate), drop in pairs]
    if rows:
        yield report_page.table(["epoch", "learning rate", "reason"], rows, numbers=(0, 1))


def _kernels(run: TrainedRun) -> Figure:
    name = run.layer_names[0]
    filters = np.asarray(run.params[name]["kernel"], np.float32)
    if filters.ndim == 2:  # the units of a fully connected layer see the whole image
        filters = filters.reshape(run.preprocessing.crop, run.preprocessing.crop, 3, -1)
    rows, columns, _, count = filters.shape
    text = f"The {count} kernels of {name}, {rows} x {columns} pixels, each scaled by its largest weight (Figure 3)."
    return Figure("kernels", text, report_figures.kernels, (filters,))


def _training_images(run: TrainedRun, dataset: Dataset) -> Figure:
    batch = first_training_images(run.config, run.preprocessing, dataset)
    text = f"The first {len(batch.images)} training images with their labels, augmented as the network saw them."
    return Figure("augmented", text, report_figures.training_images, batch)


def _predictions(evaluation: Evaluation, dataset: Dataset) -> dict[str, Sequence[Part]]:
    """The sections that need the images of the data set."""
    rng, count = np.random.default_rng(0), len(evaluation.labels)
    chosen = np.sort(rng.permutation(count)[:SHOWN])
    wrong = np.flatnonzero(~evaluation.is_right(1))
    worst = wrong[np.argsort(-evaluation.losses[wrong], kind="stable")][:WORST]
    sections: dict[str, Sequence[Part]] = {
        "Errors": list(_errors(evaluation)),
        "Predictions": [_pictures("predictions", evaluation, dataset, chosen, "chosen at random (Figure 4, left)")],
    }
    if len(worst):
        sections["Worst mistakes"] = [
            _pictures("mistakes", evaluation, dataset, worst, "whose labels got the lowest probabilities"),
            _mistakes(evaluation, worst.tolist()),
        ]
    if len(evaluation.run.layer_names) > 1:  # else the images are the input of the last layer
        sections["Neighbours"] = [_neighbours(evaluation, dataset, np.sort(rng.permutation(count)[:QUERIES]))]
    sections["Activations"] = [_activations(evaluation, dataset)]
    return sections


def _errors(evaluation: Evaluation) -> Iterator[Part]:
    count, run = len(evaluation.labels), evaluation.run
    views = f"{evaluation.views} view{'s' if evaluation.views > 1 else ''}"
    for k, wrong, low, high in evaluation.errors():
        yield report_page.paragraph(
            f"{evaluation.split.capitalize()}, checkpoint {run.examples_seen:,}, {views}: top-{k} error "
            f"{wrong / count:.2%} ({wrong:,} of {count:,} images wrong; 95 % interval {low:.2%} to {high:.2%})"
        )
    confused = np.argsort(-evaluation.mistakes(), kind="stable")[:MOST_CLASSES]
    shown = np.sort(confused)
    names = [run.class_names[number] for number in shown]
    few = "" if len(shown) == len(run.class_names) else f", for the {len(shown)} classes with the most mistakes"
    text = f"Confusion matrix: fraction of each class (row) by predicted class (column){few}."
    yield Figure("confusion", text, report_figures.confusion, (evaluation.confusion(shown), names))
    cells = [
        [name, f"{images:,}", f"{top1:,}", f"{top1 / images:.1%}", f"{top5:,}"]
        for name, images, top1, top5 in evaluation.worst_classes()
    ]
    header = ["class, highest error first", "images", "wrong", "top-1 error", "label not in the top five"]
    yield report_page.table(header, cells[:MOST_CLASSES], numbers=(1, 2, 3, 4))


def _pictures(name: str, evaluation: Evaluation, dataset: Dataset, ids: np.ndarray, which: str) -> Figure:
    run = evaluation.run
    images = read_images(dataset.splits[evaluation.split], ids)
    labels = [run.class_names[label] for label in evaluation.labels[ids]]
    predictions = [
        [(run.name_of(label), probability) for label, probability in evaluation.predictions(number)]
        for number in ids.tolist()
    ]
    text = f"{evaluation.split.capitalize()} images {which}, with their most probable classes; the label is green."
    return Figure(name, text, report_figures.predictions, (images, labels, predictions))


def _mistakes(evaluation: Evaluation, ids: Sequence[int]) -> str:
    """The files of mistakes, with their labels and predictions."""
    rows = []
    for number in ids:
        predicted, probability = next(evaluation.predictions(number))
        names = [evaluation.run.name_of(label) for label in (int(evaluation.labels[number]), predicted)]
        rows.append([evaluation.files[number], *names, f"{probability:.1%}"])
    return report_page.table(["file", "label", "prediction", "probability"], rows, numbers=(3,))


def _neighbours(evaluation: Evaluation, dataset: Dataset, ids: np.ndarray) -> Figure:
    run, train = evaluation.run, dataset.splits["train"]
    layer = run.layer_names[-2]  # the input of the last layer
    queries = read_images(dataset.splits[evaluation.split], ids)
    total = len(train.labels)
    searched = np.sort(np.random.default_rng(0).permutation(total)[:MOST_SEARCHED])
    near = nearest_neighbours(run, layer, queries, train, searched, min(NEIGHBOURS, len(searched)))
    pictures = read_images(train, near.ravel()).reshape(*near.shape, *queries.shape[1:])
    names = [[run.class_names[label] for label in train.labels[row]] for row in near]
    labels = [run.class_names[label] for label in evaluation.labels[ids]]
    among = f"{len(searched):,} of {total:,}" if len(searched) < total else f"{total:,}"
    text = (
        f"{evaluation.split.capitalize()} images (left) and, among {among} training images, those with the nearest "
        f"features in {layer}, the input of the last layer (Figure 4, right)."
    )
    return Figure("neighbours", text, report_figures.neighbours, (queries, labels, pictures, names))


def _activations(evaluation: Evaluation, dataset: Dataset) -> str:
    records = dataset.splits[evaluation.split]
    ids = np.arange(min(len(records.labels), MOST_MEASURED))
    rows = []
    for row in activation_statistics(evaluation.run, read_images(records, ids)):
        shape = " x ".join(map(str, row.shape))
        dead = "" if row.dead is None else f"{row.dead:,} of {row.shape[-1]:,}"
        rows.append([row.name, shape, f"{row.mean:.3g}", f"{row.std:.3g}", f"{row.zeros:.1%}", dead])
    header = ["activation", "shape", "mean", "std", "zeros", "dead"]
    text = report_page.paragraph(
        f"Over {len(ids):,} {evaluation.split} images. A dead feature is 0 everywhere in all of them.",
        faint=True,
    )
    return report_page.table(header, rows, numbers=(2, 3, 4, 5)) + text


def _timing(timing: Sequence[Mapping[str, Any]]) -> str:
    """The section on how the time of training was spent."""
    steps = [record for record in timing if "seconds" in record]
    seconds = sum(record["seconds"] for record in steps)
    if not seconds:
        return report_page.paragraph("Nothing is recorded yet.")
    images = sum(record["seconds"] * record["images_per_second"] for record in steps)
    waiting = sum(record["seconds"] * record["input_share"] for record in steps)
    evaluating, saving = (sum(r.get(key, 0.0) for r in timing) for key in ("evaluate_seconds", "save_seconds"))
    rows = {
        "training steps": f"{console.duration(seconds)}, {images / seconds:,.0f} images/s, without the first step",
        "of which waiting for images": f"{waiting / seconds:.1%}",
        "evaluation": console.duration(evaluating),
        "starting to save": console.duration(saving),
    }
    return report_page.facts(rows)


def _config(config: Mapping[str, Any]) -> str:
    rows = {f"config.{key}": repr(value) for key, value in config_lib.flatten(config)}
    return report_page.details(f"{len(rows)} keys", report_page.facts(rows))


def _fidelity(run: TrainedRun) -> str:
    """The decisions in which the run, the paper, its source and Caffe differ."""
    disputed = [row for row in explain(run.config, run.model) if row.is_disputed]
    cells = [
        [row.decision.name, str(row.this_run), *map(row.decision.text, REFERENCES), row.decision.cost]
        for row in disputed
    ]
    header = ["decision", "this run", "paper", "source", "Caffe", "effect on the error"]
    return report_page.details(f"{len(disputed)} decisions that differ", report_page.table(header, cells))


def _versions(versions: Mapping[str, Any]) -> str:
    names = {"Python": "python", "platform": "platform", "git": "git"}
    rows = {name: versions.get(key) or "unknown" for name, key in names.items()} | versions["packages"]
    command = shell_command([str(word) for word in versions["command"]])
    return report_page.code(command) + report_page.facts({name: str(value) for name, value in rows.items()})
