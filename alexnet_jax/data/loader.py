"""Batches of images: order, reading in threads, padding, and the cache of training images.

Training batches are read from disk, from host memory or from device memory.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config import check_value
from alexnet_jax.data.balance import BALANCED, balanced_epoch
from alexnet_jax.data.storage import InMemoryRecords, Records
from alexnet_jax.errors import UserError
from alexnet_jax.system.machine import available_cores, memory_bytes

HostBatch = dict[str, np.ndarray]
"""image (uint8, [batch, size, size, 3]), label, id, epoch, seen (int32, [batch]) and mask (bool, [batch]).

With balanced sampling, seen is how often the image was drawn before.
"""

ALL_ROWS = slice(None)

_CHUNK = 32  # images that a thread reads at a time
_AHEAD = 3  # batches in memory in addition to the one in use


def training_order(
    size: int,
    batch_size: int,
    seed: int,
    start_example: int,
    rows: slice = ALL_ROWS,
    balanced: np.ndarray | None = None,
) -> Generator[HostBatch]:
    """Yields training batches from a position of the endless stream of examples on, without images and labels.

    Position p of the stream is element p % size of the examples of epoch p // size, which the seed determines; see
    `epoch_examples`. So the order does not depend on threads, interruptions or the batch size. A batch may span two
    epochs or more.

    Args:
      size: number of training images.
      batch_size: examples in a batch, over all processes.
      seed: seed of the run.
      start_example: position of the first example.
      rows: the rows of each batch to yield: those of this process.
      balanced: see `epoch_examples`.
    """
    first_epoch, skipped = divmod(start_example, size)
    ahead: HostBatch = {}
    for number in itertools.count(first_epoch):
        epoch = {name: values[skipped:] for name, values in epoch_examples(size, seed, number, balanced).items()}
        skipped = 0
        ahead = {name: np.append(ahead[name], values) for name, values in epoch.items()} if ahead else epoch
        whole = len(ahead["id"]) // batch_size * batch_size
        for first in range(0, whole, batch_size):
            chosen = slice(first, first + batch_size)
            yield {name: values[chosen][rows] for name, values in ahead.items()}
        ahead = {name: values[whole:] for name, values in ahead.items()}


def epoch_examples(size: int, seed: int, epoch: int, balanced: np.ndarray | None) -> HostBatch:
    """Returns the examples of an epoch in their order, as many as there are images: "id" and "epoch".

    Args:
      size: number of training images.
      seed: seed of the run.
      epoch: number of the epoch.
      balanced: class of each image, to draw each class equally often; the result then has "seen", too. None: each image
        once.
    """
    if balanced is None:
        ids, more = epoch_order(size, seed, epoch), {}
    else:
        ids, seen = balanced_epoch(balanced, seed, epoch)
        more = {"seen": seen}
    return {"id": ids, "epoch": np.full_like(ids, epoch), **more}


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the ids of all images in the order of an epoch that has each once, int32, [size]."""
    return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)


def train_batches(
    records: Records,
    *,
    batch_size: int,
    seed: int,
    start_example: int,
    num_threads: int,
    rows: slice = ALL_ROWS,
    balanced: np.ndarray | None = None,
) -> Generator[HostBatch]:
    """Yields the batches of `training_order` with images and labels, read ahead in threads; 0 for one per core."""
    order = training_order(len(records.labels), batch_size, seed, start_example, rows, balanced)
    yield from _read(records, order, num_threads)


def eval_batches(
    records: Records, *, batch_size: int, num_threads: int, rows: slice = ALL_ROWS
) -> Generator[HostBatch]:
    """Yields every image once, in order; the last batch is padded with zeros, for which its mask is false."""
    size = len(records.labels)
    ids = (np.arange(first, first + batch_size, dtype=np.int32)[rows] for first in range(0, size, batch_size))
    length = len(range(batch_size)[rows])
    for batch in _read(records, ({"id": wanted[wanted < size]} for wanted in ids), num_threads):
        count = len(batch["id"])
        padded = {
            name: np.pad(values, [(0, length - count)] + [(0, 0)] * (values.ndim - 1)) if count < length else values
            for name, values in batch.items()
        }
        yield {**padded, "mask": np.arange(length) < count}


def prefetch_to_device(host_batches: Iterator[Any], put: Callable[[Any], Any]) -> Generator[Any]:
    """Yields batches that `put` has sent to the devices, one batch ahead of the consumer."""
    for batch, _ in itertools.pairwise(map(put, host_batches)):
        yield batch


