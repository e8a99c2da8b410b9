"""Builds what a config describes: data set, network, optimizer, devices and compiled steps. No other module does."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import metrics
from alexnet_jax.augment import Preprocessing
from alexnet_jax.data.arrays import ARRAYS, Arrays
from alexnet_jax.data.balance import loss_weights, sampled_fractions
from alexnet_jax.data.dataset import Dataset, get_dataset
from alexnet_jax.data.loader import TrainSource, eval_batches, make_train_source
from alexnet_jax.data.preparation import StorageOptions
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
from alexnet_jax.system.signals import ends_after_signal, raise_on_sigterm
from alexnet_jax.train_state import TrainState, create_train_state, init_variables

Data = Dataset | Arrays
"""What a run may be given to train on: a data set that is open, or arrays."""

Evaluate = Callable[[Any, Any, str], Iterator[dict[str, Any]]]
"""(params, batch_stats, split) -> the metric totals after each batch; the last are those of the whole split."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run that a config describes. They do not change while it trains; the state is the run's.

    Attributes:
      config: see configs/alexnet.py.
      dataset: images with labels.
      model, layers: the network, and the shapes and costs of its layers.
      devices: the devices that train it.
      preprocessing: turns stored images into the network's input.
      plan: length of the run, and its evaluations and checkpoints.
      source: yields training batches.
      optimizer: the update rule.
      train_step: (state, batch) -> (new state, metric sums), compiled for all devices.
      evaluate, test: metric totals of a split; `test` averages predictions over `config.test_views` views, `evaluate`
        takes the central one.
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
        """Builds all parts. Raises UserError if the config does not suit the data or the devices."""
        model = get_model(config.model, dataset.num_classes)
        devices = make_devices(config.parallel, model)
        preprocessing = make_preprocessing(config.data, dataset.statistics)
        source = make_train_source(config.data, dataset.splits["train"], devices.memory_bytes)
        shapes, _ = trace_shapes(model, config.data.crop)
        optimizer = make_optimizer(config.optimizer, shapes["params"])
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
            **_make_steps(config, model, dataset, preprocessing, devices, source, optimizer),
        )

    def with_statistics(self, measured: Mapping[str, Any]) -> "Experiment":
        """The experiment with the statistics of the images in a checkpoint; warns if those of the data set differ."""
        own = self.preprocessing.measured
        changed = [name for name, array in measured.items() if not np.array_equal(array, own[name])]
        if not changed:
            return self
        console.warn(f"{', '.join(changed)} of {self.dataset.directory} differ from those of the run, which are kept")
        new = dataclasses.replace(self.preprocessing, **measured)
        steps = _make_steps(self.config, self.model, self.dataset, new, self.devices, self.source, self.optimizer)
        return dataclasses.replace(self, preprocessing=new, **steps)

    def init_state(self, variables: dict[str, Any] | None = None) -> TrainState:
        """The state before the first step, on the devices, with these variables or with ones drawn from the seed."""
        if variables is None:
            variables = init_variables(self.model, self.config.data.crop, self.config.seed)
        return self.devices.place(create_train_state(variables, self.optimizer, self.config.seed))

    @property
    def class_shares(self) -> np.ndarray:
        """Fraction of the training loss that each class makes up if all are predicted alike, [classes]; sums to 1."""
        fractions, weights = _class_balance(self.config.data, self.dataset)
        return fractions if weights is None else fractions * weights

    def make_learning_rates(self) -> LearningRates:
        """The learning-rate rules of the run, as they stand before its first epoch."""
        shapes, _ = trace_shapes(self.model, self.config.data.crop)
        return make_learning_rates(self.config, shapes["params"])

    def with_learning_rates(self, state: TrainState, learning_rates: Any) -> TrainState:
        """The state with these learning rates, {layer: {parameter: float}}, for the next step."""
        scalars = jax.tree.map(np.float32, learning_rates)
        return dataclasses.replace(state, learning_rates=self.devices.place(scalars))


