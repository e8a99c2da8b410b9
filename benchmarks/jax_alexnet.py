"""This project's training step and forward pass, as `train_step.py` and `gpu.py` time them."""

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.experiments.step_timing import RandomTraining
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.parallel.compilation import CPU_OPTIONS
from alexnet_jax.train_state import init_variables


def load_steps(config: ConfigDict, training: bool) -> Callable[[int], object]:
    """Creates a function that runs a number of training steps, or forward passes, on one batch on the device."""
    return RandomTraining(config).run if training else _forward(config)


def _forward(config: ConfigDict) -> Callable[[int], None]:
    """Creates forward passes in testing on float32 crops, on the CPU."""
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
