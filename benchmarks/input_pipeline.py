"""Input pipelines from JPEGs of 256 x 256 pixels to batches: this project, tf.data and PyTorch's DataLoader.

    python -m pip install -r benchmarks/requirements.txt
    python -m benchmarks.input_pipeline PHOTOGRAPHS

PHOTOGRAPHS is a folder or a tar of JPEGs, from which 4,000 resized images are made once. All pipelines read these, in
turns, in one run. The peers crop and mirror on the host. This project does so in the compiled training step, so its
batches are whole resized images; "in memory" decodes them once at the start; "with crops" adds the crops, mean and
colour noise of the step, computed on the same cores.
"""

import argparse
import contextlib
import functools
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

from alexnet_jax.cli.benchmark_input import make_crops
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.loader import load_into_memory, train_batches
from alexnet_jax.data.storage import Records
from alexnet_jax.experiment import open_dataset
from alexnet_jax.parallel.devices import data_parallel
from alexnet_jax.system.machine import available_cores
from benchmarks.photographs import read_photographs, write_resized
from configs import alexnet

IMAGES, BATCH, CROP, ROUNDS = 4000, 128, 227, 3


def main() -> None:
    """Prints the images/s of each pipeline, medians of three rounds with their range, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    photographs = parser.parse_args().photographs
    with tempfile.TemporaryDirectory() as folder:
        write_resized(read_photographs(photographs), Path(folder), IMAGES)
        files = sorted(Path(folder).rglob("*.jpg"))
        datasets = {storage: _prepare(folder, storage) for storage in ("jpeg", "raw")}
        in_memory = load_into_memory(datasets["jpeg"].splits["train"], num_threads=0)
        contenders: dict[str, Callable[[], Iterable[Any]]] = {
            "ours, JPEG": lambda: _ours(datasets["jpeg"].splits["train"]),
            "ours, JPEG, in memory": lambda: _ours(in_memory),
            "ours, raw": lambda: _ours(datasets["raw"].splits["train"]),
            "ours, JPEG, with crops": lambda: _ours_with_crops(datasets["jpeg"]),
            "ours, raw, with crops": lambda: _ours_with_crops(datasets["raw"]),
            "tf.data, uint8 crops": lambda: _tf_data(files, as_flax_example=False),
            "tf.data, as flax's ImageNet example": lambda: _tf_data(files, as_flax_example=True),
        }
        for workers in range(1, available_cores() + 2):
            for kind in ("uint8", "float32"):
                name = f"DataLoader, {kind}, {workers} workers"
                contenders[name] = functools.partial(_data_loader, files, workers, kind == "float32")
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, start in contenders.items():
                rates[name].append(_rate(start()))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, values in rates.items():
            print(f"{name:38} {medians[name]:8,.0f} images/s   ({min(values):,.0f} to {max(values):,.0f})")
        for peer in ("tf.data, uint8", "tf.data, as flax", "DataLoader, uint8", "DataLoader, float32"):
            best = max(rate for name, rate in medians.items() if name.startswith(peer))
            ratios = "  ".join(f"{name} {medians[name] / best:.2f}x" for name in medians if name.startswith("ours"))
            print(f"against the best of {peer}: {ratios}")
        _show_memory(datasets["jpeg"])


def _prepare(folder: str, storage: str) -> Dataset:
    config = alexnet.get_config("folder")
    config.data.update({"dir": folder, "prepared_dir": f"{folder}/prepared", "storage": storage, "test_fraction": 0.0})
    config.data.validation_fraction = 0.001
    return open_dataset(config.data)


def _ours(records: Records) -> Iterator[np.ndarray]:
    batches = train_batches(records, batch_size=BATCH, seed=0, start_example=0, num_threads=0)
    return (batch["image"] for batch in batches)


def _ours_with_crops(dataset: Dataset) -> Iterator[jax.Array]:
    devices = data_parallel(1)
    crops = make_crops(alexnet.get_config("folder,paper"), dataset, devices)
    batches = train_batches(dataset.splits["train"], batch_size=BATCH, seed=0, start_example=0, num_threads=0)
    return (jax.block_until_ready(crops(devices.shard(batch))) for batch in batches)


def _tf_data(files: list[Path], as_flax_example: bool) -> Iterator[Any]:
    """The pipeline of flax/examples/imagenet (resized crops, mirrored, normalised float32), or uint8 random crops."""
    import tensorflow as tf

    def load(path: Any) -> Any:
        data = tf.io.read_file(path)
        if as_flax_example:
            box = tf.image.sample_distorted_bounding_box(
                tf.constant([256, 256, 3]),
                bounding_boxes=tf.zeros([1, 0, 4]),
                area_range=(0.08, 1.0),
                aspect_ratio_range=(3 / 4, 4 / 3),
                use_image_if_no_bounding_boxes=True,
                max_attempts=10,
            )
            (top, left, _), (height, width, _) = tf.unstack(box[0]), tf.unstack(box[1])
            image = tf.image.decode_and_crop_jpeg(data, tf.stack([top, left, height, width]), channels=3)
            image = tf.image.resize([image], [CROP, CROP], method=tf.image.ResizeMethod.BICUBIC)[0]
            image = tf.image.random_flip_left_right(tf.reshape(image, [CROP, CROP, 3]))
            return (tf.cast(image, tf.float32) - [[[123.68, 116.78, 103.94]]]) / [[[58.39, 57.12, 57.38]]]
        offsets = tf.random.uniform([2], 0, 256 - CROP + 1, tf.int32)
        image = tf.image.decode_and_crop_jpeg(data, tf.concat([offsets, [CROP, CROP]], 0), channels=3)
        return tf.image.random_flip_left_right(tf.reshape(image, [CROP, CROP, 3]))

    data = tf.data.Dataset.from_tensor_slices([str(file) for file in files]).shuffle(len(files)).repeat()
    data = data.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH, drop_remainder=True)
    return iter(data.prefetch(tf.data.AUTOTUNE))


def _data_loader(files: list[Path], workers: int, as_float: bool) -> Iterator[Any]:
    """Pillow in worker processes; uint8 crops, or normalised float32 as in PyTorch's ImageNet example."""
    import torch
    from PIL import Image

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    class Crops(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            with Image.open(files[index]) as picture:
                left, top = random.randint(0, 256 - CROP), random.randint(0, 256 - CROP)
                crop = picture.convert("RGB").crop((left, top, left + CROP, top + CROP))
            if random.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(crop))
            if not as_float:
                return pixels
            scaled = pixels.permute(2, 0, 1).contiguous().float().div(255)
            return scaled.sub_(mean[:, None, None]).div_(std[:, None, None])

    loader = torch.utils.data.DataLoader(
        Crops(), BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _rate(batches: Any, seconds: float = 4.0) -> float:
    """Images/s after the first ten batches, during which threads and processes start."""
    for _ in itertools.islice(batches, 10):
        pass
    count, began = 0, time.perf_counter()
    for _ in batches:
        count += BATCH
        if time.perf_counter() - began > seconds:
            break
    rate = count / (time.perf_counter() - began)
    if hasattr(batches, "close"):
        batches.close()
    return rate


def _show_memory(dataset: Dataset) -> None:
    records = dataset.splits["train"]
    batches = train_batches(records, batch_size=BATCH, seed=0, start_example=0, num_threads=0)
    process, sizes = psutil.Process(), []
    with contextlib.closing(batches):
        for _ in range(20):
            for _ in itertools.islice(batches, len(records.labels) // BATCH):
                pass
            sizes.append(process.memory_info().rss / 1e6)
    print("memory after each of 20 epochs, MB:", " ".join(f"{size:.0f}" for size in sizes))


if __name__ == "__main__":
    main()