def _make_steps(
    config: ConfigDict,
    model: AlexNet,
    dataset: Dataset,
    preprocessing: Preprocessing,
    devices: Devices,
    source: TrainSource,
    optimizer: optax.GradientTransformationExtraArgs,
) -> dict[str, Any]:
    """The compiled steps of an experiment: `train_step`, `evaluate` and `test`."""
    micro_batches, smoothing = config.parallel.micro_batches, config.label_smoothing
    _, weights = _class_balance(config.data, dataset)
    step = make_train_step(model, optimizer, preprocessing, devices.axes, micro_batches, smoothing, weights)
    evaluate = make_evaluate(config, model, dataset, preprocessing, devices)
    views = config.test_views
    test = evaluate if views == 1 else make_evaluate(config, model, dataset, preprocessing, devices, views)
    return {"train_step": devices.compile_train_step(step, source.resident), "evaluate": evaluate, "test": test}


def _class_balance(data: ConfigDict, dataset: Dataset) -> tuple[np.ndarray, np.ndarray | None]:
    """Fraction of the training examples that each class makes up, and the weight of its losses; None for none."""
    fractions = sampled_fractions(dataset.splits["train"].labels, data.sampling, dataset.num_classes)
    return fractions, loss_weights(data.class_weights, fractions, dataset.class_names)


def open_experiment(config: ConfigDict, data: Data | None = None) -> Experiment:
    """Checks `config`, prepares its data set and builds the experiment.

    Each process of a run calls it; from here on only process 0 prints.

    Args:
      config: see configs/alexnet.py.
      data: the data set of `config.data`, if it is already open, or arrays, of which `config.data.name` then tells.

    Raises UserError for a mistake in the config; where possible, before the images are prepared.
    """
    if data is not None and not isinstance(data, Dataset):
        config = config.copy_and_resolve_references()
        config.data.name = ARRAYS
    config_lib.check(config.to_dict())
    if not hosts.is_main():
        console.silence()
    use_compilation_cache(config.compilation_cache_dir)
    check_names(config)  # before the data are prepared, which may take long
    with hosts.together():
        dataset = data if isinstance(data, Dataset) else open_dataset(config.data, data)
    hosts.check_same("settings", config_lib.shared(config.to_dict()))
    hosts.check_same("images", dataset.content)
    return Experiment.create(config, dataset)


def check_names(config: ConfigDict) -> None:
    """Raises UserError if a checked config names a layer, parameter or schedule that does not exist; opens no data."""
    shapes, _ = trace_shapes(get_model(config.model, num_classes=1), config.data.crop)
    make_optimizer(config.optimizer, shapes["params"])
    make_learning_rates(config, shapes["params"])
    make_preprocessing(config.data, Statistics.unknown(config.data.image_size))


def make_learning_rates(config: ConfigDict, params: Any) -> LearningRates:
    """The learning-rate rules of `config` for a tree of parameters or of their shapes."""
    return LearningRates(config.optimizer, config.batch_size, config.epochs, params)


def make_storage_options(data: ConfigDict) -> StorageOptions:
    """The part of `config.data` that decides how images are prepared and stored."""
    return StorageOptions(**{field.name: getattr(data, field.name) for field in dataclasses.fields(StorageOptions)})


def open_dataset(data: ConfigDict, arrays: Arrays | None = None) -> Dataset:
    """Opens the data set of `config.data`, preparing it if necessary; meanwhile SIGTERM raises Terminated."""
    with raise_on_sigterm(), ends_after_signal():
        options = make_storage_options(data)
        places = data.name, data.dir, data.prepared_dir
        return get_dataset(*places, data.synthetic_examples, options, data.labels, arrays)


def make_preprocessing(data: ConfigDict, statistics: Statistics) -> Preprocessing:
    """The preprocessing of `config.data`; statistics that it leaves out are those of the training images."""
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
    """Returns an evaluation that averages each prediction over `views` views of the image; see `Evaluate`."""
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
