"""Training on an NVIDIA GPU: our step against PyTorch's, its roofline by layer, and the training loop; Markdown.

    python -m pip install -r requirements.txt -r benchmarks/requirements.txt "jax[cuda12]==0.12.0.1"
    python -m benchmarks.gpu

0.12.0.1 is the version of jax that requirements.txt pins; use "jax[cuda13]" with a CUDA 13 driver. Our step is the one
of the training loop, including random crops, mirror images and mean subtraction from bytes. PyTorch is given float32
crops on the device, which is in its favour, and uses channels_last, torch.compile, the fused optimizer and cuDNN's
fastest algorithms; bfloat16 by autocast, float32 with TF32, as JAX does by default. Each contender has a process of its
own, and they take turns. First a check that both compute the same; the script ends if they do not.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from alexnet_jax.system import console
from benchmarks.contenders import Child, ContenderError, Steps, our_steps, save_network, spread, torch_steps
from configs import alexnet

if TYPE_CHECKING:
    from benchmarks.roofline import Part, Peaks

# Neither JAX nor torch may be imported at the top: every child process imports this file.

IMAGENET_IMAGES, EPOCHS = 1_281_167, 90
PEERS: dict[str, dict[str, Any]] = {
    "PyTorch, compiled, LRN by slices": {"compiled": {}, "lrn_by_slices": True},
    "PyTorch, compiled": {"compiled": {}, "lrn_by_slices": False},
    "PyTorch, max-autotune, LRN by slices": {"compiled": {"mode": "max-autotune"}, "lrn_by_slices": True},
}
"""PyTorch's settings. The first is timed at every batch size, all at the batch size at which the first is fastest."""

SMOKE_PEERS: dict[str, dict[str, Any]] = {"PyTorch": {"compiled": {"backend": "eager"}, "lrn_by_slices": True}}
"""PyTorch's settings for --smoke, which compile in seconds."""

Contender = tuple[Callable[[], Steps], int]
"""A function that creates the contender's steps, and their batch size."""

Run = Callable[..., Any]
"""A function that calls another one with arguments in another process."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options of the benchmark; `smoke` tries it on the CPU with a small network."""

    preset: str
    batches: Sequence[int]
    dtypes: Sequence[str]
    rounds: int
    round_seconds: float
    smoke: bool
    folder: Path

    @property
    def device(self) -> str:
        """The device as PyTorch names it."""
        return "cpu" if self.smoke else "cuda"

    @property
    def network(self) -> Path:
        """The file of PyTorch's network."""
        return self.folder / "network.pt"

    @property
    def peers(self) -> dict[str, dict[str, Any]]:
        """PyTorch's settings by name."""
        return SMOKE_PEERS if self.smoke else PEERS

    def config(self, batch_size: int, dtype: str) -> ConfigDict:
        """The config of our step."""
        config = alexnet.get_config(f"synthetic,{self.preset}" + ",smoke" * self.smoke)
        config.batch_size = batch_size
        config.model.num_classes = 1000
        config.model.compute_dtype = dtype
        config.parallel.num_devices = 1
        return config

    def ours(self, batch_size: int, dtype: str) -> Contender:
        """Our contender."""
        return functools.partial(our_steps, self.config(batch_size, dtype)), batch_size

    def theirs(self, batch_size: int, peer: str) -> Contender:
        """PyTorch's contender with the settings of that name, in the first of `dtypes`."""
        options = {"device": self.device, "autocast": self.dtypes[0] == "bfloat16", **self.peers[peer]}
        config = self.config(batch_size, self.dtypes[0])
        return functools.partial(torch_steps, config, self.network, **options), batch_size


@dataclasses.dataclass
class Measured:
    """Images/s of each round, or the reason why a contender failed."""

    rates: list[float] = dataclasses.field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        """The median of the rounds; 0 after a failure, so that it is never the best."""
        return 0.0 if self.failure else statistics.median(self.rates)

    def __str__(self) -> str:
        return self.failure or spread(self.rates, ",.0f")

    def against(self, other: "Measured") -> str:
        """The median and range of the ratios to another contender, round by round."""
        if self.failure or other.failure:
            return "-"
        return spread([mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True)], ".2f")

    @contextlib.contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Context that records a ContenderError, such as an out-of-memory error, as the result."""
        try:
            yield
        except ContenderError as error:
            text = str(error)
            out_of_memory = any(words in text.lower() for words in ("out of memory", "resource_exhausted"))
            self.failure = self.failure or ("out of memory" if out_of_memory else text.splitlines()[0][:200])


def main() -> None:
    """Parses the options and prints all sections as they are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="caffe", choices=("caffe", "caffenet", "owt", "lenet"))
    parser.add_argument("--batches", type=int, nargs="+", default=(128, 256, 512, 1024, 2048, 4096))
    parser.add_argument("--dtypes", nargs="+", default=("bfloat16", "float32"), help="the first is also PyTorch's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round_seconds", type=float, default=1.0)
    parser.add_argument("--smoke", action="store_true", help="a small network on the CPU, to try the script")
    arguments = parser.parse_args()
    if not arguments.smoke and not shutil.which("nvidia-smi"):
        raise SystemExit("no NVIDIA GPU found (no nvidia-smi); --smoke tries the script on the CPU")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_PLATFORMS"] = "cpu" if arguments.smoke else "cuda"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the contenders share the device's memory
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/jax")  # the same step is compiled several times
        measure(Settings(**vars(arguments), folder=Path(folder)))


