"""A grid: learning rates, with two momenta."""

from typing import Any


def get_space() -> dict[str, dict[str, Any]]:
    """Keys of the config and what they are tried at."""
    return {
        "optimizer.learning_rate": {"values": [0.003, 0.01, 0.03]},
        "optimizer.momentum": {"values": [0.5, 0.9]},
    }
