"""Learning rates: the plateau rule against a reference in plain Python, schedules, biases and multipliers."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.errors import UserError
from alexnet_jax.schedules import LearningRates, Plateau, scaled_learning_rate
from tests.optimizer_test import PARAMS, SHAPES, by_name, optimizer_config


def make_rates(config: ConfigDict, epochs: float) -> LearningRates:
    return LearningRates(config, config.base_batch_size, epochs, PARAMS)


def reference_scales(config: ConfigDict, errors: Sequence[float], epochs: float) -> list[float]:
    """The factor on the learning rate after each evaluation, one per epoch, by the plateau rule in plain Python."""
    best, without_improvement, cooldown = math.inf, 0, 0
    divisions, scale = 0, 1.0
    scales = []
    for epoch, error in enumerate(errors, start=1):
        improved = error < best * (1 - config.threshold)
        best = error if improved else best
        without_improvement = 0 if improved or cooldown else without_improvement + 1
        cooldown = max(cooldown - 1, 0)
        overdue = any(
            divisions < k and epoch >= k * epochs / (config.min_drops + 1) for k in range(1, config.min_drops + 1)
        )
        if without_improvement == config.patience or overdue:
            without_improvement, cooldown = 0, config.cooldown
            divisions += 1
            scale = max(scale * config.factor, config.minimum_learning_rate / config.learning_rate)
        scales.append(scale)
    return scales


def play(
    rates: LearningRates, errors: Sequence[float], store: Callable[[Any], Any] | None = None
) -> tuple[list[float], list[str | None]]:
    """The factor and the reason of a drop after each evaluation, one per epoch; `store` passes the state on."""
    scales, reasons = [], []
    first = rates.of_kernels(0.0)
    for epoch, error in enumerate(errors, start=1):
        if store:
            rates.restore(store(rates.state()), float(epoch))
        rates.observe(error, float(epoch))
        scales.append(rates.of_kernels(float(epoch)) / first)
        reasons.append(rates.at(float(epoch)).change)
    return scales, reasons


def changes_of(scales: Sequence[float]) -> list[int]:
    """The evaluations, counted from 1, after which the factor has changed."""
    return [i for i, (before, after) in enumerate(itertools.pairwise([1.0, *scales]), 1) if before != after]


FALLING = [0.9**k for k in range(1, 41)]


@pytest.mark.parametrize(
    ("changes", "errors", "divisions"),
    [
        ({}, [0.5, 0.4, 0.3], []),
        # The first error is always an improvement; patience counts from there.
        ({"patience": 3}, [0.5] * 7, [4, 7]),
        ({"patience": 1}, [0.5, 0.5, 0.4, 0.4, 0.4], [2, 4, 5]),
        # An improvement resets the count, even if it only returns to the trend.
        ({"patience": 2}, [0.5, 0.6, 0.4, 0.6, 0.5], [5]),
        # Errors are compared with the best so far, not with the previous one.
        ({"patience": 2}, [0.3, 0.5, 0.4], [3]),
        # 10 % of 0.5 are 0.05: 0.46 is too little, 0.44 is enough.
        ({"patience": 2, "threshold": 0.1}, [0.5, 0.46, 0.46], [3]),
        ({"patience": 2, "threshold": 0.1}, [0.5, 0.46, 0.44], []),
        # Small steps add up: each is compared with the last that counted.
        ({"patience": 2, "threshold": 0.1}, [0.5, 0.47, 0.44, 0.42, 0.39], []),
        # With a threshold of 0 the least improvement counts, and equality is none.
        ({"patience": 2, "threshold": 0.0}, [0.5, 0.5, 0.4999, 0.4999, 0.4999], [5]),
        ({"patience": 2, "cooldown": 3}, [0.5] * 13, [3, 8, 13]),
        # The cooldown counts no failures, but remembers the best.
        ({"patience": 2, "cooldown": 1}, [0.5, 0.5, 0.5, 0.2, 0.3, 0.3], [3, 6]),
        ({"patience": 1, "minimum_learning_rate": 0.001}, [0.5] * 6, [2]),
        ({"patience": 1, "minimum_learning_rate": 0.0005}, [0.5] * 6, [2, 3]),
        ({"patience": 1, "factor": 0.5, "minimum_learning_rate": 0.0035}, [0.5] * 6, [2, 3]),
        # Enforced drops, in a run of 40 epochs.
        ({"min_drops": 1}, FALLING, [20]),
        ({"min_drops": 3}, FALLING, [10, 20, 30]),
        ({"min_drops": 7}, FALLING, [5, 10, 15, 20, 25, 30, 35]),
        # Neither patience nor cooldown delays an enforced drop, and it resets both.
        ({"min_drops": 3, "patience": 3, "cooldown": 20}, FALLING[:9] + [0.9] * 31, [10, 20, 30]),
        ({"min_drops": 1, "patience": 4}, [*FALLING[:17], 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [20, 24]),
        # A drop that came early is not repeated at its latest epoch.
        ({"min_drops": 3, "patience": 2}, [0.95, 0.95, 0.95, *FALLING[3:]], [3, 20, 30]),
    ],
)
def test_divisions(changes: dict[str, Any], errors: list[float], divisions: list[int]) -> None:
    config = optimizer_config(**{"min_drops": 0, "minimum_learning_rate": 1e-9, **changes})
    scales, _ = play(make_rates(config, epochs=40.0), errors)
    assert changes_of(scales) == divisions
    assert scales == pytest.approx(reference_scales(config, errors, epochs=40.0), rel=1e-6)


def random_case(seed: int) -> tuple[ConfigDict, list[float]]:
    """Settings, and 60 errors that fall, stall and repeat themselves."""
    rng = np.random.default_rng(seed)
    config = optimizer_config(
        factor=float(rng.choice([0.1, 0.3, 0.5])),
        patience=int(rng.integers(1, 6)),
        threshold=float(rng.choice([0.001, 0.01, 0.1])),
        cooldown=int(rng.integers(0, 4)),
        learning_rate=float(rng.choice([0.01, 0.02])),
        minimum_learning_rate=float(rng.choice([1e-9, 1e-5, 0.003])),
        min_drops=int(rng.integers(0, 5)),
    )
    errors = np.exp(-np.linspace(0, rng.uniform(0, 3), 60)) * rng.uniform(0.9, 1.0, 60)
    errors = np.where(rng.random(60) < 0.2, np.roll(errors, 1), errors)
    return config, errors.tolist()


@pytest.mark.parametrize("seed", range(30))
def test_random_errors_divide_as_the_reference_says(seed: int) -> None:
    config, errors = random_case(seed)
    expected = reference_scales(config, errors, epochs=60.0)
    scales, reasons = play(make_rates(config, epochs=60.0), errors)
    assert scales == pytest.approx(expected, rel=1e-6)
    assert [i for i, reason in enumerate(reasons, start=1) if reason is not None] == changes_of(scales)
    assert "" not in reasons


def test_random_cases_divide_at_all() -> None:
    """Without drops the test above would compare nothing."""
    divisions = [len(changes_of(reference_scales(*random_case(seed), epochs=60.0))) for seed in range(30)]
    assert min(divisions) == 0
    assert max(divisions) >= 8


def test_reasons_tell_the_best_error_or_the_number_of_the_division() -> None:
    config = optimizer_config(patience=2, min_drops=1)
    _, reasons = play(make_rates(config, epochs=10.0), [0.5, 0.25, 0.25, 0.25, 0.2])
    assert reasons == [
        None,
        None,
        None,
        "no validation error below 25.00% in 2 evaluations",
        None,
    ]
    _, reasons = play(make_rates(config, epochs=10.0), FALLING[:5])
    assert reasons == [None, None, None, None, "drop 1 of at least 1, due by epoch 5 of 10"]


def test_the_scale_is_a_power_of_the_factor_in_double_precision() -> None:
    """float32(0.1) times 0.01 would show as a learning rate of 0.0010000000149."""
    config = optimizer_config(patience=1, min_drops=0)
    scales, _ = play(make_rates(config, epochs=10.0), [0.5] * 4)
    assert scales == pytest.approx([1, 0.1, 0.01, 0.001], rel=1e-15)


@pytest.mark.parametrize("learning_rate", [0.01, 0.02, 0.05])
def test_divisions_end_at_the_minimum_learning_rate(learning_rate: float) -> None:
    config = optimizer_config(learning_rate=learning_rate, patience=1, minimum_learning_rate=1e-5)
    rates = make_rates(config, epochs=40.0)
    play(rates, [0.5] * 10)
    assert rates.of_kernels(10.0) == pytest.approx(1e-5, rel=1e-6)


def test_at_the_minimum_learning_rate_nothing_is_divided_any_more() -> None:
    config = optimizer_config(learning_rate=0.01, patience=1, minimum_learning_rate=1e-5, min_drops=0)
    _, reasons = play(make_rates(config, epochs=40.0), [0.5] * 10)
    assert [reason is not None for reason in reasons] == [False, True, True, True] + [False] * 6


def test_a_first_rate_below_the_minimum_is_never_raised() -> None:
    rates = make_rates(optimizer_config(learning_rate=1e-6, minimum_learning_rate=1e-5, patience=1), epochs=40.0)
    scales, reasons = play(rates, [0.5] * 10)
    assert scales == [1.0] * 10
    assert reasons == [None] * 10


def test_without_a_minimum_learning_rate_divisions_go_on_for_ever() -> None:
    """The factor is below the range of float32 after 46 drops."""
    rates = make_rates(optimizer_config(patience=1, minimum_learning_rate=0.0, min_drops=0), epochs=1000.0)
    scales, _ = play(rates, [0.5] * 60)
    assert all(0 <= after <= before for before, after in itertools.pairwise(scales))


@pytest.mark.parametrize("seed", range(3))
def test_the_state_survives_a_checkpoint(seed: int) -> None:
    """A checkpoint holds the fields as plain arrays of their own types."""

    def store(state: Any) -> Any:
        arrays = {name: np.asarray(field) for name, field in state.items()}
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float64), np.dtype(np.int64)}
        return {name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in arrays.items()}

    config, errors = random_case(seed)
    assert play(make_rates(config, epochs=60.0), errors, store) == play(make_rates(config, epochs=60.0), errors)


def test_the_state_of_an_earlier_version_is_read() -> None:
    """It has the fields of optax's ReduceLROnPlateauState in addition to the drops."""
    fields = {"scale": 1.0, "best_value": np.float32(0.25), "plateau_count": 2, "cooldown_count": 0, "count": 0}
    rates = make_rates(optimizer_config(), epochs=60.0)
    rates.restore({**fields, "avg_value": 0.0, "divisions": 1}, epoch=3.0)
    assert rates.plateau == Plateau(0.25, 2, 0, 1)
    assert rates.of_kernels(3.0) == pytest.approx(0.001)


