"""What tests of the training step share."""

from typing import Any

import jax
from ml_collections import ConfigDict

from alexnet_jax.augment import Preprocessing
from alexnet_jax.models import AlexNet, get_model
from alexnet_jax.optimizer import make_optimizer
from alexnet_jax.train import make_preprocessing
from configs import alexnet


def setup(choices: str) -> tuple[ConfigDict, AlexNet, Any, Preprocessing]:
    """Config, model, optimizer and preprocessing of a training step."""
    config = alexnet.get_config(choices)
    model = get_model(config.model, num_classes=10)
    data = config.data
    images = jax.ShapeDtypeStruct((1, data.crop, data.crop, 3), "float32")
    optimizer = make_optimizer(config.optimizer, jax.eval_shape(model.init, jax.random.key(0), images)["params"])
    return config, model, optimizer, make_preprocessing(data)
