"""Random arrays with a normal distribution, for tests."""

import numpy as np


def normal64(seed: int, *shape: int, std: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=std, size=shape)


def normal32(seed: int, *shape: int, std: float = 1.0) -> np.ndarray:
    return normal64(seed, *shape, std=std).astype(np.float32)
