"""The length of a run and when it evaluates and saves, compared with exact fractions."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from ml_collections import ConfigDict

from alexnet_jax.errors import UserError
from alexnet_jax.run_plan import RunPlan


@pytest.fixture
def make_plan(make_config: Callable[..., ConfigDict]) -> Callable[..., RunPlan]:
    """A plan from the keys of the config that it depends on."""

    def make(num_examples: int, num_devices: int = 1, **changes: object) -> RunPlan:
        config = make_config(**{"max_steps": 0, "eval_every_epochs": 1.0, "checkpoint.every_steps": 0, **changes})
        return RunPlan.create(config, num_examples, num_devices)

    return make


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "epochs", "max_steps", "total_steps"),
    [
        (128, 64, 1.0, 0, 2),
        (128, 64, 90.0, 0, 180),
        # Prime numbers: the last step of the run is the first that completes it.
        (97, 10, 1.0, 0, 10),
        (97, 10, 3.0, 0, 30),
        (97, 10, 10.0, 0, 97),
        (101, 7, 90.0, 0, 1299),
        (1_281_167, 128, 90.0, 0, 900_821),
        (100, 10, 0.25, 0, 3),
        (97, 10, 1.5, 0, 15),
        # 1.1 * 100 is 110.00000000000001, which must not cost a step.
        (100, 10, 1.1, 0, 11),
        (100, 10, 0.01, 0, 1),
        # A batch larger than the data.
        (10, 64, 1.0, 0, 1),
        (10, 64, 30.0, 0, 5),
        (1, 1, 1.0, 0, 1),
        # max_steps can only shorten a run.
        (128, 64, 90.0, 3, 3),
        (128, 64, 1.0, 2, 2),
        (128, 64, 1.0, 1000, 2),
    ],
)
def test_total_steps(
    make_plan: Callable[..., RunPlan],
    num_examples: int,
    batch_size: int,
    epochs: float,
    max_steps: int,
    total_steps: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = make_plan(num_examples, batch_size=batch_size, epochs=epochs, max_steps=max_steps)
    is_said = f"config.batch_size={batch_size} is more than the {num_examples} " in capsys.readouterr().out
    assert is_said == (batch_size > num_examples)
    assert plan.total_steps == total_steps
    assert plan.total_examples == total_steps * batch_size


def test_no_batch_is_advised_that_is_no_smaller(
    make_plan: Callable[..., RunPlan], capsys: pytest.CaptureFixture
) -> None:
    make_plan(3, 8, batch_size=8)
    assert "batch_size=8 is more than the 3" in (said := capsys.readouterr().out) and "with --config" not in said


def test_epoch_counts_passes_over_the_training_split(make_plan: Callable[..., RunPlan]) -> None:
    plan = make_plan(200, batch_size=64)
    assert [plan.epoch(seen) for seen in (0, 50, 200, 576)] == [0, 0.25, 1, 2.88]


def evaluation_steps(num_examples: int, batch_size: int, every: str, total_steps: int) -> set[int]:
    """For each multiple of `every` epochs the first step that completes it, and the last step."""
    period = Fraction(every) * num_examples
    steps, k = {total_steps}, 1
    for step in range(1, total_steps + 1):
        if step * batch_size >= k * period:
            steps.add(step)
            while step * batch_size >= k * period:
                k += 1
    return steps


@pytest.mark.parametrize("every", ["1.0", "2.0", "0.5", "1.5", "0.1", "0.3", "0.7", "1.1"])
@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
def test_evaluations_are_at_the_first_step_that_completes_a_period(
    make_plan: Callable[..., RunPlan], batch_size: int, every: str
) -> None:
    for num_examples in (1, 2, 7, 10, 30, 97, 100, 128):
        plan = make_plan(num_examples, batch_size=batch_size, epochs=7.0, eval_every_epochs=float(every))
        steps = {step for step in range(plan.total_steps + 1) if plan.is_evaluation(step * batch_size)}
        assert steps == evaluation_steps(num_examples, batch_size, every, plan.total_steps), num_examples


def test_a_run_cut_short_is_evaluated_at_its_end(make_plan: Callable[..., RunPlan]) -> None:
    plan = make_plan(1000, batch_size=10, max_steps=3)
    assert [plan.is_evaluation(seen) for seen in (0, 10, 20, 30)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("every_steps", "checkpoints"),
    [
        (0, {10, 20, 25}),
        (4, {4, 8, 10, 12, 16, 20, 24, 25}),
        (10, {10, 20, 25}),
        (100, {10, 20, 25}),
    ],
)
def test_checkpoints_are_at_evaluations_and_every_so_many_steps(
    make_plan: Callable[..., RunPlan], every_steps: int, checkpoints: set[int]
) -> None:
    plan = make_plan(97, batch_size=10, epochs=2.5, **{"checkpoint.every_steps": every_steps})
    assert {step for step in range(1, plan.total_steps + 1) if plan.is_checkpoint(step * 10)} == checkpoints


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "sizes"),
    [(128, 3, "126 or 129"), (10, 8, "8 or 16"), (9, 2, "8 or 10"), (1, 2, "2"), (7, 8, "8")],
)
def test_a_batch_that_devices_cannot_share_is_refused(
    make_plan: Callable[..., RunPlan], batch_size: int, num_devices: int, sizes: str
) -> None:
    with pytest.raises(UserError, match=rf"config\.batch_size={batch_size} .* {num_devices} .*: {sizes}$"):
        make_plan(100, num_devices, batch_size=batch_size)


@pytest.mark.parametrize(("batch_size", "num_devices"), [(128, 1), (128, 2), (24, 8), (8, 8)])
def test_a_batch_that_devices_can_share_stays_as_it_is(
    make_plan: Callable[..., RunPlan], batch_size: int, num_devices: int
) -> None:
    assert make_plan(100, num_devices, batch_size=batch_size).batch_size == batch_size


def test_an_empty_training_split_is_refused(make_plan: Callable[..., RunPlan]) -> None:
    with pytest.raises(UserError, match=r"config\.data\.name='tfds:nothing'"):
        make_plan(0, **{"data.name": "tfds:nothing"})


def test_micro_batches_that_cannot_be_equal_are_named(make_plan: Callable[..., RunPlan]) -> None:
    with pytest.raises(UserError, match=r"config\.parallel\.micro_batches=2.*: 8 or 12$"):
        make_plan(100, 2, batch_size=10, **{"parallel.micro_batches": 2})
