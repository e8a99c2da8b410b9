"""Members of a population against the same networks trained alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.augment import Preprocessing
from alexnet_jax.models import AlexNet
from alexnet_jax.optimizer import make_optimizer
from alexnet_jax.parallel import DataParallel
from alexnet_jax.population import Member, make_member_step, make_population_step, stack
from alexnet_jax.steps import Step, make_train_step
from alexnet_jax.towers import Axes
from alexnet_jax.train_state import create_train_state, init_variables
from tests.training_setup import setup

BATCH, STEPS = 16, 20

Settings = dict[str, Any]

COMMON = {"seed": 0, "learning_rate": 0.002, "momentum": 0.9, "weight_decay": 0.004, "dropout_rate": 0.5}
DIFFERENT = {"seed": 1, "learning_rate": 0.001, "momentum": 0.5, "weight_decay": 1.0, "dropout_rate": 0.1}
ONE_AT_A_TIME = [COMMON, *({**COMMON, name: value} for name, value in DIFFERENT.items())]
ALL_AT_ONCE = [COMMON, DIFFERENT]


@dataclasses.dataclass(frozen=True)
class Network:
    """A preset with dropout before its classifier, which the small ones lack; smooth: without ReLU and maxima."""

    choices: str
    smooth: bool = False

    def setup(self) -> tuple[ConfigDict, AlexNet, Preprocessing]:
        config, model, _, preprocessing = setup(self.choices)
        *others, last, classifier = model.layers
        last = dataclasses.replace(last, then=(*last.then, "dropout"))
        model = model.clone(layers=(*others, last, classifier))
        if self.smooth:
            layers = tuple(dataclasses.replace(layer, pool="avg") for layer in model.layers)
            model = model.clone(layers=layers, activation="tanh")
        return config, model, preprocessing


def batches(image_size: int) -> list[dict[str, np.ndarray]]:
    """Colours that tell the class, in noise."""
    generator = np.random.default_rng(0)
    colors = generator.integers(0, 256, (10, 1, 1, 3))
    labels = generator.integers(0, 10, (STEPS, BATCH), dtype=np.int32)
    noise = generator.integers(-40, 40, (STEPS, BATCH, image_size, image_size, 3))
    images = np.clip(colors[labels] + noise, 0, 255).astype(np.uint8)
    return [
        {
            "image": images[number],
            "label": labels[number],
            "id": np.arange(number * BATCH, (number + 1) * BATCH, dtype=np.int32),
            "epoch": np.full(BATCH, number // 4, np.int32),
        }
        for number in range(STEPS)
    ]


def create_member(config: ConfigDict, model: AlexNet, settings: Settings) -> Member:
    variables = init_variables(model, config.data.crop, settings["seed"])
    state = create_train_state(variables, make_optimizer(config.optimizer, variables["params"]), settings["seed"])
    rates = jax.tree.map(lambda _: jnp.float32(settings["learning_rate"]), state.params)
    own = {name: settings[name] for name in ("momentum", "weight_decay", "dropout_rate")}
    return Member(state=state.replace(learning_rates=rates), **own)


def trained(devices: DataParallel, step: Step[Any], state: Any, image_size: int) -> tuple[Any, np.ndarray]:
    """The state after all steps, and the loss of each, [steps, ...]."""
    compiled, state, losses = devices.compile_train_step(step), devices.place(state), []
    for batch in batches(image_size):
        state, sums = compiled(state, devices.shard(batch))
        losses.append(np.asarray(sums["loss_sum"]))
    return state, np.stack(losses)


def trained_alone(devices: DataParallel, network: Network, settings: Settings) -> tuple[Any, np.ndarray]:
    """As `train.py` makes the step: all but the learning rates is in the program."""
    config, model, preprocessing = network.setup()
    state = create_member(config, model, settings).state
    config.optimizer.update({name: settings[name] for name in ("momentum", "weight_decay")})
    model = model.clone(dropout_rate=settings["dropout_rate"])
    step = make_train_step(model, make_optimizer(config.optimizer, state.params), preprocessing, Axes(("data",)))
    return trained(devices, step, state, config.data.image_size)


def side_by_side(member_step: Step[Member]) -> Step[Member]:
    """What an accelerator does with a population."""
    return jax.vmap(member_step, in_axes=(0, None))


# Convolutions side by side are rounded otherwise, and 20 steps of that move a maximum or a ReLU's edge here and there.
@pytest.mark.parametrize(
    ("network", "members", "devices", "make_step"),
    [
        (Network("lenet,smoke"), ONE_AT_A_TIME, 1, make_population_step),
        (Network("lenet,smoke"), ALL_AT_ONCE, 2, make_population_step),
        (Network("cifar_18pct,smoke"), ALL_AT_ONCE, 1, make_population_step),
        (Network("lenet,smoke", smooth=True), ALL_AT_ONCE, 1, side_by_side),
    ],
)
def test_a_member_learns_what_it_would_learn_alone(
    network: Network, members: list[Settings], devices: int, make_step: Callable[[Step[Member]], Step[Member]]
) -> None:
    config, model, preprocessing = network.setup()
    parallel = DataParallel.create(devices)
    step = make_step(make_member_step(config.optimizer, model, preprocessing, Axes(("data",))))
    population = stack([create_member(config, model, settings) for settings in members])
    population, losses = trained(parallel, step, population, config.data.image_size)
    assert len(np.unique(losses[-1])) == len(members)
    for number, settings in enumerate(members):
        alone, losses_alone = trained_alone(parallel, network, settings)
        np.testing.assert_allclose(losses[:, number], losses_alone, rtol=1e-5)
        for arrays, expected in zip(
            jax.tree.leaves(population.state.params), jax.tree.leaves(alone.params), strict=True
        ):
            np.testing.assert_allclose(arrays[number], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_members_share_a_program_in_a_loop_on_the_cpu_and_side_by_side_on_accelerators() -> None:
    config, model, preprocessing = Network("lenet,smoke").setup()
    step = make_population_step(make_member_step(config.optimizer, model, preprocessing))
    population = stack([create_member(config, model, settings) for settings in ONE_AT_A_TIME])
    traced = jax.jit(lambda batch: step(population, batch)).trace(batches(config.data.image_size)[0])
    texts = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda")}
    in_groups = f"feature_group_count = {len(ONE_AT_A_TIME)}"
    assert in_groups not in texts["cpu"]
    assert in_groups in texts["cuda"]
