"""`python -m alexnet_jax predict RUN photo.jpg|folder|-`: the likeliest classes of images. No data set is needed."""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.cli.arguments import run_parser
from alexnet_jax.data.layouts import SUFFIXES, images_below
from alexnet_jax.errors import UnreadableImagesError, UserError
from alexnet_jax.inference.imagenet import english_name, title
from alexnet_jax.inference.loaded_run import TrainedRun, load_run
from alexnet_jax.system import console
from alexnet_jax.system.files import csv_line
from alexnet_jax.system.signals import ends_after_signal

Answer = dict[str, Any]
"""The predictions for an image: "file", and "predictions": class, label and probability, the most probable first."""


def main(argv: list[str]) -> None:
    """Prints the likeliest classes of each image. Raises UnreadableImagesError at the end if some could not be read."""
    parser = run_parser("predict", __doc__, views=True)
    parser.add_argument("images", nargs="+", help="image files, folders of them, or - for one from standard input")
    parser.add_argument("--top", type=int, default=5, help="classes to name, 5 by default")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="prints one object a line: file, predictions")
    form.add_argument("--csv", action="store_true", help="prints a row a class: file, rank, class, label, probability")
    options = parser.parse_args(argv)
    if options.top < 1:
        raise UserError(f"--top={options.top} must be at least 1")
    files = list(_find(options.images))
    with contextlib.redirect_stdout(sys.stderr):  # warnings must not mix with predictions that a program reads
        run = load_run(options.run, options.checkpoint)
    show = _show_json if options.json else _show_csv if options.csv else _show_tables
    unreadable: list[str] = []
    with ends_after_signal():
        show(_answers(run, files, options.top, options.views, unreadable))
    if unreadable:
        raise UnreadableImagesError(f"{len(unreadable)} of {len(files)} images could not be read")


def _find(names: Sequence[str]) -> Iterator[str]:
    """The files that the names mean: image files, - for standard input, and the images of folders, sorted."""
    for name in names:
        path = Path(name)
        if path.is_dir():
            skipped: Counter[str] = Counter()
            files = sorted(images_below(path, skipped))
            if not files:
                raise UserError(f"{name} holds no image file ({' '.join(SUFFIXES)})")
            for kind, count in sorted(skipped.items()):
                print("skipped:", console.printable(f"{count:,} {kind} in {name}"), file=sys.stderr)
            yield from files
        elif name == "-" or path.exists():
            yield name
        else:
            raise UserError(f"{name}: no such file or folder")


def _answers(
    run: TrainedRun, files: Sequence[str], top: int, views: int | None, unreadable: list[str]
) -> Iterator[Answer]:
    """Predicts a batch at a time. Reports files that cannot be read on stderr and adds them to `unreadable`."""
    most = run.config.eval_batch_size
    for first in range(0, len(files), most):
        images: list[np.ndarray] = []
        readable: list[str] = []
        for file in files[first : first + most]:
            try:
                images.append(run.resize(sys.stdin.buffer.read() if file == "-" else file))
                readable.append(file)
            except UserError as error:
                print("skipped:", console.printable(str(error)), file=sys.stderr)
                unreadable.append(file)
        if images:
            probabilities = run.predict(np.stack(images), views)
            if not np.isfinite(probabilities).all():
                raise UserError(f"{run.path}: the network predicts NaN; its weights are unusable")
            for file, of_image in zip(readable, probabilities, strict=True):
                yield {"file": file, "predictions": top_predictions(run, of_image, top)}


def top_predictions(run: TrainedRun, probabilities: np.ndarray, top: int) -> list[dict[str, Any]]:
    """The `top` most probable classes of one image; of equally probable ones the lower label comes first."""
    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return [{"class": run.outputs[k], "label": k, "probability": float(probabilities[k])} for k in order]


def _show_tables(answers: Iterator[Answer]) -> None:
    for answer in answers:
        console.show(console.printable(answer["file"]), style="bold")
        predictions = answer["predictions"]
        names = [console.printable(title(prediction["class"])) for prediction in predictions]
        for name, prediction in zip(names, predictions, strict=True):
            bar = "█" * round(30 * prediction["probability"])
            console.show(f"  {name:<{max(map(len, names))}}  {prediction['probability']:>6.1%}  {bar}".rstrip())


def _show_json(answers: Iterator[Answer]) -> None:
    for answer in answers:
        predictions = [
            {**prediction, "name": english_name(prediction["class"])} for prediction in answer["predictions"]
        ]
        print(json.dumps({**answer, "predictions": predictions}), flush=True)


def _show_csv(answers: Iterator[Answer]) -> None:
    is_terminal = sys.stdout.isatty()
    for row in _csv_rows(answers):
        print(console.printable(csv_line(row)) if is_terminal else csv_line(row))


def _csv_rows(answers: Iterator[Answer]) -> Iterator[list[Any]]:
    yield ["file", "rank", "class", "label", "probability"]
    for answer in answers:
        for rank, prediction in enumerate(answer["predictions"], start=1):
            row = [prediction["class"], prediction["label"], f"{prediction['probability']:.6g}"]
            yield [answer["file"], rank, *row]
