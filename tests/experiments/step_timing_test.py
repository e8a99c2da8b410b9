"""FLOPs of a training step against counts by hand, and the timings at a small size."""

import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.experiments import step_timing
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.presets import PRESETS
from alexnet_jax.models.summary import summarize
from alexnet_jax.parallel.devices import data_parallel
from configs import alexnet

CONV1 = 55 * 55 * 96 * (11 * 11 * 3)
OTHERS = (
    27 * 27 * 256 * (5 * 5 * 48)
    + 13 * 13 * 384 * (3 * 3 * 256)
    + 13 * 13 * 384 * (3 * 3 * 192)
    + 13 * 13 * 256 * (3 * 3 * 192)
    + 6 * 6 * 256 * 4096
    + 4096 * 4096
    + 4096 * 1000
)
"""Multiply-accumulates of Caffe's layers: outputs times inputs of each."""


def test_the_work_of_caffe() -> None:
    layers = summarize(AlexNet(**PRESETS["caffe"]), 227)
    forward, kernels, inputs = 2 * (CONV1 + OTHERS), 2 * (CONV1 + OTHERS), 2 * OTHERS
    assert step_timing.training_flops(layers) == forward + kernels + inputs
    assert step_timing.optimizer_bytes(layers) == 60_965_224 * 4 * (3 + 2)


def test_steps_train_and_each_has_its_time() -> None:
    training = step_timing.RandomTraining(alexnet.get_config("synthetic,lenet,smoke"))
    before = np.asarray(training.state.params["fc5"]["kernel"])
    assert before.shape[1] == 1000
    for steps in (1, 3):
        seconds = training.run(steps)
        assert len(seconds) == steps and min(seconds) > 0
    after = np.asarray(training.state.params["fc5"]["kernel"])
    assert np.isfinite(after).all() and (after != before).any()


def test_a_batch_must_divide_by_the_devices() -> None:
    config = alexnet.get_config("synthetic,lenet,smoke")
    config.batch_size = 15
    with pytest.raises(UserError, match=r"config\.batch_size=15.* 2 "):
        step_timing.RandomTraining(config)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rates_of_the_devices(dtype: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_timing, "MATRIX_SIDE_ON_CPU", 64)
    monkeypatch.setattr(step_timing, "VECTOR_LENGTH", 1024)
    devices = data_parallel(2)
    assert step_timing.matmul_flops(devices, dtype) > 0
    assert step_timing.memory_bandwidth(devices) > 0
