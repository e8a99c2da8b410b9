"""One and two devices: the same pictures, the same masks, the same training."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import augment, layers
from alexnet_jax.errors import UserError
from alexnet_jax.parallel import AXIS, DataParallel
from alexnet_jax.steps import example_keys, make_eval_step, make_train_step
from alexnet_jax.train import make_evaluate
from alexnet_jax.train_state import create_train_state, init_variables
from tests.training_setup import setup

BATCH = 16


def batches(count: int, size: int = 72) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {
            "image": generator.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8),
            "label": generator.integers(0, 10, BATCH, dtype=np.int32),
            "id": np.arange(number * BATCH, (number + 1) * BATCH, dtype=np.int32),
            "epoch": np.full(BATCH, number // 4, np.int32),
        }
        for number in range(count)
    ]


def augmented(devices: int) -> list[np.ndarray]:
    """Crops and dropout masks of a batch, as the training step draws them."""

    preprocessing = setup("imagenet2012,source")[3]
    preprocessing = dataclasses.replace(preprocessing, crop=67)

    def draw(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keys = example_keys(jax.random.key(7), batch["epoch"], batch["id"])
        crops = augment.training_images(preprocessing, batch["image"], keys, batch["epoch"])
        return crops, layers.dropout(jnp.ones((len(keys), 50)), keys, 0.5, "2012")

    parallel = DataParallel.create(devices)
    outputs = jax.pmap(draw, axis_name=AXIS, devices=parallel.devices)(parallel.shard(batches(1)[0]))
    return [np.asarray(output).reshape(BATCH, -1) for output in outputs]


def test_crops_and_masks_are_equal_to_the_bit() -> None:
    for one, two in zip(augmented(1), augmented(2), strict=True):
        np.testing.assert_array_equal(one, two)
        assert len(np.unique(one, axis=0)) == BATCH  # each example has its own


def losses(devices: int, choices: str, rate: float, steps: int) -> list[float]:
    config, model, optimizer, preprocessing = setup(choices)
    parallel = DataParallel.create(devices)
    step = parallel.compile_train_step(make_train_step(model, optimizer, preprocessing, AXIS))
    state = parallel.replicate(create_train_state(init_variables(model, config.data.crop, 0), optimizer, 0))
    rates = jax.tree.map(lambda _: np.float32(rate), state.params)
    state = state.replace(learning_rates=parallel.replicate(rates))
    values = []
    for batch in batches(steps, config.data.image_size):
        state, sums = step(state, parallel.shard(batch))
        assert int(sums["count"]) == BATCH
        values.append(float(sums["loss_sum"]))
    return values


# Batch normalisation over 16 noise images is chaotic: at a rate of 0.01 any rounding grows tenfold a step.
@pytest.mark.parametrize(("choices", "rate"), [("source,smoke", 0.01), ("lenet,smoke", 0.01), ("bn,smoke", 1e-5)])
def test_losses_over_20_steps(choices: str, rate: float) -> None:
    one, two = losses(1, choices, rate, 20), losses(2, choices, rate, 20)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert one[0] != one[-1]


def test_the_step_compiles_once_and_consumes_its_state() -> None:
    config, model, optimizer, preprocessing = setup("lenet,smoke")
    parallel = DataParallel.create(2)
    traces = []
    step = make_train_step(model, optimizer, preprocessing, AXIS)

    def counted(state: Any, batch: Any) -> Any:
        traces.append(1)
        return step(state, batch)

    compiled = parallel.compile_train_step(counted)
    state = parallel.replicate(create_train_state(init_variables(model, config.data.crop, 0), optimizer, 0))
    first = jax.tree.leaves(state.params)[0]
    for batch in batches(3, config.data.image_size):
        state, _ = compiled(state, parallel.shard(batch))
    assert len(traces) == 1
    assert first.is_deleted()


@pytest.mark.parametrize(
    ("devices", "batch_size", "views"), [(1, 1, 1), (1, 7, 1), (1, 64, 10), (2, 1, 1), (2, 7, 10), (2, 64, 1)]
)
def test_evaluation_counts_every_image_once_whatever_the_batch(
    devices: int, batch_size: int, views: int, make_config: Any
) -> None:
    from alexnet_jax.datasets import get_dataset

    config, model, _, preprocessing = setup("synthetic,lenet,smoke")
    dataset = get_dataset("synthetic", "", 0.1, 1048)  # 131 images to validate on, a prime number
    variables = init_variables(model, config.data.crop, 0)
    config = make_config(eval_batch_size=batch_size)
    evaluate = make_evaluate(config, model, dataset, DataParallel.create(devices), views)
    *_, totals = evaluate(variables["params"], {}, "validation")
    reference = jax.jit(make_eval_step(model, preprocessing, views))
    records = [dataset.splits["validation"][index] for index in range(131)]
    everything = {
        "image": jnp.stack([record["image"] for record in records]),
        "label": jnp.array([record["label"] for record in records]),
        "mask": jnp.ones(131, bool),
    }
    expected = reference(variables["params"], {}, everything)
    for name in ("count", "top1_correct", "top5_correct"):
        assert totals[name] == int(expected[name])
    assert totals["count"] == 131


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"num_devices=3, but this machine has 2"):
        DataParallel.create(3)
