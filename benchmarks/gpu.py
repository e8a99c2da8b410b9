"""Training on an NVIDIA GPU against PyTorch: speed and memory of steps, input, evaluation; Markdown and JSON.

    python -m pip install -c requirements.txt -r benchmarks/requirements.txt '.[gpu]'
    python -m benchmarks.gpu

The packages are jax with CUDA 13 (0.10.2 on Python 3.11, 0.12 on newer ones) and torch 2.13, whose wheels have CUDA 13,
too; torch 2.11 and 2.12 do as well. Rows come in the order of their importance. Each is printed and written to --output
as soon as it is measured; no row begins after --minutes, and the same command measures the rows that the file lacks.

Our step is the one of the training loop, including random crops, mirror images and mean subtraction from bytes. PyTorch
is given float32 crops on the device, which is in its favour, and uses channels_last, torch.compile with max-autotune
and CUDA graphs, the fused optimizer, response normalisation by slices, and cuDNN's fastest algorithms; bfloat16 by
autocast, float32 with TF32, as JAX does by default. Each contender has a process of its own, and they take turns.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.system import console
from alexnet_jax.system.files import read_json, write_json
from benchmarks.contenders import Child, ContenderError, Steps, end_with_parent, our_steps, save_network, torch_steps
from configs import alexnet

# Neither JAX nor torch may be imported at the top: every child process imports this file.

PRESETS = ("caffe", "owt", "modern", "source")
IMAGENET_IMAGES, EPOCHS = 1_281_167, 90

Contender = tuple[Callable[[], Steps], int]
"""A function that creates the contender's steps, and their batch size."""

Result = dict[str, Any]
"""What was measured: "ours" and "theirs" as `Measured`, and "lines", (what, value) of everything else."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options of the benchmark; `smoke` tries it on the CPU with a small network."""

    presets: Sequence[str]
    batch: int
    rounds: int
    round_seconds: float
    smoke: bool
    folder: Path

    def config(self, preset: str, dtype: str, batch: int = 0) -> ConfigDict:
        """The config of our step."""
        config = alexnet.get_config(f"synthetic,{preset}" + ",smoke" * self.smoke)
        config.batch_size = config.eval_batch_size = batch or self.batch
        config.model.num_classes = 1000
        config.model.compute_dtype = dtype
        config.parallel.num_devices = 1
        config.data.prepared_dir = f"{self.folder}/data"
        return config

    def theirs(self, config: ConfigDict) -> Contender:
        """PyTorch's contender at its best, for the network of `config`."""
        network = self.folder / "network.pt"
        call(save_network, config, network)
        options: dict[str, Any] = {"lrn_by_slices": True, "autocast": config.model.compute_dtype == "bfloat16"}
        options["device"] = "cpu" if self.smoke else "cuda"
        options["compiled"] = {"backend": "eager"} if self.smoke else {"mode": "max-autotune"}
        return functools.partial(torch_steps, config, network, **options), config.batch_size


