"""From a config to what it describes: data, network, devices, preprocessing, evaluation."""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import metrics
from alexnet_jax.augment import Preprocessing
from alexnet_jax.data.dataset import Dataset, get_dataset
from alexnet_jax.data.loader import (
    Batch,
    check_residence,
    choose_residence,
    eval_batches,
    load_into_memory,
    train_batches,
    training_order,
)
from alexnet_jax.data.preparation import Storing
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.data.storage import Records
from alexnet_jax.errors import UserError
from alexnet_jax.models.alexnet import AlexNet, LayerSummary, get_model
from alexnet_jax.optimizer import make_schedule
from alexnet_jax.parallel import hosts
from alexnet_jax.parallel.devices import Devices, make_devices, use_compilation_cache
from alexnet_jax.steps import make_eval_step
from alexnet_jax.system import console
from alexnet_jax.system.machine import memory_bytes
from alexnet_jax.system.signals import raise_on_sigterm

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
        mixup=data.mixup,
        pca_std=np.asarray(statistics.pca_std if data.pca_std is None else data.pca_std, np.float32),
        pca_vectors=np.asarray(statistics.pca_vectors if data.pca_vectors is None else data.pca_vectors, np.float32),
    )


@dataclasses.dataclass(frozen=True)
class TrainSource:
    """Where training batches come from.

    Attributes:
      records: the training split, in memory or on disk.
      residence: where its images lie: "disk", "host" or "device".
      resident: images and labels for the devices to hold, of which the step looks up those of a batch; None otherwise.
      num_threads: reading threads; 0 for one a core.
    """

    records: Records
    residence: str
    resident: dict[str, np.ndarray] | None
    num_threads: int

    def batches(self, start_example: int, *, batch_size: int, seed: int, rows: slice) -> Generator[Batch]:
        """These rows of all batches from a position on."""
        stream: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "start_example": start_example, "rows": rows}
        if self.resident is not None:
            return training_order(len(self.records.labels), **stream)
        return train_batches(self.records, num_threads=self.num_threads, **stream)


def make_train_source(data: ConfigDict, records: Records, devices: Devices) -> TrainSource:
    """Decides where training images lie, and brings them there."""
    residence, resident = choose_residence(data.residence, records, devices.memory_bytes, memory_bytes()), None
    if residence != "disk":
        records = in_memory = load_into_memory(records, data.num_threads)
        if residence == "device":
            resident = {"image": in_memory.images, "label": in_memory.labels}
    return TrainSource(records, residence, resident, data.num_threads)


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


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What runs have in common that differ in seed, rates and length alone.

    Attributes:
      dataset, model, devices, preprocessing: what the config describes.
      source: of the training images.
      evaluate, test: of the network, on a split; they differ in the views of an image.
    """

    dataset: Dataset
    model: AlexNet
    devices: Devices
    preprocessing: Preprocessing
    source: TrainSource
    evaluate: Evaluate
    test: Evaluate

    @classmethod
    def create(cls, config: ConfigDict, dataset: Dataset) -> "Experiment":
        """Raises UserError for what does not suit the data or the devices."""
        model = get_model(config.model, dataset.num_classes)
        devices = make_devices(config.parallel, model)
        preprocessing = make_preprocessing(config.data, dataset.statistics)
        source = make_train_source(config.data, dataset.splits["train"], devices)
        evaluate = make_evaluate(config, model, dataset, preprocessing, devices)
        views = config.test_views
        test = evaluate if views == 1 else make_evaluate(config, model, dataset, preprocessing, devices, views)
        return cls(dataset, model, devices, preprocessing, source, evaluate, test)

    def describe(self, config: ConfigDict, layers: Sequence[LayerSummary]) -> dict[str, str]:
        """What it consists of, name and text; `layers` are those of the network."""
        sizes = ", ".join(f"{len(records.labels):,} {split}" for split, records in self.dataset.splits.items())
        parameters, macs = (sum(getattr(row, field) for row in layers) for field in ("parameters", "macs"))
        devices, processes = self.devices.devices, hosts.count()
        places = {"disk": str(self.dataset.directory), "host": "memory", "device": "the device's memory"}
        return {
            "network": f"{config.model.preset}, {parameters:,} parameters, {macs:,} MACs an image",
            "data": f"{config.data.name}: {sizes}; {self.dataset.num_classes} classes",
            "images": f"{config.data.image_size} pixels, crops of {config.data.crop}, from "
            + places[self.source.residence],
            "devices": f"{len(devices)} x {devices[0].device_kind}, {self.devices.layout}, "
            f"{processes} process{'es' if processes > 1 else ''}; batch {config.batch_size}",
        }


def check_names(config: ConfigDict) -> None:
    """Raises UserError for a name that does not exist, without looking at the data."""
    get_model(config.model, num_classes=1)
    make_schedule(config.optimizer, config.epochs)
    make_preprocessing(config.data, Statistics.unknown(config.data.image_size))
    check_residence(config.data.residence)


def open_experiment(config: ConfigDict, dataset: Dataset | None = None) -> Experiment:
    """What `config` describes, its data prepared. Raises UserError for what is wrong with it, before that if possible.

    In each process of many; all but the first are silent from here on.
    """
    config_lib.check(config.to_dict())
    if not hosts.is_main():
        console.silence()
    use_compilation_cache(config.compilation_cache_dir)
    check_names(config)  # before the data are prepared, which may take long
    with hosts.together():
        dataset = open_dataset(config.data) if dataset is None else dataset
    hosts.check_same("settings", config_lib.shared(config.to_dict()))
    hosts.check_same("images", dataset.content)
    return Experiment.create(config, dataset)
