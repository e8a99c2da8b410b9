"""Out-of-memory errors of devices, in one line that names a batch size that should fit."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from alexnet_jax.errors import UserError

USABLE_FRACTION = 0.9
"""Fraction of free memory to plan with; the rest is fragmented or needed by other programs, like the evaluation."""


def _advise(reason: str) -> str:
    return (
        f"a device is out of memory ({reason}): give a smaller config.batch_size or config.eval_batch_size, "
        "or more config.parallel.micro_batches"
    )


@contextlib.contextmanager
def out_of_memory_as_user_error(explain: Callable[[str], str] = _advise) -> Iterator[None]:
    """Turns XLA's error that a device is out of memory into a UserError.

    Args:
      explain: makes the text of the UserError from the first line of XLA's.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(explain(str(error).partition("\n")[0][:200])) from error


def explain(
    batch: dict[str, jax.ShapeDtypeStruct],
    image_axis: int,
    free_bytes: int,
    memory_of: Callable[[dict[str, jax.ShapeDtypeStruct]], Any],
    batch_key: str,
) -> str:
    """Estimates how many images fit into memory, by compiling the program for two smaller batches.

    Args:
      batch: the shapes that did not fit, with their shardings.
      image_axis: the image axis of these shapes.
      free_bytes: free memory of a device before the call.
      memory_of: compiles the program for a batch of other shapes and returns XLA's memory analysis.
      batch_key: the config key of the batch size.

    Returns:
      The error message, which names a batch size that should fit.
    """
    images = min(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in batch.values())
    whole = batch["label" if "label" in batch else "id"]
    text = f"the memory of a device ({free_bytes / 1e9:.2f} GB free) is too small for {images} images at once: "
    if images == 1:
        return text + "choose a smaller network or crop"

    def extra_bytes(fewer: int) -> int:
        memory = memory_of({name: _resized(leaf, image_axis, fewer, images) for name, leaf in batch.items()})
        return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes

    few, more = max(images // 4, 1), max(images // 2, 2)
    few_bytes, more_bytes = extra_bytes(few), extra_bytes(more)
    image_bytes = max((more_bytes - few_bytes) / (more - few), 1)
    fitting = few + int((USABLE_FRACTION * free_bytes - few_bytes) / image_bytes)
    fitting = max(min(fitting, images * 3 // 4), 1)  # the estimate is not exact near the batch that failed
    return f"{text}{fitting} should fit. Give config.{batch_key}={fitting * math.prod(whole.shape) // images}" + (
        " or more config.parallel.micro_batches" if batch_key == "batch_size" else ""
    )


def _resized(leaf: jax.ShapeDtypeStruct, axis: int, images: int, of: int) -> jax.ShapeDtypeStruct:
    shape = (*leaf.shape[:axis], leaf.shape[axis] * images // of, *leaf.shape[axis + 1 :])
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)
