"""Selection of code by platform, and computation in chunks of a batch that fit into the CPU's cache."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from jax import export, lax
from jaxtyping import Array, Float

from alexnet_jax.ops.windows import NHWC

CHUNK_BYTES = 24 << 20
"""Memory of a chunk of a batch: small enough for the CPU's cache, large enough for efficient matrix products."""

_fast_compilation = contextvars.ContextVar("fast_compilation", default=False)


@contextlib.contextmanager
def fast_compilation(wanted: bool = True) -> Iterator[None]:
    """Context in which `by_platform` uses XLA's operations, which on the CPU are slower but compile 10 times faster.

    With `wanted` false it does not, also inside such a context.
    """
    token = _fast_compilation.set(wanted)
    try:
        yield
    finally:
        _fast_compilation.reset(token)


def by_platform(*arrays: Array, default: Callable[..., Any], **by_name: Callable[..., Any]) -> Any:
    """Calls the function given for the platform, "cpu" or "tpu", and `default` where none is.

    `default` is also used inside `fast_compilation`, and for a symbolic batch size, which cannot be cut into chunks.
    """
    if _fast_compilation.get() or any(map(export.is_symbolic_dim, arrays[0].shape[:1])):
        return default(*arrays)
    return lax.platform_dependent(*arrays, default=default, **by_name)


def map_chunks(function: Callable[..., Array], image_bytes: int, *arrays: NHWC) -> NHWC:
    """Applies a function that treats each image separately to a batch, one chunk at a time; see `chunks`."""
    outputs = lax.map(lambda chunk: function(*chunk), chunks(image_bytes, *arrays))
    return outputs.reshape(-1, *outputs.shape[2:])[: len(arrays[0])]


def chunks(image_bytes: int, *arrays: NHWC) -> tuple[Float[Array, "chunks images _height _width _channel"], ...]:
    """Splits arrays of a batch into chunks of equal size, the last one padded with zeros.

    Args:
      image_bytes: memory that the computation needs per image; a chunk needs at most CHUNK_BYTES, or is one image.
      *arrays: arrays of the same batch.
    """
    batch = len(arrays[0])
    most = max(1, min(batch, CHUNK_BYTES // image_bytes))
    images = min(range(most, most // 2, -1), key=lambda images: -batch % images)
    filled = [jnp.pad(array, ((0, -batch % images), (0, 0), (0, 0), (0, 0))) for array in arrays]
    return tuple(array.reshape(-1, images, *array.shape[1:]) for array in filled)
