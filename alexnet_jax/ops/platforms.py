"""What the CPU computes in another way than accelerators: which of two functions is compiled, and batches in chunks."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax.numpy as jnp
from jax import export, lax
from jaxtyping import Array, Float

from alexnet_jax.ops.windows import NHWC

CHUNK_BYTES = 24 << 20
"""Size of a chunk of a batch: small enough for the CPU's cache, large enough for efficient matrix products."""

_fast_compilation = contextvars.ContextVar("fast_compilation", default=False)


@contextlib.contextmanager
def fast_compilation(wanted: bool = True) -> Iterator[None]:
    """Inside, use XLA's operations: slower on the CPU, but they compile 10 times faster; worth it for few images."""
    token = _fast_compilation.set(wanted)
    try:
        yield
    finally:
        _fast_compilation.reset(token)


def by_platform(*arrays: Array, cpu: Callable[..., Array], default: Callable[..., Array]) -> Array:
    """`cpu` of the arrays on the CPU, `default` elsewhere, in `fast_compilation` and for a batch of symbolic size.

    A batch of symbolic size cannot be cut into chunks.
    """
    if _fast_compilation.get() or export.is_symbolic_dim(arrays[0].shape[0]):
        return default(*arrays)
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)


def map_chunks(function: Callable[..., Array], image_bytes: int, *arrays: NHWC) -> NHWC:
    """`function` of the batch, which treats each image by itself, computed chunk by chunk; see `chunks`."""
    outputs = lax.map(lambda chunk: function(*chunk), chunks(image_bytes, *arrays))
    return outputs.reshape(-1, *outputs.shape[2:])[: len(arrays[0])]


def chunks(image_bytes: int, *arrays: NHWC) -> tuple[Float[Array, "chunks images _height _width _channel"], ...]:
    """Arrays of a batch in chunks of equally many images, the last one filled up with zeros.

    Args:
      image_bytes: memory that the computation takes for one image; a chunk takes at most CHUNK_BYTES, or is one image.
      *arrays: of the same batch.
    """
    batch = len(arrays[0])
    most = max(1, min(batch, CHUNK_BYTES // image_bytes))
    images = min(range(most, most // 2, -1), key=lambda images: -batch % images)
    filled = [jnp.pad(array, ((0, -batch % images), (0, 0), (0, 0), (0, 0))) for array in arrays]
    return tuple(array.reshape(-1, images, *array.shape[1:]) for array in filled)
