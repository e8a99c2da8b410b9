"""Memory and communication of devices that share one network, from the compiled training step; prints Markdown.

    NPROC=16 XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m benchmarks.mesh

compiles the full-size network of two towers for one device and for two as in 2012, and the network of 2014 for one, two
and four. Nothing is trained: virtual devices show how much is sent, not how fast.
"""

import argparse
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from alexnet_jax.experiments.step_timing import RandomTraining
from configs import alexnet

FLOAT_BYTES = 4

Moves = list[tuple[str, tuple[int, ...]]]
"""Collectives and the shapes of their results."""


def collectives(compiled: Any) -> Moves:
    """The float32 collectives of a compiled program, except for all-reduces."""
    found = []
    for line in compiled.as_text().splitlines():
        match = re.search(r"= (.*?) (all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", line)
        if match:
            shapes = re.findall(r"f32\[([\d,]+)\]", match[1])
            found += [(match[2], tuple(map(int, shape.split(",")))) for shape in shapes]
    return found


def received_bytes(moves: Moves, towers: int) -> float:
    """Bytes that each device receives from the others that share its network."""
    received_fraction = {
        "all-gather": (towers - 1) / towers,
        "reduce-scatter": towers - 1,
        "all-to-all": (towers - 1) / towers,
        "collective-permute": 1,
    }
    return sum(FLOAT_BYTES * np.prod(shape) * received_fraction[operation] for operation, shape in moves)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each network and mesh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", default="synthetic", help="choices of configs/alexnet.py besides the preset")
    choices = parser.parse_args(argv).choices
    print("| network | data x tower | KB received per image | parameters and velocity, MB | working memory, MB |")
    print("|---|---|--:|--:|--:|")
    for preset, meshes in (("source", ((1, 1), (1, 2))), ("owt", ((1, 1), (1, 2), (1, 4)))):
        for rows, towers in meshes:
            print(f"| `{preset}` | {rows} x {towers} | {describe(f'{preset},{choices}', rows, towers)} |", flush=True)


def describe(choices: str, rows: int, towers: int) -> str:
    """The last cells of a row: KB received per image, MB of state, MB of temporary memory in a step."""
    config = alexnet.get_config(choices)
    config.batch_size = 128
    config.parallel.update({"mode": "mesh", "num_devices": rows * towers, "towers": towers})
    training = RandomTraining(config)
    compiled = training.experiment.train_step.compile(training.state, training.batch)
    images = config.batch_size // rows
    state = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(training.state.params)) * 2
    received = received_bytes(collectives(compiled), towers) / images
    return f"{received / 1e3:,.1f} | {state / 1e6:,.1f} | {compiled.memory_analysis().temp_size_in_bytes / 1e6:,.1f}"


if __name__ == "__main__":
    main()
