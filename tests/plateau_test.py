"""The plateau rule against a reference in plain Python: when the rate is divided, and why."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.optimizer import Plateau, make_schedule
from tests.optimizer_test import optimizer_config


def reference_scales(config: ConfigDict, errors: Sequence[float], epochs: float) -> list[float]:
    """The scale after each evaluation, one an epoch, by the rule of Plateau's docstring in plain Python."""
    best, without_improvement, cooldown = math.inf, 0, 0
    divisions, scale = 0, 1.0
    scales = []
    for epoch, error in enumerate(errors, start=1):
        improved = error < best * (1 - config.threshold)
        best = error if improved else best
        without_improvement = 0 if improved or cooldown else without_improvement + 1
        cooldown = max(cooldown - 1, 0)
        overdue = any(
            divisions < k and epoch >= k * epochs / (config.min_divisions + 1)
            for k in range(1, config.min_divisions + 1)
        )
        if without_improvement == config.patience or overdue:
            without_improvement, cooldown = 0, config.cooldown
            divisions += 1
            scale = max(scale * config.factor, config.minimum_rate / config.learning_rate)
        scales.append(scale)
    return scales


def play(
    plateau: Plateau, errors: Sequence[float], store: Callable[[Any], Any] = lambda state: state
) -> tuple[list[float], list[str | None]]:
    """The scale and the reason after each evaluation, one an epoch; `store` is what happens to the state between."""
    state = plateau.init()
    scales, reasons = [], []
    for epoch, error in enumerate(errors, start=1):
        state, reason = plateau.update(store(state), error, float(epoch))
        scales.append(plateau.scale(state))
        reasons.append(reason)
    return scales, reasons


def changes_of(scales: Sequence[float]) -> list[int]:
    """The evaluations, counted from 1, after which the scale is another than before."""
    return [i for i, (before, after) in enumerate(itertools.pairwise([1.0, *scales]), 1) if before != after]


FALLING = [0.9**k for k in range(1, 41)]


@pytest.mark.parametrize(
    ("changes", "errors", "divisions"),
    [
        ({}, [0.5, 0.4, 0.3], []),
        # The first error is always an improvement; patience counts from there.
        ({"patience": 3}, [0.5] * 7, [4, 7]),
        ({"patience": 1}, [0.5, 0.5, 0.4, 0.4, 0.4], [2, 4, 5]),
        # An improvement begins the count anew, also if it only returns to the trend.
        ({"patience": 2}, [0.5, 0.6, 0.4, 0.6, 0.5], [5]),
        # What counts is the best so far, not the evaluation before.
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
        ({"patience": 1, "minimum_rate": 0.001}, [0.5] * 6, [2]),
        ({"patience": 1, "minimum_rate": 0.0005}, [0.5] * 6, [2, 3]),
        ({"patience": 1, "factor": 0.5, "minimum_rate": 0.0035}, [0.5] * 6, [2, 3]),
        # Forced divisions, in a run of 40 epochs.
        ({"min_divisions": 1}, FALLING, [20]),
        ({"min_divisions": 3}, FALLING, [10, 20, 30]),
        ({"min_divisions": 7}, FALLING, [5, 10, 15, 20, 25, 30, 35]),
        # Neither patience nor cooldown puts a forced one off, and it begins both anew.
        ({"min_divisions": 3, "patience": 3, "cooldown": 20}, FALLING[:9] + [0.9] * 31, [10, 20, 30]),
        ({"min_divisions": 1, "patience": 4}, [*FALLING[:17], 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [20, 24]),
        # A division that came early is not repeated when it would have been due.
        ({"min_divisions": 3, "patience": 2}, [0.95, 0.95, 0.95, *FALLING[3:]], [3, 20, 30]),
    ],
)
def test_divisions(changes: dict[str, Any], errors: list[float], divisions: list[int]) -> None:
    config = optimizer_config(**{"min_divisions": 0, "minimum_rate": 1e-9, **changes})
    scales, _ = play(Plateau(config, epochs=40.0), errors)
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
        minimum_rate=float(rng.choice([1e-9, 1e-5, 0.003])),
        min_divisions=int(rng.integers(0, 5)),
    )
    errors = np.exp(-np.linspace(0, rng.uniform(0, 3), 60)) * rng.uniform(0.9, 1.0, 60)
    errors = np.where(rng.random(60) < 0.2, np.roll(errors, 1), errors)
    return config, errors.tolist()