@dataclasses.dataclass
class Measured:
    """Images/s of each round and the peak memory in GB, of the device or on a CPU of the process; or why it failed."""

    rates: list[float] = dataclasses.field(default_factory=list)
    gigabytes: float = 0.0
    failure: str = ""

    def __str__(self) -> str:
        if self.failure or not self.rates:
            return f"{self.failure or '-'} | -"
        low, high = min(self.rates), max(self.rates)
        return f"{statistics.median(self.rates):,.0f} ({low:,.0f} to {high:,.0f}) | {self.gigabytes:.2f}"

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
    """Parses the options and measures the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="the first has the rows on input and evaluation")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round_seconds", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=8.0, help="no row begins later; a row takes up to two minutes")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--smoke", action="store_true", help="a small network on the CPU, to try the script")
    options = vars(parser.parse_args())
    if not options["smoke"] and not shutil.which("nvidia-smi"):
        raise SystemExit("no NVIDIA GPU found (no nvidia-smi); --smoke tries the script on the CPU")
    deadline, output = time.monotonic() + 60 * options.pop("minutes"), options.pop("output")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_PLATFORMS"] = "cpu" if options["smoke"] else "cuda"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the contenders share the device's memory
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/jax")  # the same step is compiled several times
        measure(Settings(**options, folder=Path(folder)), output, deadline)


def measure(settings: Settings, output: Path, deadline: float) -> None:
    """Prints the rows that `output` holds, and those that it lacks as they are measured and written to it."""
    about = {"card": card(settings.smoke), **call(find_versions, settings.smoke), "batch": settings.batch}
    about["preset of single rows"] = settings.presets[0]
    content = read_json(output, dict) if output.exists() else {"about": about, "rows": {}}
    if content["about"] != about:
        raise SystemExit(f"{output} holds other measurements, of {content['about']}; give another --output")
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print("\n| images/s | this project | GB | PyTorch | GB | ratio |\n|---|--:|--:|--:|--:|--:|", flush=True)
    rows, missing = content["rows"], []
    for name, measure_row in make_rows(settings, rows):
        if name not in rows:
            if time.monotonic() > deadline:
                missing.append(name)
                continue
            try:
                rows[name] = measure_row()
            except Exception as error:  # whatever it is, the other rows are still worth measuring
                rows[name] = {"ours": {"failure": f"{type(error).__name__}: {error}".splitlines()[0][:200]}}
            write_json(output, content)
        print("\n".join(lines(name, rows[name])), flush=True)
    if missing:
        print(f"\nNo time for {len(missing)} rows, from {missing[0]!r} on: the same command measures them.")


def make_rows(settings: Settings, rows: Mapping[str, Result]) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Yields each row's name and the function that measures it; `rows` are those measured before."""
    first, dtypes = settings.presets[0], ("float32",) if settings.smoke else ("bfloat16", "float32")
    for dtype in dtypes:
        yield f"agreement, {first}, {dtype}", functools.partial(agree, settings.config(first, dtype, 8), settings.smoke)
    for dtype in dtypes:
        for preset in settings.presets:
            yield f"step, {preset}, {dtype}", functools.partial(compare, settings, settings.config(preset, dtype))
            if (preset, dtype) == (first, dtypes[0]):
                yield from _rows_of_one_preset(settings, settings.config(first, dtype), rows)
    for batch in () if settings.smoke else (128, 256, 512, 2048, 4096):
        config = settings.config(first, dtypes[0], batch)
        yield f"step, {first}, {dtypes[0]}, batch {batch}", functools.partial(compare, settings, config)
    parts = functools.partial(call, find_parts, settings.config(first, dtypes[0]), settings.round_seconds)
    yield f"parts of the step, {first}, {dtypes[0]}", parts


def _rows_of_one_preset(
    settings: Settings, config: ConfigDict, rows: Mapping[str, Result]
) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Peaks of the card, the training loop from the device and from disk, evaluation, and deterministic steps."""
    size = (256, 1 << 20) if settings.smoke else (8192, 1 << 29)
    yield "peaks of the card", functools.partial(call, find_peaks, *size, settings.round_seconds)
    for cache in ("device", "disk"):
        yield f"training from the {cache}", functools.partial(train_row, settings, config, cache, rows)
    for views in (1, 10):
        yield f"evaluation, {views} view{'s' * (views > 1)}", functools.partial(call, evaluate, config, views)
    same_bits = config.copy_and_resolve_references()
    same_bits.parallel.deterministic = True
    yield "step, deterministic", functools.partial(compare, settings, same_bits, alone=True)


def compare(settings: Settings, config: ConfigDict, alone: bool = False) -> Result:
    """Our step and, unless `alone`, PyTorch's."""
    contenders: list[Contender] = [(functools.partial(our_steps, config), config.batch_size)]
    contenders += [] if alone else [settings.theirs(config)]
    measured = take_turns(contenders, settings.rounds, settings.round_seconds)
    return dict(zip(("ours", "theirs"), map(dataclasses.asdict, measured), strict=False))


def take_turns(contenders: Sequence[Contender], rounds: int, round_seconds: float) -> list[Measured]:
    """Times the contenders in turns, round by round; no other process uses the device's memory meanwhile."""
    measured = [Measured() for _ in contenders]
    children: list[tuple[Measured, Child]] = []
    with contextlib.ExitStack() as stack:
        for result, (make_steps, batch) in zip(measured, contenders, strict=True):
            with result.noting_failure():
                child = Child(make_steps, batch, round_seconds)
                children.append((result, stack.enter_context(contextlib.closing(child))))
        for _ in range(rounds):
            for result, child in children:
                with result.noting_failure():
                    rate, result.gigabytes = child.round()
                    result.rates.append(rate)
    return measured


def lines(name: str, result: Result) -> Iterator[str]:
    """The lines of the table for a row."""
    ours, theirs = (Measured(**result.get(side, {})) for side in ("ours", "theirs"))
    if "ours" in result:
        ratios = [our / their for our, their in zip(ours.rates, theirs.rates, strict=False)]
        yield f"| {name} | {ours} | {theirs} | {f'{statistics.median(ratios):.2f}' if ratios else '-'} |"
    for what, value in result.get("lines", []):
        yield f"| {name}: {what} | {value} | | | | |"


