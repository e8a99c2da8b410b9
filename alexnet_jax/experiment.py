"""From a config to what it describes: data, network, optimizer, devices and compiled steps. Assembled here alone."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import metrics
from alexnet_jax.augment import Preprocessing
from alexnet_jax.data.dataset import Dataset, get_dataset
from alexnet_jax.data.loader import TrainSource, eval_batches, make_train_source
from alexnet_jax.data.preparation import Storing
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.errors import UserError
from alexnet_jax.models.alexnet import AlexNet, get_model
from alexnet_jax.models.summary import LayerSummary, summarize, trace_shapes
from alexnet_jax.optimizer import make_optimizer
from alexnet_jax.parallel import hosts
from alexnet_jax.parallel.compilation import use_compilation_cache
from alexnet_jax.parallel.devices import Devices, make_devices
from alexnet_jax.run_plan import RunPlan
from alexnet_jax.schedules import LearningRates
from alexnet_jax.steps import make_eval_step, make_train_step
from alexnet_jax.system import console
from alexnet_jax.system.signals import raise_on_sigterm
from alexnet_jax.train_state import TrainState, create_train_state, init_variables

Evaluate = Callable[[Any, Any, str], Iterator[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes. It holds no state: a run keeps that.

    Attributes:
      config: see configs/alexnet.py.
      dataset: images with labels.
      model, layers: the network and the table of its layers.
      devices: where it is trained.
      preprocessing: from stored images to the network's input.
      plan: the length of a run and its pauses.
      source: of training batches.
      optimizer: the update rule.
      train_step: (state, batch) -> (new state, metric sums), on all devices.
      evaluate, test: the sums of a split; they differ in the views that a prediction is averaged over.
    """

    config: ConfigDict
    dataset: Dataset
    model: AlexNet
    layers: list[LayerSummary]
    devices: Devices
    preprocessing: Preprocessing
    plan: RunPlan
    source: TrainSource
    optimizer: optax.GradientTransformationExtraArgs
    train_step: Any
    evaluate: Evaluate
    test: Evaluate

    @classmethod
    def create(cls, config: ConfigDict, dataset: Dataset) -> "Experiment":
        """Raises UserError for what does not suit the data or the devices."""
        model = get_model(config.model, dataset.num_classes)
        devices = make_devices(config.parallel, model)
        preprocessing = make_preprocessing(config.data, dataset.statistics)
        source = make_train_source(config.data, dataset.splits["train"], devices.memory_bytes)
        shapes, _ = trace_shapes(model, config.data.crop)
        optimizer = make_optimizer(config.optimizer, shapes["params"])
        micro_batches, smoothing = config.parallel.micro_batches, config.label_smoothing
        step = make_train_step(model, optimizer, preprocessing, devices.axes, micro_batches, smoothing)
        evaluate = make_evaluate(config, model, dataset, preprocessing, devices)
        views = config.test_views
        return cls(
            config=config,
            dataset=dataset,
            model=model,
            layers=summarize(model, config.data.crop),
            devices=devices,
            preprocessing=preprocessing,
            plan=RunPlan.create(config, len(dataset.splits["train"].labels), devices.batch_shards),
            source=source,
            optimizer=optimizer,
            train_step=devices.compile_train_step(step, source.resident),
            evaluate=evaluate,
            test=evaluate if views == 1 else make_evaluate(config, model, dataset, preprocessing, devices, views),
        )

    def init_state(self, variables: dict[str, Any] | None = None) -> TrainState:
        """The state before the first step, on the devices; its parameters are drawn by the seed if none are given."""
        if variables is None:
            variables = init_variables(self.model, self.config.data.crop, self.config.seed)
        return self.devices.place(create_train_state(variables, self.optimizer, self.config.seed))

    def make_learning_rates(self) -> LearningRates:
        """What decides the learning rates of a run, before its first epoch."""
        shapes, _ = trace_shapes(self.model, self.config.data.crop)
        return make_learning_rates(self.config, shapes["params"])

    def with_learning_rates(self, state: TrainState, learning_rates: Any) -> TrainState:
        """The state with the learning rate of each array, {layer: {parameter: float}}, for the next step."""
        scalars = jax.tree.map(np.float32, learning_rates)
        return dataclasses.replace(state, learning_rates=self.devices.place(scalars))


def open_experiment(config: ConfigDict, dataset: Dataset | None = None) -> Experiment:
    """What `config` describes, its data prepared. Raises UserError for what is wrong with it, before that if possible.

    In each process of many; all but the first are silent from here on. `dataset` is that of `config.data`, if it is
    open already.
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


def check_names(config: ConfigDict) -> None:
    """Raises UserError for a name that does not exist in a checked config, without looking at the data."""
    shapes, _ = trace_shapes(get_model(config.model, num_classes=1), config.data.crop)
    make_optimizer(config.optimizer, shapes["params"])
    make_learning_rates(config, shapes["params"])
    make_preprocessing(config.data, Statistics.unknown(config.data.image_size))


def make_learning_rates(config: ConfigDict, params: Any) -> LearningRates:
    """What decides the learning rates of a run with these parameters, or shapes of parameters."""
    return LearningRates(config.optimizer, config.batch_size, config.epochs, params)


def make_storing(data: ConfigDict) -> Storing:
    """How `config.data` wants images stored."""
    return Storing(**{field.name: getattr(data, field.name) for field in dataclasses.fields(Storing)})


def open_dataset(data: ConfigDict) -> Dataset:
    """The data set of `config.data`, prepared first if need be; SIGTERM then raises Terminated."""
    with raise_on_sigterm():
        return get_dataset(data.name, data.dir, data.prepared_dir, data.synthetic_examples, make_storing(data))


def make_preprocessing(data: ConfigDict, statistics: Statistics) -> Preprocessing:
    """What `config.data` says of it, completed by what was measured on the training images."""
    if data.mean_form != "channel" and data.mean is not None:
        raise UserError(
            f"config.data.mean is one number a channel; config.data.mean_form={data.mean_form!r} takes none"
        )
    measured = {
        "mean": statistics.mean if data.mean_form == "channel" else statistics.mean_image,
        "pca_std": statistics.pca_std,
        "pca_vectors": statistics.pca_vectors,
    }
    given = {field.name: getattr(data, field.name) for field in dataclasses.fields(Preprocessing)}
    arrays = {
        name: np.asarray(values if given[name] is None else given[name], np.float32)
        for name, values in measured.items()
    }
    return Preprocessing(**{**given, **arrays})


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