def test_a_network_that_still_guesses_gets_no_drop() -> None:
    rates = make_rates(optimizer_config(patience=2, min_drops=1), epochs=8.0)
    withheld = [rates.observe(0.9, float(epoch), is_at_chance=epoch < 7) for epoch in range(1, 7)]
    assert withheld == [False, False, True, True, True, True] and rates.of_kernels(6.0) == 0.01
    assert not rates.observe(0.9, 7.0) and rates.of_kernels(7.0) == pytest.approx(0.001)


def test_evaluations_at_chance_level_do_not_add_up_to_a_drop_at_once() -> None:
    rates = make_rates(optimizer_config(patience=3), epochs=40.0)
    withheld = [rates.observe(0.9, float(epoch), is_at_chance=True) for epoch in range(1, 9)]
    assert withheld == [False, False, False, True, False, False, True, False]
    assert not rates.observe(0.8, 9.0) and rates.plateau == Plateau(0.8, 0, 0, 0)


# Restarts


@pytest.mark.parametrize(
    ("changes", "epochs_and_factors"),
    [
        ({"schedule": "constant"}, [(0, 1), (40, 1), (100, 1)]),
        ({"schedule": "step", "step_epochs": (10.0,)}, [(9, 1), (10, 0.1), (39, 0.1), (40, 1), (49, 1), (50, 0.1)]),
        ({"schedule": "dexp", "dexp_target": 10.0, "dexp_steps": 2}, [(20, 0.1), (40, 1), (69, 1), (70, 0.1)]),
        ({"schedule": "linear"}, [(0, 1), (20, 0.5), (39, 0.025), (40, 1), (70, 0.5), (100, 0)]),
        ({"schedule": "cosine", "warmup_epochs": 10.0}, [(5, 0.5), (25, 0.5), (40, 0), (45, 0.5), (75, 0.5), (100, 0)]),
    ],
)
def test_a_schedule_starts_anew(changes: dict[str, Any], epochs_and_factors: list[tuple[float, float]]) -> None:
    rates = make_rates(optimizer_config(restart_epochs=(40.0,), **changes), epochs=100.0)
    for epoch, factor in epochs_and_factors:
        assert rates.at(float(epoch)).kernels == pytest.approx(0.01 * factor, rel=1e-12, abs=1e-17), epoch


