"""Ranges to draw from: the optimizer's settings, and dropout."""

from typing import Any


def get_space() -> dict[str, dict[str, Any]]:
    """Keys of the config and what they are tried at."""
    return {
        "optimizer.learning_rate": {"log_uniform": (0.0003, 0.1)},
        "optimizer.momentum": {"uniform": (0.5, 0.98)},
        "optimizer.weight_decay": {"log_uniform": (1e-5, 1e-2)},
        "model.dropout_rate": {"uniform": (0.0, 0.7)},
    }
