"""From a config to the data, the preprocessing and the evaluation that it describes."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import metrics
from alexnet_jax.augment import Preprocessing
from alexnet_jax.datasets import Dataset, get_dataset
from alexnet_jax.errors import UserError
from alexnet_jax.input_pipeline import (
    Batch,
    choose_residence,
    eval_batches,
    load_into_memory,
    train_batches,
    training_order,
)
from alexnet_jax.inventory import Statistics
from alexnet_jax.machine import memory_bytes
from alexnet_jax.models import AlexNet
from alexnet_jax.parallel import Devices
from alexnet_jax.preparation import Storing
from alexnet_jax.shards import Records
from alexnet_jax.steps import make_eval_step
from alexnet_jax.stop_signals import raise_on_sigterm

MEASURED = ("mean", "pca_std", "pca_vectors")
"""The parts of a Preprocessing that may come from the training images; a checkpoint holds them."""

Evaluate = Callable[[Any, Any, str], Iterator[dict[str, Any]]]


def make_storing(data: ConfigDict) -> Storing:
    """How `config.data` wants images stored."""
    return Storing(**{field.name: getattr(data, field.name) for field in dataclasses.fields(Storing)})


def open_dataset(data: ConfigDict) -> Dataset:
    """The data set of `config.data`, prepared first if need be; SIGTERM then raises Terminated."""
    with raise_on_sigterm():
        return get_dataset(data.name, data.dir, data.prepared_dir, data.synthetic_examples, make_storing(data))


def make_preprocessing(data: ConfigDict, statistics: Statistics) -> Preprocessing:
    """What `config.data` says of it, completed by what was measured on the training images."""
    if data.mean_form == "channel":
        mean = statistics.mean if data.mean is None else data.mean
    elif data.mean is not None:
        raise UserError(
            f"config.data.mean is one number a channel; config.data.mean_form={data.mean_form!r} takes none"
        )
    else:
        mean = statistics.mean_image
    return Preprocessing(
        crop=data.crop,
        cropping=data.cropping,
        mirror=data.mirror,
        mean=np.asarray(mean, np.float32),
        mean_form=data.mean_form,
        std=data.std,
        color_noise=data.color_noise,
        color_noise_form=data.color_noise_form,
        color_noise_until_epoch=data.color_noise_until_epoch,
        pca_std=np.asarray(statistics.pca_std if data.pca_std is None else data.pca_std, np.float32),
        pca_vectors=np.asarray(statistics.pca_vectors if data.pca_vectors is None else data.pca_vectors, np.float32),
    )


@dataclasses.dataclass(frozen=True)
class TrainSource:
    """Where training batches come from.

    Attributes:
      batches: from start_example=POSITION to this process's rows of all batches after it.
      residence: where the images lie: "disk", "host" or "device".
      resident: images and labels for the devices to hold, of which the step looks up those of a batch; None otherwise.
    """

    batches: Callable[..., Generator[Batch]]
    residence: str
    resident: dict[str, np.ndarray] | None


def make_train_source(config: ConfigDict, records: Records, devices: Devices) -> TrainSource:
    """Decides where training images lie and how batches are made of them."""
    data, batch_size = config.data, config.batch_size
    stream: dict[str, Any] = {"batch_size": batch_size, "seed": config.seed, "rows": devices.rows(batch_size)}
    residence = choose_residence(data.residence, records, devices.memory_bytes, memory_bytes())
    if residence == "device":
        in_memory = load_into_memory(records, data.num_threads)
        batches: Any = functools.partial(training_order, len(records.labels), **stream)
        return TrainSource(batches, residence, {"image": in_memory.images, "label": in_memory.labels})
    if residence == "host":
        records = load_into_memory(records, data.num_threads)
    batches = functools.partial(train_batches, records, num_threads=data.num_threads, **stream)
    return TrainSource(batches, residence, None)


def make_evaluate(
    config: ConfigDict,
    model: AlexNet,
    dataset: Dataset,
    preprocessing: Preprocessing,
    devices: Devices,
    views: int = 1,
) -> Evaluate:
    """Returns (params, batch_stats, split) -> the totals after each batch; the last are those of the whole split."""
    batch_size = devices.round_up(config.eval_batch_size)
    step = devices.compile_eval_step(make_eval_step(model, preprocessing, views, devices.axes))

    def evaluate(params: Any, batch_stats: Any, split: str) -> Iterator[dict[str, Any]]:
        totals: dict[str, Any] = {}
        records, num_threads = dataset.splits[split], config.data.num_threads
        rows = devices.rows(batch_size)
        for batch in eval_batches(records, batch_size=batch_size, num_threads=num_threads, rows=rows):
            totals = metrics.add(totals, step(params, batch_stats, devices.shard(batch)))
            yield totals

    return evaluate
