"""Evaluation of a trained run on any folder of images with labels, whose classes are matched by name."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.data.image_folder import ImageFolder
from alexnet_jax.data.sources import Original
from alexnet_jax.errors import UserError
from alexnet_jax.inference.evaluation import Evaluation, predict_records
from alexnet_jax.inference.loaded_run import TrainedRun
from alexnet_jax.system import console

MOST_NAMED = 10
"""Classes that a message names."""


class _FileRecords:
    """The images of files as `Records`: they are read and resized when they are needed, and never stored."""

    is_compressed = True

    def __init__(self, run: TrainedRun, paths: Sequence[Path], labels: np.ndarray):
        self.labels, self.image_size, self._run, self._paths = labels, run.config.data.image_size, run, paths
        self.unreadable: dict[int, str] = {}

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        """Reads images into `out`; one that cannot be read is black, and its error is kept in `unreadable`."""
        for index, pixels in zip(map(int, indices), out, strict=True):
            try:
                pixels[:] = self._run.resize(self._paths[index])
            except UserError as error:
                pixels[:], self.unreadable[index] = 0, str(error)


def evaluate_folder(run: TrainedRun, folder: Path, labels: str = "", views: int | None = None) -> Evaluation:
    """Predicts every image of a folder with labels, or of its test or validation split if it has one.

    Classes are matched with the run's by name. Images of others and images that cannot be read are left out, and named.

    Args:
      run: the trained network.
      folder, labels: see `ImageFolder`.
      views: number of views to average over; None for `config.test_views`.

    Returns:
      The evaluation. Its split is called after the folder and its place, so that its tables replace no others.

    Raises UserError if no image is left.
    """
    source = ImageFolder(str(folder), labels, is_for_training=False)
    images = [original for chunk in source.chunks() for original in source.read(chunk)]
    for split in ("test", "validation"):
        if chosen := [image for image in images if image.split == split]:
            console.show(f"{folder} has splits: its {split} images are evaluated")
            images = chosen
            break
    else:
        console.show(f"all images of {folder} are evaluated; for the held-out ones of the run's own add --split=test")
    for remark in source.remarks:
        console.show(remark)
    images = _known(run, folder, images, source.class_names)
    numbers = {name: number for number, name in enumerate(run.class_names)}
    truth = np.array([numbers[source.class_names[image.label]] for image in images], np.int32)
    records = _FileRecords(run, [folder / image.file for image in images], truth)
    views = run.config.test_views if views is None else views
    columns = list(predict_records(run, records, views, folder.name))
    for number in sorted(records.unreadable):
        console.warn(f"left out: {records.unreadable[number]}")
    kept = [number for number in range(len(images)) if number not in records.unreadable]
    if not kept:
        raise UserError(f"{folder}: none of its {len(images):,} images can be read")
    name = f"{folder.resolve().name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
    return Evaluation(
        run, name, views, [images[n].file for n in kept], truth[kept], *(column[kept] for column in columns)
    )


def _known(run: TrainedRun, folder: Path, images: Sequence[Original], names: Sequence[str]) -> list[Original]:
    """The images whose class the run has; names the other classes. Raises UserError if no image is left."""
    known = set(run.class_names)
    counts = Counter(names[image.label] for image in images)
    unknown = [f"{name} ({counts[name]:,})" for name in names if name in counts and name not in known]
    found = ", ".join(unknown[:MOST_NAMED]) + (f" and {len(unknown) - MOST_NAMED:,} more" * (len(unknown) > MOST_NAMED))
    kept = [image for image in images if names[image.label] in known]
    if not kept:
        has = f"its classes are {', '.join(run.class_names[:5])}{', ...' if len(known) > 5 else ''}"
        if found:
            raise UserError(f"{folder}: the run has none of its classes, {found}; {has}")
        raise UserError(f"{folder}: no images with labels; put them in folders of classes, or give --labels=TABLE")
    if found:
        console.warn(f"left out, as the run has no such class: {found}")
    return kept
