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
from alexnet_jax.experiments.population import Member, make_member_step, make_population_step
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.optimizer import make_optimizer
from alexnet_jax.parallel.collectives import Axes
from alexnet_jax.parallel.devices import DataParallel
from alexnet_jax.steps import make_train_step
from alexnet_jax.train_state import create_train_state, init_variables
from tests.helpers.training_setup import setup

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


def batches(image_size: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Colours that tell the class, in noise."""
    generator = np.random.default_rng(seed)
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


def trained_alone(devices: DataParallel, network: Network, settings: Settings, number: int) -> tuple[Any, np.ndarray]:
    """As `train.py` makes the step: all but the learning rates is in the program."""
    config, model, preprocessing = network.setup()
    state = create_member(config, model, settings).state
    config.optimizer.update({name: settings[name] for name in ("momentum", "weight_decay")})
    model = model.clone(dropout_rate=settings["dropout_rate"])
    step = make_train_step(model, make_optimizer(config.optimizer, state.params), preprocessing, Axes(("data",)))
    compiled, state, losses = devices.compile_train_step(step), devices.place(state), []
    for batch in batches(config.data.image_size, number):
        state, sums = compiled(state, devices.shard(batch))
        losses.append(np.asarray(sums["loss_sum"]))
    return state, np.stack(losses)


def trained_at_once(
    devices: DataParallel, network: Network, settings: list[Settings]
) -> tuple[tuple[Member, ...], np.ndarray]:
    """The members after all steps, each with batches of its own, and their losses, [steps, members]."""
    config, model, preprocessing = network.setup()
    step = make_member_step(config.optimizer, model, preprocessing, Axes(("data",)))
    compiled = devices.compile_train_step(step, of_many=make_population_step)
    members, losses = devices.place(tuple(create_member(config, model, own) for own in settings)), []
    of_members = [batches(config.data.image_size, number) for number in range(len(settings))]
    for of_step in zip(*of_members, strict=True):
        members, sums = compiled(members, tuple(map(devices.shard, of_step)))
        losses.append([np.asarray(of_member["loss_sum"]) for of_member in sums])
    return members, np.asarray(losses)


def side_by_side(*args: Any, default: Callable[..., Any], cpu: Callable[..., Any]) -> Any:
    """What an accelerator does with a population."""
    return default(*args)


# Convolutions side by side are rounded otherwise, and 20 steps of that move a maximum or a ReLU's edge here and there.
@pytest.mark.parametrize(
    ("network", "settings", "devices", "is_accelerator"),
    [
        (Network("lenet,smoke"), ONE_AT_A_TIME, 1, False),
        (Network("lenet,smoke"), ALL_AT_ONCE, 2, False),
        (Network("cifar_18pct,smoke"), ALL_AT_ONCE, 1, False),
        (Network("lenet,smoke", smooth=True), ALL_AT_ONCE, 1, True),
    ],
)
def test_a_member_learns_what_it_would_learn_alone(
    network: Network, settings: list[Settings], devices: int, is_accelerator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_accelerator:
        monkeypatch.setattr("jax.lax.platform_dependent", side_by_side)
    parallel = DataParallel.create(devices)
    members, losses = trained_at_once(parallel, network, settings)
    assert len(np.unique(losses[-1])) == len(settings)
    for number, (member, own) in enumerate(zip(members, settings, strict=True)):
        alone, losses_alone = trained_alone(parallel, network, own, number)
        np.testing.assert_allclose(losses[:, number], losses_alone, rtol=1e-5)
        for array, expected in zip(jax.tree.leaves(member.state.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_members_share_a_program_in_a_loop_on_the_cpu_and_side_by_side_on_accelerators() -> None:
    config, model, preprocessing = Network("lenet,smoke").setup()
    step = make_population_step(make_member_step(config.optimizer, model, preprocessing))
    members = tuple(create_member(config, model, settings) for settings in ONE_AT_A_TIME)
    batch = batches(config.data.image_size, 0)[0]
    traced = jax.jit(lambda *of_members: step(members, of_members)).trace(*[batch] * len(members))
    texts = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda")}
    in_groups = f"feature_group_count = {len(ONE_AT_A_TIME)}"
    assert in_groups not in texts["cpu"]
    assert in_groups in texts["cuda"]
