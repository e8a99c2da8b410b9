"""Figure 1 of the paper: how soon ReLU and tanh reach 25 % training error on CIFAR-10.

`--config=configs/cifar10_figure1.py:CHOICES`, CHOICES as in configs/alexnet.py: cifar10 or folder, and a network. The
paper names neither ("a particular four-layer convolutional network") nor its rates ("chosen independently to make
training as fast as possible"); "no regularization of any kind was employed". The source's two candidates are
cifar_19pct, four layers with weights, and cifar_13pct, what section 3.3 calls a four-layer CNN.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ALEXNET = Path(__file__).with_name("alexnet.py")
"""Read as a file, because it is `configs.alexnet` in a checkout alone."""


def get_config(choices: str = "cifar10,cifar_19pct") -> ConfigDict:
    """The configuration for a data set and a network, without anything that regularises."""
    config: ConfigDict = runpy.run_path(str(ALEXNET))["get_config"](choices)
    config.update({"batch_size": 32, "epochs": 20.0})  # small batches need fewer epochs, so that a CPU can do it
    config.stop_at_train_error = 0.25
    config.model.dropout_rate = 0.0
    config.data.update({"cropping": "centre", "mirror": False, "color_noise": 0.0})
    config.optimizer.update({"weight_decay": 0.0, "weight_decay_overrides": (), "schedule": "constant"})
    return config