@pytest.mark.parametrize("seed", range(30))
def test_random_errors_divide_as_the_reference_says(seed: int) -> None:
    config, errors = random_case(seed)
    expected = reference_scales(config, errors, epochs=60.0)
    scales, reasons = play(Plateau(config, epochs=60.0), errors)
    assert scales == pytest.approx(expected, rel=1e-6)
    assert [i for i, reason in enumerate(reasons, start=1) if reason is not None] == changes_of(scales)
    assert "" not in reasons


def test_random_cases_divide_at_all() -> None:
    """Otherwise the test above would compare nothing."""
    divisions = [len(changes_of(reference_scales(*random_case(seed), epochs=60.0))) for seed in range(30)]
    assert min(divisions) == 0
    assert max(divisions) >= 8


def test_reasons_tell_the_best_error_or_the_number_of_the_division() -> None:
    config = optimizer_config(patience=2, min_divisions=1)
    _, reasons = play(Plateau(config, epochs=10.0), [0.5, 0.25, 0.25, 0.25, 0.2])
    assert reasons == [
        None,
        None,
        None,
        "no validation error below 25.00% in 2 evaluations",
        None,
    ]
    _, reasons = play(Plateau(config, epochs=10.0), FALLING[:5])
    assert reasons == [None, None, None, None, "division 1 of at least 1 in 10 epochs is due"]


def test_the_scale_is_a_power_of_the_factor_in_double_precision() -> None:
    """float32(0.1) times 0.01 would show as a rate of 0.0010000000149."""
    config = optimizer_config(patience=1, min_divisions=0)
    scales, _ = play(Plateau(config, epochs=10.0), [0.5] * 4)
    assert scales == pytest.approx([1, 0.1, 0.01, 0.001], rel=1e-15)


@pytest.mark.parametrize("learning_rate", [0.01, 0.02, 0.05])
def test_divisions_end_at_the_minimum_rate(learning_rate: float) -> None:
    config = optimizer_config(learning_rate=learning_rate, patience=1, minimum_rate=1e-5)
    plateau = Plateau(config, epochs=40.0)
    scales, _ = play(plateau, [0.5] * 10)
    rate = make_schedule(config, epochs=40.0)(10.0, scales[-1])
    assert rate == pytest.approx(1e-5, rel=1e-6)


def test_at_the_minimum_rate_nothing_is_divided_any_more() -> None:
    config = optimizer_config(learning_rate=0.01, patience=1, minimum_rate=1e-5, min_divisions=0)
    _, reasons = play(Plateau(config, epochs=40.0), [0.5] * 10)
    assert [reason is not None for reason in reasons] == [False, True, True, True] + [False] * 6


def test_a_first_rate_below_the_minimum_is_never_raised() -> None:
    plateau = Plateau(optimizer_config(learning_rate=1e-6, minimum_rate=1e-5, patience=1), epochs=40.0)
    scales, reasons = play(plateau, [0.5] * 10)
    assert plateau.scale(plateau.init()) == 1.0
    assert scales == [1.0] * 10
    assert reasons == [None] * 10


def test_without_a_minimum_rate_divisions_go_on_for_ever() -> None:
    """The scale leaves the range of float32 after 46 of them."""
    plateau = Plateau(optimizer_config(patience=1, minimum_rate=0.0, min_divisions=0), epochs=1000.0)
    scales, _ = play(plateau, [0.5] * 60)
    assert all(0 <= after <= before for before, after in itertools.pairwise(scales))


@pytest.mark.parametrize("seed", range(3))
def test_the_state_survives_a_checkpoint(seed: int) -> None:
    """A checkpoint holds the fields as plain arrays of the types they have."""

    def store(state: Any) -> Any:
        arrays = {name: np.asarray(field) for name, field in state.items()}
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32), np.dtype(np.int32)}
        return dict(**{name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in arrays.items()})

    config, errors = random_case(seed)
    plateau = Plateau(config, epochs=60.0)
    assert play(plateau, errors, store) == play(plateau, errors)
