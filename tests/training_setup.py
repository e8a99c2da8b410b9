"""What tests of the training step share."""

from typing import Any

import jax
from ml_collections import ConfigDict

from alexnet_jax.models import AlexNet, get_model
from alexnet_jax.optimizer import make_optimizer
from configs import alexnet


def setup(choices: str) -> tuple[ConfigDict, AlexNet, Any, dict[str, Any]]:
    """Config, model, optimizer and the options of `make_train_step`."""
    config = alexnet.get_config(choices)
    model = get_model(config.model, num_classes=10)
    data = config.data
    images = jax.ShapeDtypeStruct((1, data.crop, data.crop, 3), "float32")
    optimizer = make_optimizer(config.optimizer, jax.eval_shape(model.init, jax.random.key(0), images)["params"])
    return config, model, optimizer, {"crop": data.crop, "mirror": data.mirror, "mean": data.mean, "std": data.std}
