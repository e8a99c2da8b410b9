"""Config, network, optimizer and preprocessing for tests of the training step."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.augment import Preprocessing
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.experiment import make_preprocessing
from alexnet_jax.models.alexnet import AlexNet, get_model
from alexnet_jax.optimizer import make_optimizer
from configs import alexnet


def plausible_statistics(image_size: int) -> Statistics:
    """The mean of the digits, the same everywhere, and ImageNet's colours (CC2 input_meta)."""
    mean = (78.0, 78.0, 78.0)
    return Statistics(
        mean_image=np.full((image_size, image_size, 3), mean, np.float32),
        mean=mean,
        std=(73.5, 71.7, 74.1),
        pca_std=(121.7801, 37.0939, 19.7208),
        pca_vectors=(
            (-0.56351045, -0.71257945, 0.41795513),
            (-0.5761844, -0.02354167, -0.81698062),
            (-0.59200296, 0.70119634, 0.39731118),
        ),
    )


def setup(choices: str) -> tuple[ConfigDict, AlexNet, Any, Preprocessing]:
    """Config, model, optimizer and preprocessing of a training step."""
    config = alexnet.get_config(choices)
    model = get_model(config.model, num_classes=10)
    data = config.data
    images = jax.ShapeDtypeStruct((1, data.crop, data.crop, 3), "float32")
    optimizer = make_optimizer(config.optimizer, jax.eval_shape(model.init, jax.random.key(0), images)["params"])
    return config, model, optimizer, make_preprocessing(data, plausible_statistics(data.image_size))
