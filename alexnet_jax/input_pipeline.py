"""From records to batches of uint8 images in host memory: order, decoding in threads, batching, padding."""

import contextlib
import dataclasses
import io
from collections.abc import Generator
from typing import Any

import grain
import numpy as np
from PIL import Image, ImageOps

from alexnet_jax.datasets import Records
from alexnet_jax.errors import UserError

Batch = dict[str, np.ndarray]
"""image (uint8, [batch, size, size, 3]), label, id, epoch (int32, [batch]) and mask (bool, [batch])."""


def train_batches(
    records: Records, *, image_size: int, batch_size: int, seed: int, start_example: int, num_threads: int
) -> Generator[Batch]:
    """The endless stream of training batches from the given position on, decoded ahead of time in threads.

    Position p of the stream is in epoch p // n at place p % n of a permutation drawn from (seed, epoch), so neither
    threads nor interruptions nor the batch size change which example stands where.
    """
    examples = grain.MapDataset.source(_Examples(records, image_size)).seed(seed).shuffle().repeat()
    numbered = examples.map_with_index(lambda p, example: {**example, "epoch": np.int32(p // len(records))})
    batches = numbered[start_example:].batch(batch_size, drop_remainder=True)
    yield from _read(batches, num_threads)


def eval_batches(records: Records, *, image_size: int, batch_size: int, num_threads: int) -> Generator[Batch]:
    """Every record once, in order; the last batch is filled up with zeros that the mask leaves out."""
    batches = grain.MapDataset.source(_Examples(records, image_size)).batch(batch_size, drop_remainder=False)
    for batch in _read(batches, num_threads):
        missing = batch_size - len(batch["label"])
        padded = {name: np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1)) for name, values in batch.items()}
        yield {**padded, "mask": np.arange(batch_size) < batch_size - missing}


def _read(batches: grain.MapDataset, num_threads: int) -> Generator[Batch]:
    """Iterates with decoding threads that end when the consumer does."""
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4 * num_threads)
    with contextlib.closing(iter(batches.to_iter_dataset(options))) as iterator:
        yield from iterator


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Decoded examples by index; the index is the example's id."""

    records: Records
    image_size: int

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        try:
            image = decode_image(record["image"], self.image_size)
        except OSError as error:
            raise UserError(f"record {index} does not hold a readable image: {error}") from error
        return {"image": image, "label": np.int32(record["label"]), "id": np.int32(index)}


def decode_image(image: bytes | np.ndarray, size: int) -> np.ndarray:
    """An encoded or grey or oddly sized image as paper section 2 wants it: RGB, shorter side to `size`, central square.

    Returns:
      uint8, [size, size, 3].
    """
    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    else:
        picture = Image.open(io.BytesIO(image))
    picture = picture.convert("RGB")
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)
