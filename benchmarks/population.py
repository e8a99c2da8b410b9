"""Eight small networks trained at once against the same eight in turn.

    python -m benchmarks.population --rounds 5

The networks are `cifar_18pct` with batches of 128 synthetic images, which are on the device already; they differ in
seed, learning rate, momentum and weight decay. At once they are a population in one program. In turn each is trained
with the step of `train.py`, where momentum and decay are part of the program: it compiles once a network, where
networks that differ in seed and rate alone could share one program. Both take turns in one process, so that the
machine's mood hits both alike.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.experiment import make_preprocessing
from alexnet_jax.inventory import Statistics
from alexnet_jax.models import get_model
from alexnet_jax.optimizer import make_learning_rates, make_optimizer
from alexnet_jax.parallel import DataParallel
from alexnet_jax.population import Member, make_member_step, make_population_step, stack
from alexnet_jax.steps import Batch, Step, make_train_step
from alexnet_jax.train_state import TrainState, create_train_state, init_variables
from benchmarks.contenders import spread
from configs import alexnet

MEMBERS = 8
CLASSES = 10
ROUND_SECONDS = 4.0


def main() -> None:
    """Prints the seconds of the first steps, which compile, then images/s of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    devices, configs = DataParallel.create(1), [make_config(number) for number in range(MEMBERS)]
    contenders = {"at once": [make_population(devices, configs)], "in turn": make_networks(devices, configs)}
    batch = make_batch(devices, configs[0])
    print(f"jax {jax.__version__}, {devices.devices[0].device_kind}, float32; medians of {rounds} rounds")
    for name, trainings in contenders.items():
        first = [training.seconds(batch, 1) for training in trainings]
        print(
            f"{name}: first steps {sum(first):.1f} s, {len(first)} compiled in {min(first):.1f} to {max(first):.1f} s"
        )
    steps = max(1, round(ROUND_SECONDS / sum(training.seconds(batch, 1) for training in contenders["in turn"])))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, trainings in contenders.items():
            seconds = sum(training.seconds(batch, steps) for training in trainings)
            rates[name].append(MEMBERS * steps * configs[0].batch_size / seconds)
    for name, values in rates.items():
        print(f"{name}: {spread(values, ',.0f')} images/s, all networks together")
    ratios = [once / turn for once, turn in zip(rates["at once"], rates["in turn"], strict=True)]
    print(f"at once / in turn: {spread(ratios, '.2f')}")


@dataclasses.dataclass
class Training:
    """A compiled step and the state that it has come to."""

    step: Step[Any]
    state: Any

    def seconds(self, batch: Batch, steps: int) -> float:
        """How long so many steps take."""
        began, pending = time.perf_counter(), None
        for _ in range(steps):
            self.state, sums = self.step(self.state, batch)
            jax.device_get(pending)  # one step late, as the loop does
            pending = sums
        jax.block_until_ready((self.state, pending))
        return time.perf_counter() - began


def make_config(number: int) -> ConfigDict:
    """A sweep's choice."""
    config = alexnet.get_config("synthetic,cifar_18pct")
    config.seed = number
    config.optimizer.learning_rate *= 0.8**number
    config.optimizer.momentum -= 0.02 * number
    config.optimizer.weight_decay *= 0.7**number
    return config


def make_population(devices: DataParallel, configs: Sequence[ConfigDict]) -> Training:
    """All networks in one program."""
    model, preprocessing = get_model(configs[0].model, CLASSES), make_preprocessing(configs[0].data, _statistics())
    step = make_population_step(make_member_step(configs[0].optimizer, model, preprocessing, devices.axis))
    members = [
        Member(create_state(config), config.optimizer.momentum, config.optimizer.weight_decay, model.dropout_rate)
        for config in configs
    ]
    return Training(devices.compile_train_step(step), devices.replicate(stack(members)))


def make_networks(devices: DataParallel, configs: Sequence[ConfigDict]) -> list[Training]:
    """Each network as `train.py` makes it."""
    trainings = []
    for config in configs:
        model, preprocessing = get_model(config.model, CLASSES), make_preprocessing(config.data, _statistics())
        state = create_state(config)
        optimizer = make_optimizer(config.optimizer, state.params)
        step = devices.compile_train_step(make_train_step(model, optimizer, preprocessing, devices.axis))
        trainings.append(Training(step, devices.replicate(state)))
    return trainings


def create_state(config: ConfigDict) -> TrainState:
    """A network before its first step, with the rates of that step."""
    variables = init_variables(get_model(config.model, CLASSES), config.data.crop, config.seed)
    params = variables["params"]
    rates = make_learning_rates(config.optimizer, params)(0.0, config.optimizer.learning_rate)
    fresh = create_train_state(variables, make_optimizer(config.optimizer, params), config.seed)
    return dataclasses.replace(fresh, learning_rates=jax.tree.map(np.float32, rates))


def make_batch(devices: DataParallel, config: ConfigDict) -> Batch:
    """Noise."""
    generator, batch_size, size = np.random.default_rng(0), config.batch_size, config.data.image_size
    return devices.shard(
        {
            "image": generator.integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8),
            "label": generator.integers(0, CLASSES, batch_size, dtype=np.int32),
            "id": np.arange(batch_size, dtype=np.int32),
            "epoch": np.zeros(batch_size, np.int32),
        }
    )


def _statistics() -> Statistics:
    """The mean of noise; there is no colour noise, so nothing else is used."""
    mean_image = np.full((32, 32, 3), 127.5, np.float32)
    return dataclasses.replace(Statistics.unknown(32), mean_image=mean_image)


if __name__ == "__main__":
    main()