def measure(settings: Settings) -> None:
    """Prints each section as it is measured, and a summary at the end."""
    dtype = settings.dtypes[0]
    with other_process() as run:
        try:
            show_machine(settings, run)
            show_agreement(settings, run)
        except RuntimeError as error:
            raise SystemExit(f"not measured: {error}") from error
        peaks = show_peaks(settings, run)
        run(save_network, settings.config(settings.batches[0], dtype), settings.network)
    ours, theirs = compare_batches(settings)
    batch, their_batch = (max(rates, key=lambda size: rates[size].median) for rates in (ours, theirs))
    rate = ours[batch].median
    if not rate:
        raise SystemExit("our step failed at every batch size")
    ratio = compare_best(settings, batch, their_batch)
    cost = compare_deterministic(settings, batch)
    with other_process() as run:
        show_parts(settings, batch, rate, peaks, *run(find_parts, settings, batch))
    bare, loop = time_loop(settings, batch, rate)
    show_header("GPU", "measured", "goal")
    show_row(f"training step, {dtype}, best batch, against PyTorch", f"{ratio:.2f}x", ">= 1.0x, aim 1.3x")
    fraction = f"{loop / bare:.1%} ({loop:,.0f} of {bare:,.0f} images/s)"
    show_row("end to end from data on the device, fraction of the bare step's images/s", fraction, ">= 90 %, aim 98 %")
    show_row("bare step with config.parallel.deterministic, fraction of its images/s", f"{cost:.1%}", "")
    show_row(
        f"{EPOCHS} epochs of ImageNet at {loop:,.0f} images/s", console.duration(EPOCHS * IMAGENET_IMAGES / loop), ""
    )


def show_machine(settings: Settings, run: Run) -> None:
    """Prints the GPU and the versions of the libraries."""
    card = "CPU"
    if not settings.smoke:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader", "--id=0"]
        name, memory, driver = subprocess.check_output(query, text=True).strip().split(", ")
        card = f"{name}, {memory}, driver {driver}"
    print(f"{card}; {run(find_versions, settings.device)}")
    print(f"{settings.preset}, medians of {settings.rounds} rounds (smallest to largest)", flush=True)


def find_versions(device: str) -> str:
    """Versions of the libraries and platforms. Raises RuntimeError if torch or JAX sees no device."""
    import jax
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no GPU")
    platform = jax.devices()[0].client.platform_version.splitlines()[-1]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "torch")]
    return f"{', '.join(versions)}; jax's platform {platform}, torch's CUDA {torch.version.cuda}"


def show_agreement(settings: Settings, run: Run) -> None:
    """Prints the result of the check before timing, for each type."""
    print("\nChecked first:\n", flush=True)
    for dtype in settings.dtypes:
        config = settings.config(settings.batches[0], dtype)
        print(f"- {dtype}: {run(find_agreement, config, dtype, settings.device)}", flush=True)


def find_agreement(config: ConfigDict, dtype: str, device: str) -> str:
    """Calls `agreement.check`, in a process that may load both libraries."""
    from benchmarks.agreement import check

    return check(config, dtype, device)


def show_peaks(settings: Settings, run: Run) -> "Peaks":
    """Prints and returns the measured peaks of the device."""
    peaks: Peaks = run(find_peaks, settings)
    show_header("peak", "measured")
    for precision, flops in peaks.flops.items():
        show_row(f"matrix product, {precision}", f"{flops / 1e12:,.1f} TFLOP/s")
    show_row("memory, read and written", f"{peaks.bandwidth / 1e9:,.0f} GB/s")
    return peaks


def find_peaks(settings: Settings) -> "Peaks":
    """Calls `roofline.measure_peaks`, in a process that may load JAX."""
    from benchmarks.roofline import measure_peaks

    size, length = (256, 1 << 20) if settings.smoke else (8192, 1 << 29)
    return measure_peaks(size, length, settings.round_seconds)


def compare_batches(settings: Settings) -> tuple[dict[int, Measured], dict[int, Measured]]:
    """Prints a row per batch size; returns the results of our step and of the first peer by batch size."""
    peer, first = next(iter(settings.peers)), settings.dtypes[0]
    show_header(
        "images/s, batch", *(f"ours, {dtype}" for dtype in settings.dtypes), f"{peer}, {first}", "ours / theirs"
    )
    ours, theirs = {}, {}
    for batch in settings.batches:
        contenders = [settings.ours(batch, first), settings.theirs(batch, peer)]
        ours[batch], theirs[batch] = take_turns(settings, contenders)
        alone = [take_turns(settings, [settings.ours(batch, dtype)])[0] for dtype in settings.dtypes[1:]]
        show_row(f"{batch}", ours[batch], *alone, theirs[batch], ours[batch].against(theirs[batch]))
    return ours, theirs