def test_the_plateau_rule_starts_anew_once_and_forgets_the_evaluation_before() -> None:
    rates = make_rates(optimizer_config(patience=1, restart_epochs=(3.0,)), epochs=10.0)
    for epoch in (1.0, 2.0):
        rates.observe(0.1, epoch, last_step=epoch - 0.5)
        rates.at(epoch)
    step = rates.at(3.25)
    assert (step.before, step.kernels) == pytest.approx((0.001, 0.01))
    assert step.change == "the schedule starts anew, epoch 3.25"
    rates.observe(0.1, 3.25, last_step=2.75)  # of the network that the old learning rate has trained
    assert rates.plateau == Plateau(restarts=1)
    continued = make_rates(optimizer_config(patience=1, restart_epochs=(3.0,)), epochs=10.0)
    continued.restore(rates.state(), 3.25)
    for each in (rates, continued):
        assert each.at(3.25).change is None
        each.observe(0.5, 4.0, last_step=3.75)
        each.observe(0.5, 5.0, last_step=4.75)
        assert each.at(5.0).kernels == pytest.approx(0.001)


def test_biases_start_anew_too() -> None:
    config = optimizer_config(bias_schedule="halfway", schedule="constant", restart_epochs=(40.0,))
    rates = make_rates(config, epochs=100.0)
    for epoch, factor in ((0.0, 2), (20.0, 0.2), (40.0, 2), (69.0, 2), (70.0, 0.2)):
        assert by_name(rates.at(epoch).by_parameter)["fc2/bias"] == pytest.approx(0.01 * factor), epoch


