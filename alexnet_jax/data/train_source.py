"""Where training batches come from: disk, the memory of the host, or that of the devices."""

import dataclasses
from collections.abc import Generator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.loader import HostBatch, choose_cache, load_into_memory, train_batches, training_order
from alexnet_jax.data.storage import Records
from alexnet_jax.system.machine import memory_bytes


@dataclasses.dataclass(frozen=True)
class TrainSource:
    """Where training batches come from.

    Attributes:
      records: the training split, in memory or on disk.
      cache: where its images are kept: "disk", "host" or "device".
      resident: images and labels for the devices to hold, of which the step looks up those of a batch; None otherwise.
      num_threads: reading threads; 0 for one a core.
    """

    records: Records
    cache: str
    resident: dict[str, np.ndarray] | None
    num_threads: int

    def batches(self, start_example: int, *, batch_size: int, seed: int, rows: slice) -> Generator[HostBatch]:
        """These rows of all batches from a position on."""
        stream: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "start_example": start_example, "rows": rows}
        if self.resident is not None:
            return training_order(len(self.records.labels), **stream)
        return train_batches(self.records, num_threads=self.num_threads, **stream)


def make_train_source(data: ConfigDict, records: Records, device_memory_bytes: int | None) -> TrainSource:
    """Decides where training images are kept, and loads them; None for devices that use the host's memory."""
    cache, resident = choose_cache(data.residence, records, device_memory_bytes, memory_bytes()), None
    if cache != "disk":
        records = in_memory = load_into_memory(records, data.num_threads)
        if cache == "device":
            resident = {"image": in_memory.images, "label": in_memory.labels}
    return TrainSource(records, cache, resident, data.num_threads)
