"""Our training step and forward pass against the same network in PyTorch, on the CPU, both at their best settings.

    python -m pip install -r benchmarks/requirements.txt
    python -m benchmarks.train_step --rounds 5

Ours is the step as the training loop compiles it, with random crops, mirror images and mean out of bytes; PyTorch is
given ready float32 crops in memory, which is in its favour. PyTorch runs in channels_last, eager and compiled (which
needs a C++ compiler), and with response normalisation also in a form that it compiles better than its own; the ratio is
taken against the fastest. Each contender has a process of its own; they take turns, so that the machine's mood hits all
alike.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ml_collections import ConfigDict

from alexnet_jax.machine import available_cores
from configs import alexnet

# Nothing at the top may import JAX or torch: a process that starts others lends them its own peak memory (Linux counts
# from the fork on), and neither contender should hold the other's library.

ROUND_SECONDS = 4.0
OURS = "ours"
PEERS = {
    "PyTorch, eager": {"compiled": False, "lrn_by_slices": False},
    "PyTorch, compiled": {"compiled": True, "lrn_by_slices": False},
    "PyTorch, compiled, LRN by slices": {"compiled": True, "lrn_by_slices": True},
}
MEAN = (123.7, 116.3, 103.5)  # grey levels of ImageNet; any would do


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is timed: the choices of a config with changes, its training step or the forward pass in testing."""

    choices: str
    changes: Mapping[str, Any]
    training: bool = True

    @property
    def config(self) -> ConfigDict:
        """The whole config."""
        config = alexnet.get_config(self.choices)
        config.update_from_flattened_dict(self.changes)
        return config

    @property
    def has_lrn(self) -> bool:
        """Whether the network normalises responses, as the presets used here do."""
        return self.config.model.lrn != "none"


_CAFFE = {"model.num_classes": 1000, "batch_size": 128}
WORKLOADS = {
    "caffe without LRN": Workload("synthetic,caffe", {**_CAFFE, "model.lrn": "none"}),
    "caffe": Workload("synthetic,caffe", _CAFFE),
    "caffe forward without LRN": Workload("synthetic,caffe", {**_CAFFE, "model.lrn": "none"}, training=False),
    "caffe forward": Workload("synthetic,caffe", _CAFFE, training=False),
    "digits": Workload("digits", {"model.num_classes": 10}),
}

Steps = Callable[[int], None]
"""Does so many steps and returns when their results are there."""


def main() -> None:
    """Prints the machine, then images/s, ratios and memory of each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=WORKLOADS, help="one workload")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch"))
    print(f"{versions}, {available_cores()} cores, {_cpu()}, float32; medians of {arguments.rounds} rounds")
    print(f"{'':59}{'images/s':24}{'ours / best PyTorch':24}{'peak GB':>8}  ours / best PyTorch")
    for name in [arguments.only] if arguments.only else WORKLOADS:
        for row in compare(name, WORKLOADS[name], arguments.rounds):
            print(row, flush=True)


def compare(name: str, workload: Workload, rounds: int) -> Iterator[str]:
    """Times the contenders by turns; yields a row of the table for each."""
    peers = [peer for peer in PEERS if workload.has_lrn or not PEERS[peer]["lrn_by_slices"]]
    rates: dict[str, list[float]] = {contender: [] for contender in (OURS, *peers)}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "network.pt"
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other_process:
            other_process.submit(_save_network, workload.config, path).result()
        children = {
            contender: stack.enter_context(contextlib.closing(Child(contender, workload, path))) for contender in rates
        }
        began, taken = time.perf_counter(), _taken_by_others(children.values())
        for _ in range(rounds):
            for contender, child in children.items():
                rate, memory[contender] = child.round()
                rates[contender].append(rate)
        seconds = (time.perf_counter() - began) * (psutil.cpu_count() or 1)
        share = (_taken_by_others(children.values()) - taken) / seconds
    if share > 0.05:
        yield f"{name:26}worth nothing: other processes took {share:.0%} of the cores, PyTorch's threads suffer most"
    best = max(peers, key=lambda peer: statistics.median(rates[peer]))
    ratios = [ours / theirs for ours, theirs in zip(rates[OURS], rates[best], strict=True)]
    for contender, values in rates.items():
        row = f"{name:26}{contender:33}{_spread(values, '.1f'):24}"
        if contender == OURS:
            yield f"{row}{_spread(ratios, '.2f'):24}{memory[OURS]:8.2f}  {memory[OURS] / memory[best]:.2f}"
        else:
            yield f"{row}{'':24}{memory[contender]:8.2f}"


def _taken_by_others(children: Iterable["Child"]) -> float:
    """Seconds so far in which a core worked for another process than these."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)  # Linux counts waiting for disks apart
    return sum(times) - idle - sum(child.cpu_seconds() for child in children)


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _cpu() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


