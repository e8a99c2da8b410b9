"""A random search over settings of the optimizer and the dropout rate."""

from typing import Any


def get_space() -> dict[str, dict[str, Any]]:
    """Config keys and the ranges from which their values are drawn."""
    return {
        "optimizer.learning_rate": {"log_uniform": (0.0003, 0.1)},
        "optimizer.momentum": {"uniform": (0.5, 0.98)},
        "optimizer.weight_decay": {"log_uniform": (1e-5, 1e-2)},
        "model.dropout_rate": {"uniform": (0.0, 0.7)},
    }