def card(smoke: bool) -> str:
    """Name, memory and driver of the GPU."""
    if smoke:
        return "CPU"
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader", "--id=0"]
    return subprocess.check_output(query, text=True).strip()


def find_versions(smoke: bool) -> dict[str, str]:
    """Versions of the libraries, and of CUDA. Ends the program if torch sees no GPU."""
    import jax
    import torch

    if not smoke and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "torch")}
    platform = jax.devices()[0].client.platform_version.splitlines()[-1]
    return {**versions, "jax's platform": platform, "torch's CUDA": str(torch.version.cuda)}


def agree(config: ConfigDict, smoke: bool) -> Result:
    """Whether our step learns and its loss is PyTorch's. Ends the program if not: the speeds would mean nothing."""
    try:
        return {"lines": [("checked", call(_check, config, config.model.compute_dtype, "cpu" if smoke else "cuda"))]}
    except Exception as error:  # whatever it is
        raise SystemExit(f"not measured: {error}") from error


def _check(config: ConfigDict, dtype: str, device: str) -> str:
    from benchmarks.agreement import check  # imports both libraries

    return check(config, dtype, device)


def find_peaks(size: int, length: int, seconds: float) -> Result:
    """The highest speeds of the card; see `roofline.measure_peaks`."""
    from benchmarks.roofline import measure_peaks

    peaks = measure_peaks(size, length, seconds)
    found = [(f"matrix products, {name}", f"{flops / 1e12:,.1f} TFLOP/s") for name, flops in peaks.flops.items()]
    return {"lines": [*found, ("memory, read and written", f"{peaks.bandwidth / 1e9:,.0f} GB/s")]}


def find_parts(config: ConfigDict, seconds: float) -> Result:
    """FLOP, fewest bytes and time alone of each part of the step; see `roofline`."""
    from benchmarks.roofline import get_parts, time_parts

    parts = zip(get_parts(config), time_parts(config, seconds), strict=True)
    form = "{:,.1f} GFLOP, at least {:.3f} GB, alone {:.3f} ms"
    return {"lines": [(p.name, form.format(p.flops / 1e9, p.bytes / 1e9, 1e3 * alone)) for p, alone in parts]}


def train_row(settings: Settings, config: ConfigDict, cache: str, rows: Mapping[str, Result]) -> Result:
    """The training loop, with images of "device", or of "disk": JPEG files that are decoded at each step."""
    step = rows[f"step, {config.model.preset}, {config.model.compute_dtype}"]["ours"]
    bare = statistics.median(step.get("rates") or [0.0])
    rate = call(train, config, cache, max(4, round(4 * settings.round_seconds * bare / config.batch_size)))
    found = [(f"{EPOCHS} epochs of ImageNet", console.duration(EPOCHS * IMAGENET_IMAGES / rate))]
    found += [("of the bare step", f"{rate / bare:.1%}")] if bare else []
    return {"ours": dataclasses.asdict(Measured([rate])), "lines": found}


def train(config: ConfigDict, cache: str, steps: int) -> float:
    """Images/s of a run of so many steps between its first step, which compiles, and its only evaluation."""
    from alexnet_jax.train import train_and_evaluate

    config = config.copy_and_resolve_references()
    config.data.update({"cache": cache, "storage": "raw" if cache == "device" else "jpeg"})
    config.data.synthetic_examples = 4 * config.batch_size
    config.optimizer.schedule = "constant"  # an epoch is a few steps here
    config.update({"epochs": 1e6, "eval_every_epochs": 1e6, "max_steps": steps})
    workdir = Path(config.data.prepared_dir) / f"run-{cache}"
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        train_and_evaluate(config, workdir)
    return json.loads((workdir / "timing.jsonl").read_text().splitlines()[0])["images_per_second"]


def evaluate(config: ConfigDict, views: int) -> Result:
    """Images/s of the evaluation of eight batches in the host's memory, the second time."""
    from alexnet_jax.experiments.step_timing import RandomTraining

    config = config.copy_and_resolve_references()
    config.update({"batch_size": 8 * config.batch_size, "test_views": views})
    training = RandomTraining(config)
    rates = []
    for _ in range(2):
        began = time.perf_counter()
        *_, totals = training.experiment.test(training.state.params, training.state.batch_stats, "train")
        rates.append(float(totals["count"]) / (time.perf_counter() - began))
    return {"ours": dataclasses.asdict(Measured(rates[1:]))}


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in another process, whose end frees the device's memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    main()
