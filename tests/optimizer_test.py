"""The paper's update rule, compared with float64 NumPy, and the learning rate of each array."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from alexnet_jax.errors import UserError
from alexnet_jax.optimizer import (
    averaged_params,
    averaged_stats,
    make_optimizer,
    restored_state,
    saved_state,
    with_batch_stats,
)
from alexnet_jax.schedules import LearningRates
from configs.alexnet import get_config

SHAPES = {"conv1/kernel": (3, 3, 3, 8), "conv1/bias": (8,), "fc2/kernel": (24, 10), "fc2/bias": (10,)}

STEPS = 50
RATES = [0.01] * 25 + [0.001] * 25


def optimizer_config(**changes: Any) -> ConfigDict:
    """The paper's settings, which this data set and preset do not change, with `changes`."""
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


def rates_of(config: ConfigDict, epoch: float, kernels: float) -> Any:
    """The learning rate of each of PARAMS where that of kernels is given."""
    constant = config.copy_and_resolve_references()
    constant.update({"schedule": "constant", "learning_rate": kernels})
    return LearningRates(constant, 128, 90.0, PARAMS).at(epoch).by_parameter


def train(config: ConfigDict, rates: Sequence[float] = RATES) -> tuple[dict[str, np.ndarray], Any]:
    """The parameters after one step per learning rate of kernels, and the optimizer's state; a step is an epoch."""
    optimizer = make_optimizer(config, PARAMS)
    update = jax.jit(optimizer.update)
    params, state = PARAMS, optimizer.init(PARAMS)
    for epoch, (gradient, rate) in enumerate(zip(GRADIENTS, rates, strict=False)):
        learning_rates = rates_of(config, float(epoch), rate)
        updates, state = update(gradient, state, params, learning_rates=learning_rates)
        params = optax.apply_updates(params, updates)
    return by_name(params), state


def paper_rule(name: str, decay: float, rates: Sequence[float] = RATES) -> np.ndarray:
    """The update of paper section 5 in float64."""
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
    """`optax.sgd` scales the whole velocity by the new learning rate; in the paper the old velocity decays slowly."""
    sgd = optax.chain(
        optax.add_decayed_weights(0.0005), optax.sgd(lambda step: RATES[0] * jnp.where(step < 25, 1, 0.1), 0.9)
    )
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
    params, _ = train(optimizer_config(bias_learning_rate_multiplier=1.0, **changes))
    for name, decay in zip(SHAPES, decays, strict=True):
        assert largest_difference(params[name], paper_rule(name, decay)) <= 1e-6, name


def test_a_rate_of_zero_freezes_at_once_though_the_velocity_is_not_zero() -> None:
    config = optimizer_config(learning_rate_multipliers=(("conv1/*", 3.0, 0.0),))
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


def test_batch_statistics_are_averaged_like_the_parameters() -> None:
    optimizer = make_optimizer(optimizer_config(ema_decay=0.7), PARAMS)
    rates = jax.tree.map(lambda _: jnp.zeros(()), PARAMS)
    stats = [{"bn1": {"mean": jnp.full(2, value)}} for value in (1.0, 3.0, 8.0)]
    state = with_batch_stats(optimizer.init(PARAMS), stats[0])
    expected = 1.0
    for kept, new in zip((1 / 10, 2 / 11), stats[1:], strict=True):
        _, state = optimizer.update(PARAMS, state, PARAMS, learning_rates=rates, batch_stats=new)
        expected = kept * expected + (1 - kept) * float(new["bn1"]["mean"][0])
    np.testing.assert_allclose(averaged_stats(state, None)["bn1"]["mean"], expected, rtol=1e-6)
    old = {name: arrays for name, arrays in saved_state(state).items() if name != "average_stats"}
    resumed = restored_state(optimizer.init(PARAMS), {**old, "batch_stats": stats[2]})
    assert averaged_stats(resumed, None) is stats[2]
    plain = with_batch_stats(make_optimizer(optimizer_config(), PARAMS).init(PARAMS), stats[0])
    assert averaged_stats(plain, stats[1]) is stats[1]


def adamw_rule(name: str, decay: float, steps: int, gradients: Sequence[Any]) -> np.ndarray:
    """AdamW in float64 (Loshchilov and Hutter 2019, algorithm 2)."""
    w = by_name(PARAMS)[name].astype(np.float64)
    m, s = np.zeros_like(w), np.zeros_like(w)
    for step in range(1, steps + 1):
        gradient = by_name(gradients[step - 1])[name].astype(np.float64)
        m, s = 0.8 * m + 0.2 * gradient, 0.95 * s + 0.05 * gradient**2
        w -= RATES[step - 1] * (m / (1 - 0.8**step) / (np.sqrt(s / (1 - 0.95**step)) + 1e-6) + decay * w)
    return w


ADAMW = {"name": "adamw", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "bias_learning_rate_multiplier": 1.0}


