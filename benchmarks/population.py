"""Eight small networks trained at once against the same eight in turn.

    python -m benchmarks.population --rounds 5

The networks are `cifar_18pct` with batches of 128 synthetic images, which are on the device already; they differ in
seed, learning rate, momentum and weight decay. At once they are a population in one program. In turn each is trained
with the step of `train.py`, where momentum and decay are part of the program: it compiles once a network, where
networks that differ in seed and rate alone could share one program. Both take turns in one process, so that the
machine's mood hits both alike.
"""

import argparse
import time
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from alexnet_jax.experiments.population import Member, make_member_step, make_population_step
from alexnet_jax.experiments.step_timing import RandomTraining
from benchmarks.contenders import Steps, spread
from configs import alexnet

MEMBERS = 8
CLASSES = 10
ROUND_SECONDS = 4.0


def main() -> None:
    """Prints the seconds of the first steps, which compile, then images/s of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    configs = [make_config(number) for number in range(MEMBERS)]
    networks = [RandomTraining(config) for config in configs]
    contenders: dict[str, list[Steps]] = {
        "at once": [Population(networks, configs).run],
        "in turn": [network.run for network in networks],
    }
    print(f"jax {jax.__version__}, {networks[0].devices.devices[0].device_kind}, float32; medians of {rounds} rounds")
    for name, runs in contenders.items():
        first = [seconds(run, 1) for run in runs]
        print(
            f"{name}: first steps {sum(first):.1f} s, {len(first)} compiled in {min(first):.1f} to {max(first):.1f} s"
        )
    steps = max(1, round(ROUND_SECONDS / sum(seconds(run, 1) for run in contenders["in turn"])))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, runs in contenders.items():
            taken = sum(seconds(run, steps) for run in runs)
            rates[name].append(MEMBERS * steps * configs[0].batch_size / taken)
    for name, values in rates.items():
        print(f"{name}: {spread(values, ',.0f')} images/s, all networks together")
    ratios = [once / turn for once, turn in zip(rates["at once"], rates["in turn"], strict=True)]
    print(f"at once / in turn: {spread(ratios, '.2f')}")


class Population:
    """All networks in one program, and the state that they have come to."""

    def __init__(self, networks: Sequence[RandomTraining], configs: Sequence[ConfigDict]):
        first, devices = networks[0], networks[0].devices
        step = make_member_step(configs[0].optimizer, first.model, first.preprocessing, devices.axes)
        members = [
            Member(network.state, config.optimizer.momentum, config.optimizer.weight_decay, first.model.dropout_rate)
            for network, config in zip(networks, configs, strict=True)
        ]
        self._step = devices.compile_train_step(step, of_many=make_population_step)
        self._batches = (first.batch,) * len(members)
        self._members = devices.place(tuple(members))

    def run(self, steps: int) -> None:
        """Does so many steps."""
        pending = None
        for _ in range(steps):
            self._members, sums = self._step(self._members, self._batches)
            jax.device_get(pending)  # one step late, as the loop does
            pending = sums
        jax.block_until_ready((self._members, pending))


def seconds(run: Steps, steps: int) -> float:
    """How long so many steps take."""
    began = time.perf_counter()
    run(steps)
    return time.perf_counter() - began


def make_config(number: int) -> ConfigDict:
    """A sweep's choice."""
    config = alexnet.get_config("synthetic,cifar_18pct")
    config.model.num_classes, config.parallel.num_devices = CLASSES, 1
    config.seed = number
    config.optimizer.learning_rate *= 0.8**number
    config.optimizer.momentum -= 0.02 * number
    config.optimizer.weight_decay *= 0.7**number
    return config


if __name__ == "__main__":
    main()