def compare_best(settings: Settings, our_batch: int, their_batch: int) -> float:
    """Compares our step with every peer at the best batch sizes; returns the ratio to the fastest peer."""
    dtype = settings.dtypes[0]
    show_header(f"images/s, {dtype}, batch {their_batch}", "theirs", f"ours, batch {our_batch}", "ours / theirs")
    ratios = []
    for peer in settings.peers:
        contenders = [settings.ours(our_batch, dtype), settings.theirs(their_batch, peer)]
        ours, theirs = take_turns(settings, contenders)
        show_row(peer, theirs, ours, ours.against(theirs))
        if ours.median and theirs.median:
            ratios.append(ours.median / theirs.median)
    return min(ratios, default=math.nan)


def compare_deterministic(settings: Settings, batch: int) -> float:
    """The images/s with `config.parallel.deterministic` as a fraction of those without."""
    config = settings.config(batch, settings.dtypes[0])
    config.parallel.deterministic = True
    same_bits = functools.partial(our_steps, config), batch
    free, bound = take_turns(settings, [settings.ours(batch, settings.dtypes[0]), same_bits])
    return bound.median / free.median if free.median else math.nan


def take_turns(settings: Settings, contenders: Sequence[Contender]) -> list[Measured]:
    """Times the contenders in turns, round by round; no other process uses the device's memory meanwhile."""
    measured = [Measured() for _ in contenders]
    children: list[tuple[Measured, Child]] = []
    with contextlib.ExitStack() as stack:
        for result, (make_steps, batch) in zip(measured, contenders, strict=True):
            with result.noting_failure():
                child = Child(make_steps, batch, settings.round_seconds)
                children.append((result, stack.enter_context(contextlib.closing(child))))
        for _ in range(settings.rounds):
            for result, child in children:
                with result.noting_failure():
                    result.rates.append(child.round()[0])
    return measured


def show_parts(
    settings: Settings, batch: int, rate: float, peaks: "Peaks", parts: Sequence["Part"], alone: Sequence[float]
) -> None:
    """Prints the roofline: the least time of each part of the step by either limit, and its time when run alone."""
    dtype, step = settings.dtypes[0], batch / rate
    names = ["GFLOP", "GB", "ms by FLOP/s", "ms by memory", "ms alone", "of the step"]
    show_header(f"{dtype}, batch {batch}", *names)
    limits = [(part.flops / peaks.flops[dtype], part.bytes / peaks.bandwidth) for part in parts]
    for part, by_either, seconds in zip(parts, limits, alone, strict=True):
        times = [f"{1e3 * value:.3f}" for value in (*by_either, seconds)]
        show_row(part.name, f"{part.flops / 1e9:,.1f}", f"{part.bytes / 1e9:.3f}", *times, f"{seconds / step:.1%}")
    floor = sum(map(max, limits))
    print(f"\nThe step takes {1e3 * step:.3f} ms, its parts alone {1e3 * sum(alone):.3f} ms; the larger limits of all")
    print(f"parts add up to {1e3 * floor:.3f} ms, {floor / step:.1%} of the step.", flush=True)


def find_parts(settings: Settings, batch: int) -> tuple[list["Part"], list[float]]:
    """Calls `roofline.get_parts` and `time_parts`, in a process that may load JAX."""
    from benchmarks.roofline import get_parts, time_parts

    config = settings.config(batch, settings.dtypes[0])
    return get_parts(config), time_parts(config, settings.round_seconds)


def time_loop(settings: Settings, batch: int, rate: float) -> tuple[float, float]:
    """Images/s of the bare step, mean of a round before and one after, and of the loop with data on the device."""
    dtype = settings.dtypes[0]
    config = settings.config(batch, dtype)
    config.data.update({"cache": "device", "prepared_dir": f"{settings.folder}/data"})
    config.data.synthetic_examples = max(batch, 1024)
    config.optimizer.schedule = "constant"  # an epoch is a few steps here
    config.update({"epochs": 1e6, "eval_every_epochs": 1e6})
    config.max_steps = max(3, round(4 * settings.round_seconds * rate / batch))
    make_steps, _ = settings.ours(batch, dtype)
    with contextlib.closing(Child(make_steps, batch, settings.round_seconds)) as bare, other_process() as run:
        before, _ = bare.round()
        loop = run(train, config, settings.folder / "run")
        after, _ = bare.round()
    return (before + after) / 2, loop


def train(config: ConfigDict, workdir: Path) -> float:
    """Trains and returns the images/s between the first step, which compiles, and the only evaluation."""
    from alexnet_jax.train import train_and_evaluate

    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        train_and_evaluate(config, workdir)
    return json.loads((workdir / "timing.jsonl").read_text().splitlines()[0])["images_per_second"]


@contextlib.contextmanager
def other_process() -> Iterator[Run]:
    """Context with a process that functions can be called in; its end frees the device's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def show_header(*names: str) -> None:
    """Prints the first two lines of a Markdown table."""
    print()
    show_row(*names)
    show_row("---", *["--:" for _ in names[1:]])


def show_row(*cells: object) -> None:
    """Prints a line of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
