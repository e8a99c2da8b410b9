"""A grid search over three learning rates and two momenta."""

from typing import Any


def get_space() -> dict[str, dict[str, Any]]:
    """Config keys and the values to try."""
    return {
        "optimizer.learning_rate": {"values": [0.003, 0.01, 0.03]},
        "optimizer.momentum": {"values": [0.5, 0.9]},
    }
