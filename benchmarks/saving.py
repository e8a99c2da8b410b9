"""The cost of saving checkpoints: fraction of time for which it blocks training, and how much longer training takes.

    python -m benchmarks.saving synthetic,lenet synthetic,caffe

trains each network on random images with and without a checkpoint after every few steps, in turns, so that changes in
the machine's load affect both alike. While an earlier checkpoint is still being written, the next is skipped, as
`train.py` does for `config.checkpoint.every_steps`; with --always it waits instead, as after an evaluation.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import optax

from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.experiments.step_timing import RandomTraining
from benchmarks.contenders import spread
from configs import alexnet


def main() -> None:
    """Prints a block of lines for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="CHOICES of configs/alexnet.py")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--seconds", type=float, default=20.0, help="of training without checkpoints in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--always", action="store_true", help="skip no checkpoint")
    parser.add_argument("--folder", help="parent of the temporary folder of checkpoints")
    arguments = parser.parse_args()
    for choices in arguments.networks:
        measure(choices, arguments)


def measure(choices: str, arguments: argparse.Namespace) -> None:
    """Trains one network with and without checkpoints and prints the cost."""
    config = alexnet.get_config(choices)
    config.batch_size = arguments.batch
    training = RandomTraining(config)
    step_seconds = min(training.run(4))
    intervals = max(1, round(arguments.seconds / step_seconds / arguments.every))
    megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(tree(training))) / 1e6
    print(f"{choices}: {megabytes:.1f} MB, a checkpoint every {arguments.every} steps of {1e3 * step_seconds:.1f} ms")
    blocked, slower, saved, longest = [], [], 0, 0.0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, Checkpoints(Path(folder), keep=2) as checkpoints:
        checkpoints.save(0, tree(training), {}, None)  # the first save also allocates memory and imports modules
        for round_number in range(arguments.rounds):
            checkpoints.wait()
            plain = sum(sum(training.run(arguments.every)) for _ in range(intervals))
            began, pauses = time.perf_counter(), []
            for interval in range(intervals):
                training.run(arguments.every)
                if arguments.always or not checkpoints.is_busy():
                    asked = time.perf_counter()
                    checkpoints.save(1 + interval + round_number * intervals, tree(training), {}, None)
                    pauses.append(time.perf_counter() - asked)
            taken = time.perf_counter() - began
            blocked.append(sum(pauses) / taken)
            slower.append(taken / plain - 1)
            saved, longest = saved + len(pauses), max(longest, *pauses)
    print(f"  saved {saved} of {arguments.rounds * intervals} times; the longest pause was {1e3 * longest:.1f} ms")
    print(f"  saves blocked training for {spread(blocked, '.1%')} of the time; medians of {arguments.rounds} rounds")
    print(f"  training took {spread(slower, '.1%')} longer than without saving")


def tree(training: RandomTraining) -> dict[str, object]:
    """The arrays of a state that `train.py` saves."""
    state = training.state
    velocity = optax.tree.get(state.opt_state, "trace")
    return {"params": state.params, "batch_stats": state.batch_stats, "velocity": velocity}


if __name__ == "__main__":
    main()