def load_into_memory(records: Records, num_threads: int) -> InMemoryRecords:
    """Decodes all images of a split into one array."""
    size = len(records.labels)
    images = np.empty((size, records.image_size, records.image_size, 3), np.uint8)
    with ThreadPoolExecutor(num_threads or available_cores()) as pool:
        _finish(_begin(pool, records, np.arange(size), images))
    return InMemoryRecords(images, records.labels)


@dataclasses.dataclass(frozen=True)
class TrainSource:
    """The training split, and where its images are cached.

    Attributes:
      records: the training split, in memory or on disk.
      cache: "device", "host" (decoded, in memory) or "disk" (read for each batch).
      resident: with the cache "device", the images and labels of the whole split for every device to hold; batches then
        have ids only, which the training step looks up. Else None.
      num_threads: threads that read images; 0 for one per core.
      balanced: with balanced sampling the labels, see `epoch_examples`; else None.
    """

    records: Records
    cache: str
    resident: dict[str, np.ndarray] | None
    num_threads: int
    balanced: np.ndarray | None = None

    def batches(self, start_example: int, *, batch_size: int, seed: int, rows: slice) -> Generator[HostBatch]:
        """Yields the given rows of each batch from a position of the stream on; see `training_order`."""
        stream: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "start_example": start_example, "rows": rows}
        stream["balanced"] = self.balanced
        if self.resident is not None:
            return training_order(len(self.records.labels), **stream)
        return train_batches(self.records, num_threads=self.num_threads, **stream)


def make_train_source(data: ConfigDict, records: Records, device_memory_bytes: int | None) -> TrainSource:
    """Chooses the cache of the training images and loads them into it; see `choose_cache`."""
    cache, resident = choose_cache(data.cache, records, device_memory_bytes, memory_bytes()), None
    if cache != "disk":
        records = in_memory = load_into_memory(records, data.num_threads)
        if cache == "device":
            resident = {"image": in_memory.images, "label": in_memory.labels}
    balanced = records.labels if data.sampling == BALANCED else None
    return TrainSource(records, cache, resident, data.num_threads, balanced)


def choose_cache(cache: str, records: Records, device_bytes: int | None, host_bytes: int) -> str:
    """Resolves where training images are cached: "device", "host" or "disk".

    "auto" is "device" if the device has its own memory and the images fit in a quarter of it and in half of the host's,
    else "host" if they are compressed and fit in a quarter of the host's, else "disk": the system itself keeps files of
    uncompressed images in memory.

    Args:
      cache: "auto", "device", "host" or "disk".
      records: the training split.
      device_bytes: memory of a device; None if it uses the host's memory.
      host_bytes: memory of the host.

    Raises UserError if there is no such cache or the images do not fit in it.
    """
    check_value("data.cache", cache)
    needed = len(records.labels) * records.image_size**2 * 3
    memory = {"device": min(device_bytes or host_bytes, host_bytes), "host": host_bytes}  # images pass through the host
    if cache in memory and needed > memory[cache]:
        raise UserError(
            f"config.data.cache={cache!r}: the training images need {needed / 1e9:.1f} GB, the {cache} has "
            f"{memory[cache] / 1e9:.1f} GB; use 'disk' or 'auto'"
        )
    if cache != "auto":
        return cache
    if device_bytes and needed <= min(device_bytes / 4, host_bytes / 2):
        return "device"
    return "host" if records.is_compressed and needed <= host_bytes / 4 else "disk"


def _read(records: Records, order: Iterable[HostBatch], num_threads: int) -> Generator[HostBatch]:
    """Adds images and labels to batches of ids, read a few batches ahead by threads that end with the generator."""
    upcoming: deque[tuple[HostBatch, Iterator[None]]] = deque()
    pool = ThreadPoolExecutor(num_threads or available_cores())
    try:
        for batch in order:
            ids = batch["id"]
            images = np.empty((len(ids), records.image_size, records.image_size, 3), np.uint8)
            reads = _begin(pool, records, ids, images)
            upcoming.append(({**batch, "image": images, "label": records.labels[ids]}, reads))
            if len(upcoming) > _AHEAD:
                first, reads = upcoming.popleft()
                _finish(reads)
                yield first
        for last, reads in upcoming:
            _finish(reads)
            yield last
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(pool: ThreadPoolExecutor, records: Records, ids: np.ndarray, images: np.ndarray) -> Iterator[None]:
    """Starts reading images into an array, in chunks; the returned iterator ends when all are read."""
    chunks = [slice(first, first + _CHUNK) for first in range(0, len(ids), _CHUNK)]
    return pool.map(lambda chunk: records.read(ids[chunk], images[chunk]), chunks)


def _finish(reads: Iterator[None]) -> None:
    """Waits until all chunks are read; an error cancels those not yet begun and is raised."""
    deque(reads, maxlen=0)
