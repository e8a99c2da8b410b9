"""The paper's update rule against float64 NumPy, the learning rates of each array, and schedules."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from alexnet_jax.errors import UserError
from alexnet_jax.optimizer import (
    averaged_params,
    describe_learning_rate,
    make_learning_rates,
    make_optimizer,
    make_schedule,
    scale_learning_rate,
)
from configs.alexnet import get_config

SHAPES = {"conv1/kernel": (3, 3, 3, 8), "conv1/bias": (8,), "fc2/kernel": (24, 10), "fc2/bias": (10,)}

STEPS = 50
RATES = [0.01] * 25 + [0.001] * 25


def optimizer_config(**changes: Any) -> ConfigDict:
    """The paper's settings, which this data set and this preset leave alone, with changes."""
    config = get_config("synthetic,bn").optimizer
    config.update(changes)
    return config


def normal_tree(seed: int) -> dict[str, dict[str, np.ndarray]]:
    """{layer: {parameter: float32 array}} of SHAPES.

    The standard deviation of 0.5 keeps weights where 50 roundings to float32 add up to less than 1e-6.
    """
    rng = np.random.default_rng(seed)
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, shape in SHAPES.items():
        layer, parameter = name.split("/")
        tree.setdefault(layer, {})[parameter] = rng.normal(scale=0.5, size=shape).astype(np.float32)
    return tree


PARAMS = normal_tree(seed=0)
GRADIENTS = [normal_tree(seed) for seed in range(1, STEPS + 1)]


def by_name(tree: Any) -> dict[str, Any]:
    return {f"{layer}/{parameter}": leaf for layer, leaves in tree.items() for parameter, leaf in leaves.items()}


def train(config: ConfigDict, rates: Sequence[float] = RATES) -> tuple[dict[str, np.ndarray], Any]:
    """The parameters after one step with each of the kernel rates, and the optimizer's state; a step is an epoch."""
    optimizer, learning_rates = make_optimizer(config, PARAMS), make_learning_rates(config, PARAMS, 90.0)
    update = jax.jit(optimizer.update)
    params, state = PARAMS, optimizer.init(PARAMS)
    for epoch, (gradient, rate) in enumerate(zip(GRADIENTS, rates, strict=False)):
        updates, state = update(gradient, state, params, learning_rates=learning_rates(float(epoch), rate))
        params = optax.apply_updates(params, updates)
    return by_name(params), state


def paper_rule(name: str, decay: float, rates: Sequence[float] = RATES) -> np.ndarray:
    """Section 5 of the paper in float64."""
    w = by_name(PARAMS)[name].astype(np.float64)
    v = np.zeros_like(w)
    for gradient, rate in zip(GRADIENTS, rates, strict=False):
        v = 0.9 * v - decay * rate * w - rate * by_name(gradient)[name]
        w += v
    return w


def largest_difference(x: np.ndarray, y: np.ndarray) -> float:
    return np.abs(x - y).max()


# The update


@pytest.mark.parametrize("name", ["conv1/kernel", "fc2/kernel"])
def test_kernels_follow_the_papers_rule_across_a_division(name: str) -> None:
    params, _ = train(optimizer_config())
    assert largest_difference(params[name], paper_rule(name, decay=0.0005)) <= 1e-6


def test_optax_sgd_is_another_rule_from_the_first_division_on() -> None:
    """It multiplies the whole velocity by the new rate: a division brakes at once what the paper lets roll out."""
    sgd = optax.chain(optax.add_decayed_weights(0.0005), optax.sgd(lambda step: RATES[0] * 0.1 ** (step >= 25), 0.9))
    update = jax.jit(sgd.update)
    params, state = PARAMS, sgd.init(PARAMS)
    differences = []
    for step, gradient in enumerate(GRADIENTS, start=1):
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        ours = paper_rule("fc2/kernel", 0.0005, RATES[:step])
        differences.append(largest_difference(by_name(params)["fc2/kernel"], ours))
    assert max(differences[:25]) <= 1e-6
    assert min(differences[25:]) > 0.01


@pytest.mark.parametrize("name", ["conv1/bias", "fc2/bias"])
def test_biases_learn_twice_as_fast_and_do_not_decay(name: str) -> None:
    params, _ = train(optimizer_config())
    expected = paper_rule(name, decay=0.0, rates=[2 * rate for rate in RATES])
    assert largest_difference(params[name], expected) <= 1e-6


