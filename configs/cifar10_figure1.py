"""Figure 1 of the paper: epochs until ReLU and tanh reach 25 % training error on CIFAR-10.

`--config=configs/cifar10_figure1.py:CHOICES`, CHOICES as in configs/alexnet.py: cifar10 or folder, and a network. The
paper specifies neither the network ("a particular four-layer convolutional network") nor the learning rates ("chosen
independently to make training as fast as possible"); "no regularization of any kind was employed". Two networks of the
source qualify: cifar_19pct, with four layers of weights, and cifar_13pct, which section 3.3 calls a four-layer CNN.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ALEXNET = Path(__file__).with_name("alexnet.py")
"""Run as a file, because the module `configs.alexnet` exists only in a checkout."""


def get_config(choices: str = "cifar10,cifar_19pct") -> ConfigDict:
    """The config for a data set and a network, without regularisation."""
    config: ConfigDict = runpy.run_path(str(ALEXNET))["get_config"](choices)
    config.update({"batch_size": 32, "epochs": 20.0})  # small batches need fewer epochs, few enough for a CPU
    config.stop_at_train_error = 0.25
    config.model.dropout_rate = 0.0
    config.data.update({"cropping": "centre", "mirror": False, "color_noise": 0.0})
    config.optimizer.update({"weight_decay": 0.0, "weight_decay_overrides": (), "schedule": "constant"})
    return config
