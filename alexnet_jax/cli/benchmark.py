"""`python -m alexnet_jax benchmark --config=FILE:CHOICES`: how fast the training step is here, and what limits it."""

import importlib.metadata
import platform

import jax.numpy as jnp
import numpy as np

from alexnet_jax.cli.arguments import parse_config
from alexnet_jax.experiments import step_timing
from alexnet_jax.experiments.step_timing import IMAGENET_IMAGES, RandomTraining
from alexnet_jax.parallel.devices import Devices
from alexnet_jax.system import console, machine

SECONDS, MIN_STEPS = 10.0, 3
"""Steps are timed for so many seconds, and at least so many of them."""


def main(argv: list[str]) -> None:
    """Prints the time and speed of a step, the time that ImageNet would take, and what to change."""
    config = parse_config("benchmark", __doc__, argv)
    training = RandomTraining(config)
    experiment, devices = training.experiment, training.experiment.devices
    console.show(describe_devices(devices))
    (first_seconds,) = training.run(1)
    expected = min(training.run(2))
    seconds = training.run(max(MIN_STEPS, round(SECONDS / expected)))
    of_device, of_process = devices.peak_memory_bytes, machine.peak_memory_bytes()  # before the next lines need some
    flops = step_timing.training_flops(experiment.layers)
    matmul_flops = step_timing.matmul_flops(devices, jnp.dtype(config.model.compute_dtype))
    memory_bandwidth = step_timing.memory_bandwidth(devices)
    lower, median, upper = (float(value) for value in np.percentile(seconds, (25, 50, 75)))
    images_per_second = experiment.plan.batch_size / median
    peak_share = images_per_second * flops / matmul_flops
    optimizer_share = step_timing.optimizer_bytes(experiment.layers) / memory_bandwidth / median
    days = console.duration(config.epochs * IMAGENET_IMAGES / images_per_second)
    note = "; may exceed 100%: Winograd convolutions need fewer products" if devices.on_cpu else ""
    facts = {
        "network": f"{config.model.preset}, {experiment.plan.batch_size} images of {config.data.crop} pixels a step",
        "compile time": f"{max(0.0, first_seconds - median):,.1f} s",
        "step time": f"{1e3 * median:,.1f} ms, quartiles {1e3 * lower:,.1f} and {1e3 * upper:,.1f} "
        f"of {len(seconds):,} steps",
        "speed": f"{images_per_second:,.1f} images/s",
        "arithmetic": f"{flops / 1e9:,.3g} GFLOP an image, {images_per_second * flops / 1e9:,.1f} GFLOP/s",
        "matrix products": f"{matmul_flops / 1e9:,.1f} GFLOP/s in {config.model.compute_dtype}, large ones alone",
        "fraction of it": f"{peak_share:.0%}{note}",
        "memory traffic": f"{memory_bandwidth / 1e9:,.1f} GB/s; "
        f"the optimizer takes at least {optimizer_share:.0%} of a step",
        "peak memory": f"{(of_device or of_process) / 1e9:.2f} GB of {'a device' if of_device else 'the process'}",
        "ImageNet": f"{days} for {config.epochs:g} epochs of {IMAGENET_IMAGES:,} images",
    }
    console.show_facts(facts)
    console.show(advice(peak_share, optimizer_share, devices.on_cpu))


def describe_devices(devices: Devices) -> str:
    """The devices that run the step, and the versions of the packages that decide how fast."""
    processor = f"{machine.processor_name()}, {machine.available_cores()} cores"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax"))
    kind = devices.devices[0].device_kind
    return f"{len(devices.devices)} x {kind} ({processor}), {versions}, Python {platform.python_version()}"


def advice(peak_share: float, optimizer_share: float, on_cpu: bool) -> str:
    """What limits the step and what to try, by rule of thumb.

    A step limited by arithmetic reaches 60 % of the speed of large matrix products; on a CPU 150 %, because Winograd
    tiles do 2.5 times fewer products than are counted (of `caffe`). Otherwise, if the optimizer, whose work is the same
    for any batch size, takes a fifth of the step, the batch is too small.

    Args:
      peak_share: speed of the step as a fraction of that of large matrix products.
      optimizer_share: fraction of the step that the optimizer takes at least.
      on_cpu: whether the devices are CPUs.
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