def test_adamw_decays_weights_apart_from_gradients_and_only_those_of_kernels() -> None:
    params, _ = train(optimizer_config(weight_decay=0.3, weight_decay_overrides=(("fc2/kernel", 0.7),), **ADAMW))
    for name, decay in zip(SHAPES, (0.3, 0.0, 0.7, 0.0), strict=True):
        assert largest_difference(params[name], adamw_rule(name, decay, STEPS, GRADIENTS)) <= 2e-6, name


def test_adamw_freezes_and_averages() -> None:
    frozen = optimizer_config(learning_rate_multipliers=(("conv1/*", 0.0, 0.0),), ema_decay=0.9, **ADAMW)
    params, state = train(frozen, RATES[:5])
    np.testing.assert_array_equal(params["conv1/kernel"], by_name(PARAMS)["conv1/kernel"])
    assert largest_difference(by_name(averaged_params(state, None))["fc2/kernel"], params["fc2/kernel"]) > 1e-4


LARS = {"name": "lars", "trust_coefficient": 0.02, "bias_learning_rate_multiplier": 1.0}


def test_lars_and_lamb_scale_each_learning_rate_by_the_ratio_of_norms() -> None:
    """The rules in the docstring of `optimizer`, in float64; LAMB is algorithm 2 of You et al. 2020."""
    lars, _ = train(optimizer_config(**LARS))
    lamb, _ = train(optimizer_config(weight_decay=0.3, **{**ADAMW, "name": "lamb"}))
    for name in SHAPES:
        decay = 0.0005 if name.endswith("/kernel") else 0.0
        w = by_name(PARAMS)[name].astype(np.float64)
        v = np.zeros_like(w)
        for gradient, rate in zip(GRADIENTS, RATES, strict=True):
            update = by_name(gradient)[name] + decay * w
            v = 0.9 * v - rate * 0.02 * np.linalg.norm(w) / np.linalg.norm(update) * update
            w = w + v
        assert largest_difference(lars[name], w) <= 1e-6, name
        w = by_name(PARAMS)[name].astype(np.float64)
        m, s = np.zeros_like(w), np.zeros_like(w)
        for step, (tree, rate) in enumerate(zip(GRADIENTS, RATES, strict=True), start=1):
            gradient = by_name(tree)[name].astype(np.float64)
            m, s = 0.8 * m + 0.2 * gradient, 0.95 * s + 0.05 * gradient**2
            update = m / (1 - 0.8**step) / (np.sqrt(s / (1 - 0.95**step)) + 1e-6) + 600 * decay * w
            w = w - rate * np.linalg.norm(w) / np.linalg.norm(update) * update
        assert largest_difference(lamb[name], w) <= 2e-6, name


def test_lars_moves_an_array_of_zeros_by_its_own_learning_rate() -> None:
    optimizer = make_optimizer(optimizer_config(**LARS), PARAMS)
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    updates, _ = optimizer.update(
        GRADIENTS[0], optimizer.init(zeros), zeros, learning_rates=rates_of(optimizer_config(**LARS), 0.0, 0.01)
    )
    np.testing.assert_allclose(by_name(updates)["conv1/bias"], -0.01 * by_name(GRADIENTS[0])["conv1/bias"], rtol=1e-6)


@pytest.mark.parametrize("clip_norm", [1.0, 100.0])  # the norm of all gradients together is about 12
def test_gradients_above_the_norm_are_scaled_down_together(clip_norm: float) -> None:
    flat = [np.concatenate([array.ravel() for array in jax.tree.leaves(tree)]) for tree in GRADIENTS]
    factors = [min(1.0, clip_norm / np.linalg.norm(gradient.astype(np.float64))) for gradient in flat]
    assert (max(factors) < 1) == (clip_norm == 1.0)
    clipped = [
        jax.tree.map(lambda g, f=f: (f * g).astype(np.float32), t) for f, t in zip(factors, GRADIENTS, strict=True)
    ]
    params, _ = train(optimizer_config(clip_norm=clip_norm, **ADAMW))
    assert largest_difference(params["fc2/bias"], adamw_rule("fc2/bias", 0.0, STEPS, clipped)) <= 2e-6


@pytest.mark.parametrize(
    "changes", [{}, {"ema_decay": 0.9, "clip_norm": 1.0}, ADAMW, {"ema_decay": 0.9, **ADAMW}, LARS]
)
def test_a_saved_state_is_restored_whole(changes: dict[str, Any]) -> None:
    config = optimizer_config(**changes)
    _, state = train(config, RATES[:3])
    saved = saved_state(state)
    assert ("velocity" in saved) == (changes.get("name") != "adamw")
    fresh = make_optimizer(config, PARAMS).init(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, restored_state(fresh, saved), state)


# The learning rate of each array


def test_a_pattern_of_weight_decay_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError) as raised:
        make_optimizer(optimizer_config(weight_decay_overrides=(("fc2/*", 0.1), ("fc3/*", 0.1))), PARAMS)
    for words in ("weight_decay_overrides", "'fc3/*'", *SHAPES):
        assert words in str(raised.value)
