"""`python -m alexnet_jax benchmark_input --config=FILE:CHOICES`: how fast images reach the step, and what limits it."""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import augment
from alexnet_jax.cli.arguments import parse_config
from alexnet_jax.data.balance import BALANCED
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.images import decode_jpeg
from alexnet_jax.data.loader import train_batches, training_order
from alexnet_jax.data.storage import JpegRecords
from alexnet_jax.experiment import make_preprocessing, open_dataset
from alexnet_jax.parallel.devices import Devices, data_parallel
from alexnet_jax.system import console
from alexnet_jax.system.machine import available_cores

SECONDS = 2.0
"""Each stage is timed for so long."""


def main(argv: list[str]) -> None:
    """Prints the images/s of each stage alone and of all together, and what to change."""
    config = parse_config("benchmark_input", __doc__, argv)
    rates = measure(config, open_dataset(config.data))
    console.show_facts({stage: f"{rate:>12,.0f} images/s" for stage, rate in rates.items()})
    console.show(advice(rates, config.data.num_threads or available_cores()))


def measure(config: ConfigDict, dataset: Dataset) -> dict[str, float]:
    """Images/s by the name of the stage; reading and decoding are measured in one thread."""
    batch_size = config.batch_size
    records, devices = dataset.splits["train"], data_parallel(config.parallel.num_devices)
    size = len(records.labels)
    rates = {}
    indices = np.random.default_rng(0).permutation(size)[:1024]
    pixels = np.empty((1, records.image_size, records.image_size, 3), np.uint8)
    if isinstance(records, JpegRecords):
        rates["read, one thread"] = _rate(lambda index: records.read_jpeg(int(index)), indices, 1)
        encoded = [records.read_jpeg(int(index)) for index in indices]
        rates["decode, one thread"] = _rate(lambda jpeg: decode_jpeg(jpeg, pixels[0]), encoded, 1)
    else:
        rates["read, one thread"] = _rate(lambda index: records.read([int(index)], pixels), indices, 1)
    balanced = records.labels if config.data.sampling == BALANCED else None
    stream = {"batch_size": batch_size, "seed": config.seed, "start_example": 0, "balanced": balanced}
    make_batches = functools.partial(train_batches, records, **stream, num_threads=config.data.num_threads)
    rates["order"] = _stream_rate(training_order(size, **stream), batch_size)
    with contextlib.closing(make_batches()) as batches:
        rates["batch, all threads"] = _stream_rate(batches, batch_size)
        batch = next(batches)
    rates["transfer"] = _rate(lambda _: jax.block_until_ready(devices.shard(batch)), range(1000), batch_size)
    preprocess = make_crops(config, dataset, devices)
    on_devices = devices.shard(batch)
    rates["augment"] = _rate(lambda _: jax.block_until_ready(preprocess(on_devices)), range(1000), batch_size)
    with contextlib.closing(make_batches()) as batches:
        sharded = (jax.block_until_ready(preprocess(devices.shard(batch))) for batch in batches)
        rates["end to end"] = _stream_rate(sharded, batch_size)
    return rates


def advice(rates: dict[str, float], num_threads: int) -> str:
    """Names the slowest stage and what would help, from the images/s of `measure` and the number of reading threads."""
    stages = {name: rate for name, rate in rates.items() if not name.endswith("one thread") and name != "end to end"}
    slowest = min(stages, key=lambda name: stages[name])
    decode, read = rates.get("decode, one thread"), rates["read, one thread"]
    if slowest != "batch, all threads":
        remedy = {
            "order": "nothing: no loader of images is as fast",
            "transfer": "config.data.cache=device, if the images fit there",
            "augment": "an accelerator: it is part of the compiled step",
        }[slowest]
    elif decode is not None and decode < read:
        remedy = "config.data.storage=raw or config.data.cache=host, if disk or memory allow, or more cores"
    elif rates[slowest] < 0.5 * read * min(num_threads, available_cores()):
        remedy = "a faster disk, more memory for the system to keep files in, or more config.data.num_threads"
    else:
        remedy = "nothing but more cores: memory copies are all that is left"
    return f"Slowest: {slowest}, {stages[slowest]:,.0f} images/s. What would help: {remedy}."


def make_crops(config: ConfigDict, dataset: Dataset, devices: Devices) -> Callable[[Any], Any]:
    """The augmentation of the training step alone: (batch on the devices) -> crops."""
    preprocessing = make_preprocessing(config.data, dataset.statistics)

    def crops(batch: dict[str, jax.Array]) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(config.seed), batch["id"])
        return augment.training_images(preprocessing, batch["image"], keys, batch["epoch"])

    return devices.compile_map(crops)


def _rate(work: Callable[[Any], Any], items: Iterable[Any], images: int) -> float:
    """Images/s of work on the items, repeated for SECONDS; an item holds `images` images."""
    again = itertools.cycle(items)
    work(next(again))  # the first may compile
    count, seconds, began = 0, 0.0, time.perf_counter()
    while seconds <= SECONDS:
        work(next(again))
        count, seconds = count + images, time.perf_counter() - began
    return count / seconds


def _stream_rate(batches: Iterable[Any], batch_size: int) -> float:
    """Images/s of an endless stream of batches."""
    iterator = iter(batches)
    return _rate(lambda _: next(iterator), itertools.repeat(None), batch_size)
