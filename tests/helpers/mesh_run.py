"""Trains small networks on meshes of devices and compares with one device; as a program, on eight virtual devices."""

import json
import os
import sys

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from alexnet_jax import augment
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.ops.dropout import dropout
from alexnet_jax.parallel.devices import Devices, data_parallel, mesh_parallel
from alexnet_jax.steps import example_keys, make_eval_step, make_train_step
from alexnet_jax.train_state import TrainState, create_train_state, init_variables
from tests.helpers.training_setup import setup

BATCH = 16
RATE = 0.01

Batch = dict[str, np.ndarray]


def thin(choices: str) -> tuple[Any, AlexNet, Any, Any]:
    """`setup` of a network with a sixteenth of the features, initialised so that it learns from the first step."""
    config, model, optimizer, preprocessing = setup(choices)
    few = [dataclasses.replace(layer, features=layer.features // 16, init="he", bias=0.0) for layer in model.layers]
    return config, model.clone(layers=tuple(few)), optimizer, dataclasses.replace(preprocessing, std=(64.0,) * 3)


def batches(count: int, size: int = 72) -> list[Batch]:
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


def draws(devices: Devices, mean_form: str = "image_centre", **changes: Any) -> list[np.ndarray]:
    """Crops and dropout masks of a batch, as the training step draws them with changes to its preprocessing."""
    preprocessing = setup("synthetic,source,smoke")[3]
    mean = np.random.default_rng(1).uniform(0, 255, (72, 72, 3)).astype(np.float32)
    preprocessing = dataclasses.replace(preprocessing, mean=mean, mean_form=mean_form, **changes)
    assert preprocessing.mirror and preprocessing.color_noise

    def crops(batch: dict[str, jax.Array]) -> jax.Array:
        keys = example_keys(jax.random.key(7), batch["epoch"], batch["id"])
        return augment.training_images(preprocessing, batch["image"], keys, batch["epoch"])

    def masks(batch: dict[str, jax.Array]) -> jax.Array:
        keys = example_keys(jax.random.key(7), batch["epoch"], batch["id"])
        return dropout(jax.numpy.ones((len(keys), 50)), keys, 0.5, "2012")

    batch = devices.shard(batches(1)[0])
    return [np.asarray(devices.compile_map(draw)(batch)).reshape(BATCH, -1) for draw in (crops, masks)]


def start(devices: Devices, choices: str, micro_batches: int = 1) -> tuple[Any, TrainState]:
    """The compiled step of a narrow network and its initial state."""
    config, model, optimizer, preprocessing = thin(choices)
    step = make_train_step(model, optimizer, preprocessing, devices.axes, micro_batches)
    fresh = create_train_state(init_variables(model, config.data.crop, 0), optimizer, 0)
    rates = jax.tree.map(lambda _: np.float32(RATE), fresh.params)
    return devices.compile_train_step(step), devices.place(dataclasses.replace(fresh, learning_rates=rates))


def outcome(devices: Devices, choices: str, steps: int, micro_batches: int = 1) -> dict[str, Any]:
    """Trains a narrow network for a few steps.

    Returns flat arrays: the metrics of an evaluation before the first step, the velocities after it, which are its
    gradients, the losses of all steps, the final parameters, and the ids in the order in which the devices had them.
    """
    config, model, _, preprocessing = thin(choices)
    step, state = start(devices, choices, micro_batches)
    evaluate = devices.compile_eval_step(make_eval_step(model, preprocessing, 1, devices.axes))
    stream = batches(steps, config.data.image_size)
    masked = {**stream[0], "mask": np.arange(BATCH) < BATCH - 3}
    values = [float(value) for value in evaluate(state.params, state.batch_stats, devices.shard(masked)).values()]
    velocity, losses, ids = None, [], []
    for batch in stream:
        state, sums = step(state, devices.shard(batch))
        losses.append(float(sums["loss_sum"]))
        ids.append(np.asarray(sums["id"]))
        velocity = velocity or copied(devices, optax.tree.get(state.opt_state, "trace"))
    return {
        "values": np.array(values),
        "gradients": velocity,
        "params": copied(devices, state.params),
        "losses": np.array(losses),
        "ids": np.concatenate(ids),
    }


def copied(devices: Devices, tree: Any) -> Any:
    """Copies of the arrays of a tree on the host, each gathered from all devices."""
    return jax.tree.map(np.array, devices.on_host(tree))


def largest_errors(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """The largest relative difference of values, gradients (to the largest in a layer) and losses, in common steps."""
    assert one["losses"][-1] != one["losses"][0]
    steps = min(len(one["losses"]), len(other["losses"]))
    assert np.array_equal(one["ids"][: steps * BATCH], other["ids"][: steps * BATCH])
    return {
        "values": float(np.abs(other["values"] - one["values"]).max() / one["values"].max()),
        "gradients": relative_to_layers(one["gradients"], other["gradients"]),
        "losses": float(np.abs(other["losses"][:steps] / one["losses"][:steps] - 1).max()),
    }


def relative_to_layers(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two trees of parameters, relative to the largest number in the same layer."""
    errors = []
    for layer, arrays in one.items():
        largest = max(np.abs(array).max() for array in arrays.values())
        assert largest > 0
        errors += [np.abs(array - other[layer][name]).max() / largest for name, array in arrays.items()]
    return float(max(errors))


def main() -> None:
    """Prints the errors on four and eight devices as JSON; `mesh_test.py` compares them with its bounds."""
    report: dict[str, Any] = {}
    single = data_parallel(1)
    for choices, steps, meshes in (("source,smoke", 100, ((4, 2), (8, 2))), ("owt,smoke", 20, ((4, 2),))):
        expected, model = outcome(single, choices, steps), thin(choices)[1]
        for devices, towers in meshes:
            got = outcome(mesh_parallel(devices, towers, model), choices, 20)
            report[f"{choices} {devices // towers}x{towers}"] = largest_errors(expected, got)
        if steps == 100:
            for count in (2, 4):
                got = outcome(data_parallel(count), choices, steps)
                report[f"{choices} pmap {count}"] = largest_errors(expected, got)
    for one, other in zip(draws(single), draws(data_parallel(4)), strict=True):
        np.testing.assert_array_equal(one, other)
        assert len(np.unique(one, axis=0)) == BATCH  # each example has its own
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
