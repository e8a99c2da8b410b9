"""The first training images of a run, augmented as the network sees them."""

from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.augment import Preprocessing, visible
from alexnet_jax.data.balance import BALANCED
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.loader import training_order
from alexnet_jax.data.storage import read_images
from alexnet_jax.experiment import Experiment
from alexnet_jax.inference import report_figures
from alexnet_jax.parallel import hosts
from alexnet_jax.run.metrics_log import MetricWriter
from alexnet_jax.steps import Batch, augmented
from alexnet_jax.train_state import training_key

SHOWN = 32


class TrainingBatch(NamedTuple):
    """Augmented training images, uint8, [SHOWN, crop, crop, 3], and the label of each.

    That of a mixed image is the first label with its weight, then the other: "70% cat, dog".
    """

    images: np.ndarray
    labels: list[str]

    def png(self) -> bytes:
        """The content of a PNG file that shows the batch."""
        return report_figures.render(report_figures.training_images, self, "light")


def first_training_images(config: ConfigDict, preprocessing: Preprocessing, dataset: Dataset) -> TrainingBatch:
    """The first SHOWN images of the first epoch, with the random numbers of training; the mean is added back."""
    records = dataset.splits["train"]
    balanced = records.labels if config.data.sampling == BALANCED else None
    batch = next(training_order(len(records.labels), SHOWN, config.seed, start_example=0, balanced=balanced))
    batch |= {"image": read_images(records, batch["id"]), "label": records.labels[batch["id"]]}

    @jax.jit
    def augment(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        crops, partners, weights, _ = augmented(preprocessing, training_key(config.seed), batch)
        return visible(preprocessing, crops), partners, weights

    images, partners, weights = jax.device_get(augment(batch))
    names = dataset.class_names
    labels = [
        names[own] if weight > 0.995 else f"{weight:.0%} {names[own]}, {names[other]}"
        for own, other, weight in zip(batch["label"], partners, weights, strict=True)
    ]
    return TrainingBatch(images, labels)


def log_images(experiment: Experiment, writer: MetricWriter) -> None:
    """Shows the first training images in TensorBoard, if `config.log_images` asks for it."""
    if experiment.config.log_images and hosts.is_main():
        batch = first_training_images(experiment.config, experiment.preprocessing, experiment.dataset)
        writer.write_picture("augmented training images", 0, batch.png())
