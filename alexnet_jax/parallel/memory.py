"""What to do when the memory of a device is exhausted: one line that names a batch that should fit."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from alexnet_jax.errors import UserError

USABLE_FRACTION = 0.9
"""Of free memory: the rest is fragmented, or is taken by other programs, like that of an evaluation."""


def _advise(reason: str) -> str:
    return (
        f"the memory of a device does not suffice ({reason}): give a smaller config.batch_size or "
        "config.eval_batch_size, or more config.parallel.micro_batches"
    )


@contextlib.contextmanager
def exhaustion_in_a_line(explain: Callable[[str], str] = _advise) -> Iterator[None]:
    """Raises UserError where a device's memory is exhausted; `explain` makes its text of the first line of XLA's."""
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
    """Says how many images should fit into the memory that was free, by compiling for two smaller batches.

    Args:
      batch: the shapes that did not fit, with their shardings.
      image_axis: the axis of images in each of them.
      free_bytes: memory of a device before the call.
      memory_of: XLA's analysis of the memory of the program for a batch of other shapes, which it compiles.
      batch_key: the config's name for the size of a batch.
    """
    images = min(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in batch.values())
    whole = batch["label" if "label" in batch else "id"]
    text = f"the memory of a device ({free_bytes / 1e9:.2f} GB free) does not suffice for {images} images at once: "
    if images == 1:
        return text + "a smaller network or crop might"

    def extra_bytes(fewer: int) -> int:
        memory = memory_of({name: _resized(leaf, image_axis, fewer, images) for name, leaf in batch.items()})
        return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes

    few, more = max(images // 4, 1), max(images // 2, 2)
    of_few, of_more = extra_bytes(few), extra_bytes(more)
    fitting = few + int((USABLE_FRACTION * free_bytes - of_few) / max((of_more - of_few) / (more - few), 1))
    fitting = max(min(fitting, images * 3 // 4), 1)  # what failed is no guide to the last image
    return f"{text}{fitting} should fit. Give config.{batch_key}={fitting * math.prod(whole.shape) // images}" + (
        " or more config.parallel.micro_batches" if batch_key == "batch_size" else ""
    )


def _resized(leaf: jax.ShapeDtypeStruct, axis: int, images: int, of: int) -> jax.ShapeDtypeStruct:
    shape = (*leaf.shape[:axis], leaf.shape[axis] * images // of, *leaf.shape[axis + 1 :])
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)
