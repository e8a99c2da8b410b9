"""Our training step and forward pass against the same network in PyTorch, on the CPU, each at its best settings.

    python -m pip install -r benchmarks/requirements.txt
    python -m benchmarks.train_step --rounds 5

Our step is the one of the training loop, including random crops, mirror images and mean subtraction from bytes; PyTorch
is given float32 crops in memory, which is in its favour. PyTorch runs in channels_last, eager and compiled (which needs
a C++ compiler); response normalisation also runs in a form that it compiles better. The ratio is to the fastest of
these. Each contender has a process of its own, and they take turns, so that changes in load affect all alike.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from ml_collections import ConfigDict

from alexnet_jax.models.alexnet import get_model
from alexnet_jax.system.machine import available_cores, processor_name
from benchmarks.contenders import Child, our_steps, save_network, spread, torch_steps
from configs import alexnet

ROUND_SECONDS = 4.0
OURS = "ours"
PEERS: dict[str, dict[str, Any]] = {
    "PyTorch, eager": {"compiled": None, "lrn_by_slices": False},
    "PyTorch, compiled": {"compiled": {}, "lrn_by_slices": False},
    "PyTorch, compiled, LRN by slices": {"compiled": {}, "lrn_by_slices": True},
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """A config with changes, of which the training step or the forward pass in testing is timed."""

    choices: str
    changes: Mapping[str, Any]
    training: bool = True

    @property
    def config(self) -> ConfigDict:
        """The complete config."""
        config = alexnet.get_config(self.choices)
        config.update_from_flattened_dict(self.changes)
        return config

    @property
    def has_lrn(self) -> bool:
        """Whether the network has response normalisation."""
        model = get_model(self.config.model, self.config.model.num_classes)
        return model.lrn is not None and any("lrn" in layer.then for layer in model.layers)


_CAFFE = {"model.num_classes": 1000, "batch_size": 128}
_SMALL = ("lenet", "small", "small_modern", "cifar_18pct", "cifar_13pct", "cifar_11pct")
_ONE_TOWER = ("owt", "bn")
WORKLOADS = {
    "caffe without LRN": Workload("synthetic,caffe", {**_CAFFE, "model.lrn": "none"}),
    "caffe": Workload("synthetic,caffe", _CAFFE),
    "caffe forward without LRN": Workload("synthetic,caffe", {**_CAFFE, "model.lrn": "none"}, training=False),
    "caffe forward": Workload("synthetic,caffe", _CAFFE, training=False),
    "digits": Workload("digits", {"model.num_classes": 10}),
    **{name: Workload(f"synthetic,{name}", {"model.num_classes": 10}) for name in _SMALL},
    **{name: Workload(f"synthetic,{name}", _CAFFE) for name in _ONE_TOWER},
    **{
        f"{name} forward, {images} image{'s' * (images > 1)}": Workload(
            f"synthetic,{name}", {**_CAFFE, "batch_size": images}, training=False
        )
        for name in ("caffe", *_ONE_TOWER)
        for images in (1, 16)
    },
}


def main() -> None:
    """Prints versions and processor, then images/s, ratios and memory for each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=WORKLOADS, help="time only this workload")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch"))
    print(f"{versions}, {available_cores()} cores, {processor_name()}, float32; medians of {arguments.rounds} rounds")
    print(f"{'':59}{'images/s':24}{'ours / best PyTorch':24}{'peak GB':>8}  ours / best PyTorch")
    for name in [arguments.only] if arguments.only else WORKLOADS:
        for row in compare(name, WORKLOADS[name], arguments.rounds):
            print(row, flush=True)


def compare(name: str, workload: Workload, rounds: int) -> Iterator[str]:
    """Times the contenders in turns; yields a row of the table for each."""
    peers = [peer for peer in PEERS if workload.has_lrn or not PEERS[peer]["lrn_by_slices"]]
    rates: dict[str, list[float]] = {contender: [] for contender in (OURS, *peers)}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "network.pt"
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other_process:
            other_process.submit(save_network, workload.config, path).result()
        children = {
            contender: stack.enter_context(contextlib.closing(_make_child(contender, workload, path)))
            for contender in rates
        }
        began, taken = time.perf_counter(), _taken_by_others(children.values())
        for _ in range(rounds):
            for contender, child in children.items():
                rate, memory[contender] = child.round()
                rates[contender].append(rate)
        seconds = (time.perf_counter() - began) * (psutil.cpu_count() or 1)
        fraction = (_taken_by_others(children.values()) - taken) / seconds
    if fraction > 0.05:
        yield f"{name:26}unreliable: other processes used {fraction:.0%} of the cores, which slows PyTorch most"
    best = max(peers, key=lambda peer: statistics.median(rates[peer]))
    ratios = [ours / theirs for ours, theirs in zip(rates[OURS], rates[best], strict=True)]
    for contender, values in rates.items():
        row = f"{name:26}{contender:33}{spread(values, '.1f'):24}"
        if contender == OURS:
            yield f"{row}{spread(ratios, '.2f'):24}{memory[OURS]:8.2f}  {memory[OURS] / memory[best]:.2f}"
        else:
            yield f"{row}{'':24}{memory[contender]:8.2f}"


def _taken_by_others(children: Iterable[Child]) -> float:
    """CPU seconds so far that were used by processes other than the children."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)  # Linux counts waiting for disks separately
    return sum(times) - idle - sum(child.cpu_seconds() for child in children)


def _make_child(contender: str, workload: Workload, path: Path) -> Child:
    config, training = workload.config, workload.training
    if contender == OURS:
        make_steps = functools.partial(our_steps, config, training)
    else:
        make_steps = functools.partial(torch_steps, config, path, training, **PEERS[contender])
    return Child(make_steps, config.batch_size, ROUND_SECONDS)


if __name__ == "__main__":
    main()