class Child:
    """A contender in a process of its own, warmed up."""

    def __init__(self, contender: str, workload: Workload, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender, workload, path), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the child ends the wait for its answer
        self._batch_size = workload.config.batch_size
        self._steps = 1
        rate, _ = self.round()
        self._steps = max(1, round(ROUND_SECONDS * rate / self._batch_size))

    def round(self) -> tuple[float, float]:
        """Images/s of a round, and the process' peak memory so far in GB."""
        self._connection.send(self._steps)
        seconds, gigabytes = self._connection.recv()
        return self._steps * self._batch_size / seconds, gigabytes

    def cpu_seconds(self) -> float:
        """Time that the process has spent on all cores."""
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """Ends the process, by force if it is busy."""
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()


def _save_network(config: ConfigDict, path: Path) -> None:
    """Leaves the network in PyTorch, so that the peers need no JAX."""
    from benchmarks.torch_alexnet import save_network

    save_network(config, path)


def _serve(connection: Connection, contender: str, workload: Workload, path: Path) -> None:
    """Compiles, warms up, and answers each number of steps with their seconds and the peak memory in GB."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run = _make_steps(contender, workload, path)
    run(3)
    with contextlib.suppress(EOFError):
        while steps := connection.recv():
            began = time.perf_counter()
            run(steps)
            seconds = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            connection.send((seconds, peak / (1e9 if sys.platform == "darwin" else 1e9 / 1024)))


def _end_with_parent() -> None:
    """Ends this process when its parent ends, whatever it is doing then."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _make_steps(contender: str, workload: Workload, path: Path) -> Steps:
    if contender == OURS:
        return our_training(workload.config) if workload.training else our_forward(workload.config)
    from benchmarks.torch_alexnet import load_steps

    return load_steps(workload.config, path, workload.training, **PEERS[contender])


def our_training(config: ConfigDict) -> Steps:
    """The training step as `train.py` compiles and feeds it, on batches that are on the device already."""
    import jax

    from alexnet_jax.experiment import make_preprocessing
    from alexnet_jax.inventory import Statistics
    from alexnet_jax.models import get_model
    from alexnet_jax.optimizer import make_learning_rates, make_optimizer
    from alexnet_jax.parallel import DataParallel
    from alexnet_jax.steps import make_train_step
    from alexnet_jax.train_state import create_train_state, init_variables

    batch_size, classes, size = config.batch_size, config.model.num_classes, config.data.image_size
    model = get_model(config.model, classes)
    variables = init_variables(model, config.data.crop, config.seed)
    optimizer = make_optimizer(config.optimizer, variables["params"])
    rates = make_learning_rates(config.optimizer, variables["params"])(0.0, config.optimizer.learning_rate)
    # No workload has colour noise, so nothing else of the statistics is used.
    mean_image = np.full((size, size, 3), MEAN, np.float32)
    known = dataclasses.replace(Statistics.unknown(size), mean=MEAN, mean_image=mean_image)
    preprocessing = make_preprocessing(config.data, known)
    devices = DataParallel.create(1)
    step = devices.compile_train_step(make_train_step(model, optimizer, preprocessing, devices.axis))
    fresh = create_train_state(variables, optimizer, config.seed)
    state = devices.replicate(dataclasses.replace(fresh, learning_rates=jax.tree.map(np.float32, rates)))
    generator = np.random.default_rng(0)
    batch = devices.shard(
        {
            "image": generator.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8),
            "label": generator.integers(0, classes, batch_size, dtype=np.int32),
            "id": np.arange(batch_size, dtype=np.int32),
            "epoch": np.zeros(batch_size, np.int32),
        }
    )

    def run(steps: int) -> None:
        nonlocal state
        pending = None
        for _ in range(steps):
            state, sums = step(state, batch)
            jax.device_get(pending)  # one step late, as the loop does
            pending = sums
        jax.block_until_ready((state, pending))

    return run


def our_forward(config: ConfigDict) -> Steps:
    """Logits of float32 crops in testing."""
    import jax

    from alexnet_jax.models import get_model
    from alexnet_jax.train_state import init_variables

    model = get_model(config.model, config.model.num_classes)
    variables = init_variables(model, config.data.crop, config.seed)
    forward = jax.jit(lambda variables, images: model.apply(variables, images)[0])
    shape = (config.batch_size, config.data.crop, config.data.crop, 3)
    crops = jax.numpy.asarray(np.random.default_rng(0).normal(scale=70, size=shape).astype(np.float32))

    def run(steps: int) -> None:
        for _ in range(steps):
            jax.block_until_ready(forward(variables, crops))

    return run


if __name__ == "__main__":
    main()