@pytest.mark.parametrize(
    ("changes", "decays"),  # decays: of conv1/kernel, conv1/bias, fc2/kernel, fc2/bias
    [
        ({}, (0.0005, 0, 0.0005, 0)),
        ({"weight_decay": 0.0}, (0, 0, 0, 0)),
        ({"weight_decay": 0.004}, (0.004, 0, 0.004, 0)),
        ({"decay_biases": True}, (0.0005, 0.0005, 0.0005, 0.0005)),
        ({"weight_decay_overrides": (("fc2/kernel", 0.03),)}, (0.0005, 0, 0.03, 0)),
        ({"weight_decay_overrides": (("conv*/kernel", 0.0),)}, (0, 0, 0.0005, 0)),
        ({"weight_decay_overrides": (("*/bias", 0.01),)}, (0.0005, 0.01, 0.0005, 0.01)),
        ({"weight_decay_overrides": (("fc?/*", 0.01), ("*/bias", 0.02))}, (0.0005, 0.02, 0.01, 0.02)),
        ({"weight_decay_overrides": (("*/kernel", 0.03),), "decay_biases": True}, (0.03, 0.0005, 0.03, 0.0005)),
    ],
)
def test_weight_decay_of_each_array(changes: dict[str, Any], decays: tuple[float, ...]) -> None:
    params, _ = train(optimizer_config(bias_rate_multiplier=1.0, **changes))
    for name, decay in zip(SHAPES, decays, strict=True):
        assert largest_difference(params[name], paper_rule(name, decay)) <= 1e-6, name


def test_a_rate_of_zero_freezes_at_once_though_the_velocity_is_not_zero() -> None:
    config = optimizer_config(rate_multipliers=(("conv1/*", 3.0, 0.0),))
    before, state = train(config, RATES[:3])
    after, _ = train(config, RATES[:10])
    velocity = by_name(optax.tree.get(state, "trace"))
    for name in ("conv1/kernel", "conv1/bias"):
        assert np.abs(velocity[name]).min() > 0
        np.testing.assert_array_equal(after[name], before[name])
    assert largest_difference(after["fc2/kernel"], paper_rule("fc2/kernel", 0.0005, RATES[:10])) <= 1e-6


@pytest.mark.parametrize("decay", [0.2, 0.7, 0.999])
def test_the_average_of_the_parameters(decay: float) -> None:
    """average <- d average + (1 - d) params after each step, in float64; d grows from 1/10 to the decay."""
    averages = [by_name(PARAMS)["fc2/kernel"].astype(np.float64)]
    for step in range(10):
        kept = min(decay, (1 + step) / (10 + step))
        averages.append(kept * averages[-1] + (1 - kept) * paper_rule("fc2/kernel", 0.0005, RATES[: step + 1]))
        params, state = train(optimizer_config(ema_decay=decay), RATES[: step + 1])
        average = by_name(averaged_params(state, params))["fc2/kernel"]
        assert largest_difference(average, averages[-1]) <= 1e-6
    assert largest_difference(params["fc2/kernel"], train(optimizer_config(), RATES[:10])[0]["fc2/kernel"]) == 0
    assert largest_difference(average, params["fc2/kernel"]) > 1e-4


def test_without_a_decay_the_average_is_the_parameters_themselves() -> None:
    params, state = train(optimizer_config(), RATES[:3])
    assert averaged_params(state, params) is params


# The rate of each array


@pytest.mark.parametrize(
    ("rules", "epoch", "expected"),  # expected: of conv1/kernel, conv1/bias, fc2/kernel, fc2/bias
    [
        ((), 5.0, (1, 2, 1, 2)),
        ((("conv1/kernel", 0.0, 0.1),), 0.0, (0.1, 2, 1, 2)),
        ((("*/bias", 0.0, 0.5),), 0.0, (1, 1, 1, 1)),
        ((("fc*", 67.0, 0.1),), 66.99, (1, 2, 1, 2)),
        ((("fc*", 67.0, 0.1),), 67.0, (1, 2, 0.1, 0.2)),
        # Factors replace each other, they do not multiply.
        ((("conv1/kernel", 67.0, 0.1), ("conv1/*", 72.0, 0.0)), 70.0, (0.1, 2, 1, 2)),
        ((("conv1/kernel", 67.0, 0.1), ("conv1/*", 72.0, 0.0)), 72.0, (0, 0, 1, 2)),
        ((("conv1/kernel", 10.0, 0.1), ("*", 20.0, 0.5)), 30.0, (0.5, 1, 0.5, 1)),
        # The last that applies wins by its place in the list, not by its epoch.
        ((("*", 20.0, 0.5), ("conv1/kernel", 10.0, 0.1)), 30.0, (0.1, 1, 0.5, 1)),
    ],
)
def test_rate_multipliers(rules: tuple[Any, ...], epoch: float, expected: tuple[float, ...]) -> None:
    rates = by_name(make_learning_rates(optimizer_config(rate_multipliers=rules), PARAMS, 90.0)(epoch, 1.0))
    assert rates == pytest.approx(dict(zip(SHAPES, expected, strict=True)), rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "before", "after"),  # of biases, before and from half-time on
    [("same", 0.0002, 0.0002), ("constant", 0.02, 0.02), ("halfway", 0.02, 0.002)],
)
def test_biases_have_a_schedule_of_their_own(schedule: str, before: float, after: float) -> None:
    learning_rates = make_learning_rates(optimizer_config(bias_schedule=schedule), PARAMS, 90.0)
    for epoch, bias_rate in ((0.0, before), (44.99, before), (45.0, after), (89.0, after)):
        assert by_name(learning_rates(epoch, 0.0001)) == pytest.approx(
            {"conv1/kernel": 0.0001, "conv1/bias": bias_rate, "fc2/kernel": 0.0001, "fc2/bias": bias_rate}, rel=1e-12
        )