@pytest.mark.parametrize(
    ("changes", "fallen"),
    [({"schedule": "step", "step_epochs": (10.0,)}, True), ({"schedule": "cosine"}, False), ({}, False)],
)
def test_only_drops_are_for_good(changes: dict[str, Any], fallen: bool) -> None:
    assert make_rates(optimizer_config(**changes), epochs=20.0).has_fallen_for_good(20.0) == fallen


# Parameters


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
def test_learning_rate_multipliers(rules: tuple[Any, ...], epoch: float, expected: tuple[float, ...]) -> None:
    config = optimizer_config(learning_rate_multipliers=rules, schedule="constant", learning_rate=1.0)
    rates = by_name(make_rates(config, 90.0).at(epoch).by_parameter)
    assert rates == pytest.approx(dict(zip(SHAPES, expected, strict=True)), rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "before", "after"),  # of biases, before and from half-time on
    [("same", 0.0002, 0.0002), ("constant", 0.02, 0.02), ("halfway", 0.02, 0.002)],
)
def test_biases_have_a_schedule_of_their_own(schedule: str, before: float, after: float) -> None:
    step = {"schedule": "step", "step_epochs": (0.0,), "factor": 0.01}
    learning_rates = make_rates(optimizer_config(bias_schedule=schedule, **step), 90.0)
    for epoch, bias_rate in ((0.0, before), (44.99, before), (45.0, after), (89.0, after)):
        assert by_name(learning_rates.at(epoch).by_parameter) == pytest.approx(
            {"conv1/kernel": 0.0001, "conv1/bias": bias_rate, "fc2/kernel": 0.0001, "fc2/bias": bias_rate}, rel=1e-12
        )


