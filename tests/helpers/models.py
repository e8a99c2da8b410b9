"""Small variants of the network."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from alexnet_jax.models.alexnet import AlexNet, get_model
from configs import alexnet


def small(preset: str, **changes: object) -> AlexNet:
    """The network of a preset with narrow hidden layers and 10 classes, for 67-pixel images."""
    config = alexnet.get_config().model
    config.update({"preset": preset, "hidden_width": 32, **changes})
    return get_model(config, num_classes=10)


def slow_unless(quick: set[str], presets: Iterable[str]) -> list[Any]:
    """Parameters of a test: the presets, all but the quick ones in the slow ring."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in presets]


def init(model: AlexNet, crop: int = 67) -> Any:
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, crop, crop, 3)))


@functools.cache
def variables_of(preset: str) -> Any:
    return init(small(preset))
