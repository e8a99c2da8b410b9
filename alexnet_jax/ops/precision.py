"""The precision of sums."""

import numpy as np
from jaxtyping import Array


def sum_type(x: Array) -> np.dtype:
    """The type in which values of x, or their products, are summed: at least float32."""
    return np.promote_types(x.dtype, np.float32)
