"""`python -m alexnet_jax benchmark --config=FILE:CHOICES`: how fast the training step is here, and what limits it."""

import dataclasses
import importlib.metadata
import platform
import statistics
from typing import Any

import jax.numpy as jnp
import numpy as np

from alexnet_jax.cli.flags import config_from_flags
from alexnet_jax.experiments import step_timing
from alexnet_jax.experiments.step_timing import IMAGENET_IMAGES, RandomTraining
from alexnet_jax.parallel.devices import Devices
from alexnet_jax.system import console, machine

SECONDS, MIN_STEPS = 10.0, 3
"""How long steps are timed."""


def main(argv: list[str]) -> None:
    """Prints times and rates, what they mean for ImageNet, and what to change."""
    config = config_from_flags("benchmark", argv)
    compute_dtype = jnp.dtype(config.model.compute_dtype)
    training = RandomTraining(config)
    console.show(describe_devices(training.experiment.devices))
    measured = measure(training, compute_dtype)
    console.show_facts(
        {
            "network": f"{config.model.preset}, {measured.batch_size} images of {config.data.crop} pixels a step",
            **describe(measured, compute_dtype.name),
            "ImageNet": f"{console.duration(config.epochs * IMAGENET_IMAGES / measured.images_per_second)} "
            f"for {config.epochs:g} epochs of {IMAGENET_IMAGES:,} images",
        }
    )
    console.show(advice(measured.peak_share, measured.optimizer_share, measured.on_cpu))


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of a training step and the devices it ran on.

    Attributes:
      batch_size: images a step.
      first_seconds: of the step that compiled.
      step_seconds: of each timed step.
      peak_memory: the most memory that was held until then, in words.
      flops: of an image; see `speed.training_flops`.
      optimizer_bytes: see `speed.optimizer_bytes`.
      matmul_rate: FLOP/s of large matrix products.
      memory_rate: bytes/s that a device reads and writes.
      on_cpu: whether the device is a CPU.
    """

    batch_size: int
    first_seconds: float
    step_seconds: list[float]
    peak_memory: str
    flops: int
    optimizer_bytes: int
    matmul_rate: float
    memory_rate: float
    on_cpu: bool

    @property
    def median_seconds(self) -> float:
        """Of a step."""
        return statistics.median(self.step_seconds)

    @property
    def images_per_second(self) -> float:
        """Of the median step."""
        return self.batch_size / self.median_seconds

    @property
    def peak_share(self) -> float:
        """The step's FLOP/s in parts of those of large matrix products."""
        return self.images_per_second * self.flops / self.matmul_rate

    @property
    def optimizer_share(self) -> float:
        """The part of the step that the optimizer takes at least, by what it moves."""
        return self.optimizer_bytes / self.memory_rate / self.median_seconds


def measure(training: RandomTraining, compute_dtype: Any) -> Measured:
    """Compiles, warms up, and times steps for some seconds, then the devices."""
    (first_seconds,) = training.run(1)
    expected = min(training.run(2))
    step_seconds = training.run(max(MIN_STEPS, round(SECONDS / expected)))
    return Measured(
        batch_size=training.experiment.plan.batch_size,
        first_seconds=first_seconds,
        step_seconds=step_seconds,
        peak_memory=describe_peak_memory(training.experiment.devices),  # before the next lines need some
        flops=step_timing.training_flops(training.experiment.layers),
        optimizer_bytes=step_timing.optimizer_bytes(training.experiment.layers),
        matmul_rate=step_timing.matmul_rate(training.experiment.devices, compute_dtype),
        memory_rate=step_timing.memory_rate(training.experiment.devices),
        on_cpu=training.experiment.devices.on_cpu,
    )


def describe_devices(devices: Devices) -> str:
    """What runs the step, and the versions that decide how fast."""
    processor = f"{machine.processor_name()}, {machine.available_cores()} cores"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax"))
    kind = devices.devices[0].device_kind
    return f"{len(devices.devices)} x {kind} ({processor}), {versions}, Python {platform.python_version()}"


def describe_peak_memory(devices: Devices) -> str:
    """The most memory that was held so far, and by whom."""
    of_device = devices.peak_memory_bytes
    if of_device is None:
        return f"{machine.peak_memory_bytes() / 1e9:.2f} GB of the process"
    return f"{of_device / 1e9:.2f} GB of a device"


def describe(measured: Measured, dtype: str) -> dict[str, str]:
    """The measured rows of the table."""
    first, third = (1e3 * value for value in np.percentile(measured.step_seconds, (25, 75)))
    tiles = "; may exceed 100%: tiles on the CPU save products" if measured.on_cpu else ""
    return {
        "compile time": f"{max(0.0, measured.first_seconds - measured.median_seconds):,.1f} s",
        "step time": f"{1e3 * measured.median_seconds:,.1f} ms, quartiles {first:,.1f} and {third:,.1f} "
        f"of {len(measured.step_seconds):,} steps",
        "speed": f"{measured.images_per_second:,.1f} images/s",
        "arithmetic": f"{measured.flops / 1e9:,.3g} GFLOP an image, "
        f"{measured.images_per_second * measured.flops / 1e9:,.1f} GFLOP/s",
        "matrix products": f"{measured.matmul_rate / 1e9:,.1f} GFLOP/s in {dtype}, large ones alone",
        "share of these": f"{measured.peak_share:.0%}{tiles}",
        "memory traffic": f"{measured.memory_rate / 1e9:,.1f} GB/s; "
        f"the optimizer takes at least {measured.optimizer_share:.0%} of a step",
        "peak memory": measured.peak_memory,
    }


def advice(peak_share: float, optimizer_share: float, on_cpu: bool) -> str:
    """What limits the step and what to try, by rule of thumb.

    From 60 % of the rate of large matrix products on there is little but arithmetic; on a CPU from 150 % on, for tiles
    leave 2.5 times fewer products than are counted (of `caffe`). Below that, a fifth of the step in the optimizer,
    whose work is the same for any batch, says that the batch is small.
    """
    if peak_share >= (1.5 if on_cpu else 0.6):
        return "Limited by arithmetic. To try: more or faster devices, smaller crops, a smaller network."
    if optimizer_share >= 0.2:
        return "Limited by the optimizer's passes over all parameters. To try: a larger config.batch_size."
    larger = "" if on_cpu else "a larger config.batch_size; "
    return (
        f"Limited by memory traffic and overhead between the matrix products. To try: {larger}main.py with "
        "--config.profile_steps=10, which shows what takes the time."
    )