@pytest.mark.parametrize("schedule", ["same", "constant", "halfway"])
def test_biases_warm_up_as_kernels_do(schedule: str) -> None:
    config = optimizer_config(bias_schedule=schedule, warmup_epochs=10.0)
    kernels, rates = make_schedule(config, 90.0), make_learning_rates(config, PARAMS, 90.0)
    for epoch, share in ((0.0, 0.0), (2.5, 0.25), (10.0, 1.0)):
        assert by_name(rates(epoch, kernels(epoch, 1.0)))["fc2/bias"] == pytest.approx(0.02 * share, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (make_optimizer, {"weight_decay_overrides": (("fc2/*", 0.1), ("fc3/*", 0.1))}),
        (functools.partial(make_learning_rates, epochs=90.0), {"rate_multipliers": (("fc3/*", 10.0, 0.0),)}),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(make: Callable[..., Any], changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as raised:
        make(optimizer_config(**changes), PARAMS)
    for words in (*changes, "'fc3/*'", *SHAPES):
        assert words in str(raised.value)


# Schedules


@pytest.mark.parametrize(
    ("changes", "epochs_and_factors"),
    [
        ({"schedule": "constant"}, [(0, 1), (50, 1), (100, 1)]),
        (
            {"schedule": "step", "step_epochs": (20.0, 40.0), "factor": 0.1},
            [(0, 1), (19.99, 1), (20, 0.1), (39.99, 0.1), (40, 0.01), (100, 0.01)],
        ),
        ({"schedule": "step", "step_epochs": (10.0,), "factor": 0.25}, [(9.99, 1), (10, 0.25)]),
        ({"schedule": "step", "step_epochs": ()}, [(0, 1), (100, 1)]),
        (
            {"schedule": "dexp", "dexp_target": 250.0, "dexp_steps": 4},
            [
                (0, 1),
                (24.99, 1),
                (25, 250 ** (-1 / 3)),
                (50, 250 ** (-2 / 3)),
                (74.99, 250 ** (-2 / 3)),
                (75, 1 / 250),
                (100, 1 / 250),
                (120, 1 / 250),
            ],
        ),
        ({"schedule": "dexp", "dexp_target": 10.0, "dexp_steps": 2}, [(49.99, 1), (50, 0.1)]),
        (
            {"schedule": "cosine"},
            [(0, 1), (25, (1 + math.sqrt(0.5)) / 2), (50, 0.5), (75, (1 - math.sqrt(0.5)) / 2), (100, 0), (120, 0)],
        ),
        ({"schedule": "linear"}, [(0, 1), (25, 0.75), (90, 0.1), (100, 0), (120, 0)]),
        # What is left after the warm-up is the schedule's whole run.
        ({"schedule": "linear", "warmup_epochs": 20.0}, [(0, 0), (5, 0.25), (20, 1), (60, 0.5), (100, 0)]),
        ({"schedule": "cosine", "warmup_epochs": 20.0}, [(10, 0.5), (20, 1), (60, 0.5), (100, 0)]),
        # Epochs of divisions count from the beginning.
        (
            {"schedule": "step", "step_epochs": (5.0, 40.0), "warmup_epochs": 10.0},
            [(0, 0), (4, 0.4), (5, 0.05), (10, 0.1), (40, 0.01)],
        ),
    ],
)
def test_scheduled_rates(changes: dict[str, Any], epochs_and_factors: list[tuple[float, float]]) -> None:
    schedule = make_schedule(optimizer_config(**changes), epochs=100.0)
    for epoch, factor in epochs_and_factors:
        # The plateau's scale is there in any case and must not count.
        assert schedule(float(epoch), 0.1) == pytest.approx(0.01 * factor, rel=1e-12, abs=1e-17), epoch


def test_plateau_schedule_multiplies_by_the_plateaus_scale() -> None:
    schedule = make_schedule(optimizer_config(schedule="plateau"), epochs=100.0)
    assert schedule(0.0, 1.0) == 0.01
    assert schedule(99.0, 0.1) == pytest.approx(0.001, rel=1e-12)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UserError, match=r"config\.optimizer\.schedule='exp'.*plateau, constant, step, dexp, cosine"):
        make_schedule(optimizer_config(schedule="exp"), epochs=100.0)


@pytest.mark.parametrize(
    ("rule", "rate", "text"),
    [
        ("none", 0.01, "0.01, whatever the batch"),
        ("linear", 0.04, "0.04 = 0.01 for batches of 128, scaled by the linear rule"),
        ("sqrt", 0.02, "0.02 = 0.01 for batches of 128, scaled by the sqrt rule"),
    ],
)
def test_the_rate_follows_the_batch_by_the_rule(rule: str, rate: float, text: str) -> None:
    config = optimizer_config(batch_scaling=rule)
    assert scale_learning_rate(config, 512).learning_rate == pytest.approx(rate)
    assert scale_learning_rate(config, 128).learning_rate == config.learning_rate == 0.01
    assert describe_learning_rate(config, 512) == text
