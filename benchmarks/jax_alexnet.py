"""This project's training step and forward pass, as `train_step.py` and `gpu.py` time them."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from alexnet_jax.augment import Preprocessing
from alexnet_jax.experiment import make_preprocessing
from alexnet_jax.inventory import Statistics
from alexnet_jax.models import AlexNet, get_model
from alexnet_jax.optimizer import make_learning_rates, make_optimizer
from alexnet_jax.parallel import CPU_OPTIONS, DataParallel
from alexnet_jax.steps import Batch, TrainStep, make_train_step
from alexnet_jax.train_state import TrainState, create_train_state, init_variables

MEAN = (123.7, 116.3, 103.5)  # grey levels of ImageNet; any would do


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training step is made of, and a batch of noise, not yet on a device."""

    model: AlexNet
    optimizer: optax.GradientTransformationExtraArgs
    preprocessing: Preprocessing
    state: TrainState
    batch: dict[str, np.ndarray]

    @classmethod
    def create(cls, config: ConfigDict) -> "Training":
        """As `train.py` would have it in the first epoch."""
        batch_size, classes, size = config.batch_size, config.model.num_classes, config.data.image_size
        model = get_model(config.model, classes)
        variables = init_variables(model, config.data.crop, config.seed)
        optimizer = make_optimizer(config.optimizer, variables["params"])
        rates = make_learning_rates(config.optimizer, variables["params"])(0.0, config.optimizer.learning_rate)
        # No preset that is timed has colour noise, so nothing else of the statistics is used.
        mean_image = np.full((size, size, 3), MEAN, np.float32)
        known = dataclasses.replace(Statistics.unknown(size), mean=MEAN, mean_image=mean_image)
        fresh = create_train_state(variables, optimizer, config.seed)
        generator = np.random.default_rng(0)
        batch = {
            "image": generator.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8),
            "label": generator.integers(0, min(classes, 10), batch_size, dtype=np.int32),  # few are soon learned
            "id": np.arange(batch_size, dtype=np.int32),
            "epoch": np.zeros(batch_size, np.int32),
        }
        state = dataclasses.replace(fresh, learning_rates=jax.tree.map(np.float32, rates))
        return cls(model, optimizer, make_preprocessing(config.data, known), state, batch)

    def compile(self) -> tuple[TrainStep, TrainState, Batch]:
        """The step as the loop compiles it for one device, with state and batch there."""
        devices = DataParallel.create(1)
        step = make_train_step(self.model, self.optimizer, self.preprocessing, devices.axis)
        return devices.compile_train_step(step), devices.replicate(self.state), devices.shard(self.batch)


def load_steps(config: ConfigDict, training: bool) -> Callable[[int], None]:
    """Returns what does so many training steps, or forward passes in testing, on one batch that is on the device."""
    return _training(config) if training else _forward(config)


def _training(config: ConfigDict) -> Callable[[int], None]:
    """The training step on bytes."""
    step, state, batch = Training.create(config).compile()

    def run(steps: int) -> None:
        nonlocal state
        pending = None
        for _ in range(steps):
            state, sums = step(state, batch)
            jax.device_get(pending)  # one step late, as the loop does
            pending = sums
        jax.block_until_ready((state, pending))

    return run


def _forward(config: ConfigDict) -> Callable[[int], None]:
    """Logits of float32 crops in testing, on the CPU."""
    model = get_model(config.model, config.model.num_classes)
    variables = init_variables(model, config.data.crop, config.seed)
    apply = jax.jit(lambda variables, images: model.apply(variables, images)[0])
    shape = (config.batch_size, config.data.crop, config.data.crop, 3)
    crops = jax.numpy.asarray(np.random.default_rng(0).normal(scale=70, size=shape).astype(np.float32))
    forward = apply.lower(variables, crops).compile(compiler_options=CPU_OPTIONS)  # as every step of the package

    def run(steps: int) -> None:
        for _ in range(steps):
            jax.block_until_ready(forward(variables, crops))

    return run