@pytest.mark.parametrize("schedule", ["same", "constant", "halfway"])
def test_biases_warm_up_as_kernels_do(schedule: str) -> None:
    config = optimizer_config(bias_schedule=schedule, warmup_epochs=10.0)
    rates = make_rates(config, 90.0)
    for epoch, share in ((0.0, 0.0), (2.5, 0.25), (10.0, 1.0)):
        assert by_name(rates.at(epoch).by_parameter)["fc2/bias"] == pytest.approx(0.02 * share, rel=1e-12)


def test_a_pattern_of_learning_rate_multipliers_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError) as raised:
        make_rates(optimizer_config(learning_rate_multipliers=(("fc3/*", 10.0, 0.0),)), 90.0)
    for words in ("learning_rate_multipliers", "'fc3/*'", *SHAPES):
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
        ({"schedule": "quadratic"}, [(0, 1), (25, 0.5625), (90, 0.01), (100, 0), (120, 0)]),
        # The schedule runs from the end of the warm-up to the end of the run.
        ({"schedule": "linear", "warmup_epochs": 20.0}, [(0, 0), (5, 0.25), (20, 1), (60, 0.5), (100, 0)]),
        ({"schedule": "cosine", "warmup_epochs": 20.0}, [(10, 0.5), (20, 1), (60, 0.5), (100, 0)]),
        # Epochs of drops count from the start of the run.
        (
            {"schedule": "step", "step_epochs": (5.0, 40.0), "warmup_epochs": 10.0},
            [(0, 0), (4, 0.4), (5, 0.05), (10, 0.1), (40, 0.01)],
        ),
    ],
)
def test_scheduled_rates(changes: dict[str, Any], epochs_and_factors: list[tuple[float, float]]) -> None:
    rates = make_rates(optimizer_config(**changes), epochs=100.0)
    rates.plateau = Plateau(divisions=1)  # drops of the plateau rule must not count in other schedules
    for epoch, factor in epochs_and_factors:
        assert rates.of_kernels(float(epoch)) == pytest.approx(0.01 * factor, rel=1e-12, abs=1e-17), epoch


def test_plateau_schedule_multiplies_by_the_plateaus_scale() -> None:
    rates = make_rates(optimizer_config(schedule="plateau"), epochs=100.0)
    assert rates.of_kernels(0.0) == 0.01
    rates.plateau = Plateau(divisions=1)
    assert rates.of_kernels(99.0) == pytest.approx(0.001, rel=1e-12)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UserError, match=r"config\.optimizer\.schedule='exp'.*plateau, constant, step, dexp, cosine"):
        make_rates(optimizer_config(schedule="exp"), epochs=100.0)


@pytest.mark.parametrize(
    ("rule", "rate", "text"),
    [
        ("none", 0.01, "0.01 for any batch size"),
        ("linear", 0.04, "0.04 = 0.01 for batches of 128, scaled by the linear rule"),
        ("sqrt", 0.02, "0.02 = 0.01 for batches of 128, scaled by the sqrt rule"),
    ],
)
def test_the_rate_follows_the_batch_by_the_rule(rule: str, rate: float, text: str) -> None:
    config = optimizer_config(batch_scaling=rule)
    assert scaled_learning_rate(config, 512) == pytest.approx(rate)
    assert scaled_learning_rate(config, 128) == config.learning_rate == 0.01
    larger = LearningRates(config, 512, 90.0, PARAMS)
    assert larger.describe() == text and larger.of_kernels(0.0) == pytest.approx(rate)
