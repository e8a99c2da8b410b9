"""The modern recipe: label smoothing, mixup and averaged parameters; each alone, together, and in resumed runs."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import augment, metrics
from alexnet_jax.checkpoint import Checkpoints, restore
from alexnet_jax.cli import evaluate
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import open_experiment
from alexnet_jax.inference.loaded_run import load_run
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.presets import Layer
from alexnet_jax.optimizer import averaged_params, averaged_stats, make_optimizer
from alexnet_jax.parallel.devices import Devices, data_parallel, mesh_parallel
from alexnet_jax.run import run_folder
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.steps import example_keys, make_train_step
from alexnet_jax.train import train_and_evaluate
from alexnet_jax.train_state import TrainState, create_train_state, init_variables
from tests.helpers.mesh_run import batches, copied
from tests.helpers.training_setup import setup

MakeConfig = Callable[..., ConfigDict]

RATE, SMOOTHING, MIXUP, DECAY = 0.01, 0.1, 0.4, 0.9


def modern_parts(**optimizer_changes: Any) -> tuple[ConfigDict, Any, Any, Any]:
    """`setup` of a small network, with mixed images and averaged parameters."""
    config, model, _, preprocessing = setup("lenet,smoke")
    config.optimizer.update({"ema_decay": DECAY, **optimizer_changes})
    optimizer = make_optimizer(config.optimizer, jax.eval_shape(lambda: init(model, config))["params"])
    return config, model, optimizer, dataclasses.replace(preprocessing, mixup=MIXUP, color_noise=0.0)


def init(model: Any, config: ConfigDict) -> Any:
    return init_variables(model, config.data.crop, 0)


def fresh(config: ConfigDict, model: Any, optimizer: Any) -> TrainState:
    state = create_train_state(init(model, config), optimizer, 0)
    return dataclasses.replace(state, learning_rates=jax.tree.map(lambda _: np.float32(RATE), state.params))


# Losses


def test_smoothed_and_mixed_cross_entropy_by_hand() -> None:
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
    labels, others, shares = jnp.array([0, 0, 1]), jnp.array([2, 0, 2]), jnp.array([0.75, 0.6, 1.0])
    # 0.7 (0.75, 0, 0.25) + 0.1; 0.7 (1, 0, 0) + 0.1; 0.7 (0, 1, 0) + 0.1
    targets = [(0.625, 0.1, 0.275), (0.8, 0.1, 0.1), (0.1, 0.8, 0.1)]
    predictions = [(0.7, 0.2, 0.1), (0.7, 0.2, 0.1), (0.25, 0.25, 0.5)]
    expected = [
        -sum(t * math.log(p) for t, p in zip(target, prediction, strict=True))
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    losses = metrics.mixed_cross_entropy(logits, labels, others, shares, 0.3)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    mixed, own, single = (
        metrics.mixed_cross_entropy(logits, labels, *rest, 0.3)
        for rest in ((others, shares), (labels, jnp.ones(3)), (others, jnp.zeros(3)))
    )
    weights = jnp.array([2.0, 0.5, 3.0])
    weighted = metrics.mixed_cross_entropy(logits, labels, others, shares, 0.3, weights)
    parts = shares * weights[labels] * own + (1 - shares) * weights[others] * single
    np.testing.assert_allclose(weighted, parts, rtol=1e-6)
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


@pytest.mark.slow
def test_squared_error_and_auxiliary_classifiers_by_hand() -> None:
    config, _, _, preprocessing = setup("lenet,smoke")
    head, spare = Layer("fc", 0, source="fc1", init=0.1), Layer("fc", 0, init=0.1, auxiliary=True)
    model = AlexNet((Layer("fc", 4), spare, head), num_classes=10)
    assert model.auxiliary_logits == ("fc2",)
    batch = {name: jnp.asarray(values) for name, values in batches(1, 28)[0].items()}
    preprocessing = dataclasses.replace(preprocessing, mirror=False, color_noise=0.0, crop=28)  # one possible crop
    config.optimizer.update({"weight_decay": 0.0, "bias_learning_rate_multiplier": 1.0})
    shapes = jax.eval_shape(lambda: init(model, config))["params"]
    state = fresh(config, model, optimizer := make_optimizer(config.optimizer, shapes))
    targets = jax.nn.one_hot(batch["label"], 10)

    def loss(params: Any, is_squared: bool) -> tuple[jax.Array, jax.Array]:
        logits, found = model.apply({"params": params}, augment.testing_images(preprocessing, batch["image"], 1)[0])
        own, auxiliary = (-(targets * jax.nn.log_softmax(z)).sum(axis=1).mean() for z in (logits, found["fc2"]))
        return (jnp.square(logits - targets).sum(axis=1).mean() / 2 if is_squared else own) + 0.3 * auxiliary, own

    @jax.jit
    def both(state: TrainState) -> Any:
        names = ("cross_entropy", "squared_error")
        steps = [make_train_step(model.clone(loss=name), optimizer, preprocessing)(state, batch) for name in names]
        return steps, [jax.grad(loss, has_aux=True)(state.params, name == names[1]) for name in names]

    for (after, sums), (gradients, own) in zip(*both(state), strict=True):
        expected = jax.tree.map(lambda weights, gradient: weights - RATE * gradient, state.params, gradients)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), after.params, expected)
        np.testing.assert_allclose(sums["loss_sum"], 16 * own, rtol=1e-5)


def test_an_image_is_mixed_with_its_partner() -> None:
    images = jnp.arange(4.0).reshape(4, 1, 1, 1) * jnp.ones((4, 2, 2, 3))
    mixed = augment.mix_pairs(images, jnp.array([0.75, 0.5, 1.0, 0.9]))
    np.testing.assert_allclose(mixed[:, 0, 0, 0], [0.25, 0.5, 2.0, 2.9], rtol=1e-6)
    with pytest.raises(UserError, match=r"config\.data\.mixup.* 3 "):
        augment.partners(images[:3])


def test_shares_are_the_larger_parts_of_the_beta_distribution() -> None:
    keys = jax.random.split(jax.random.key(0), 20_000)
    uniform, narrow = (augment.mixup_weights(keys, alpha) for alpha in (1.0, 0.2))
    assert uniform.min() >= 0.5 and narrow.max() <= 1
    # max(l, 1 - l) of a uniform l is uniform on [0.5, 1]
    np.testing.assert_allclose(np.quantile(uniform, [0.1, 0.5, 0.9]), [0.55, 0.75, 0.95], atol=0.01)
    # Var l = 1 / (4 (2 alpha + 1)), and (weight - 1/2)^2 = (l - 1/2)^2
    np.testing.assert_allclose(np.mean((narrow - 0.5) ** 2), 1 / (4 * 1.4), rtol=0.02)


@pytest.mark.parametrize(("mixup", "smoothing"), [(0.0, 0.1), (0.4, 0.0), (0.4, 0.1)])
def test_a_step_minimises_the_loss_that_it_should_and_reports_it_without_smoothing(
    mixup: float, smoothing: float
) -> None:
    config, model, optimizer, preprocessing = setup("lenet,smoke")
    preprocessing = dataclasses.replace(preprocessing, mixup=mixup, mirror=False, cropping="random", crop=28)
    state = fresh(config, model, optimizer)
    batch = {name: jnp.asarray(values) for name, values in batches(1, 28)[0].items()}  # one possible crop
    step = jax.jit(make_train_step(model, optimizer, preprocessing, label_smoothing=smoothing))
    after, sums = step(state, batch)

    keys = example_keys(state.key, batch["epoch"], batch["id"])
    partner = np.arange(16) ^ 1
    drawn = jax.vmap(lambda key: jax.random.beta(jax.random.fold_in(key, 2), 0.4, 0.4))(keys)
    shares = jnp.maximum(drawn, 1 - drawn) if mixup else jnp.ones(16)
    assert len(np.unique(shares)) == (16 if mixup else 1)
    pictures = augment.testing_images(preprocessing, batch["image"], 1)[0]
    weights = shares[:, None, None, None]
    pictures = weights * pictures + (1 - weights) * pictures[partner]
    own, other = jax.nn.one_hot(batch["label"], 10), jax.nn.one_hot(batch["label"][partner], 10)
    plain = shares[:, None] * own + (1 - shares)[:, None] * other

    @jax.jit
    def loss(params: Any, smoothing: float) -> jax.Array:
        logits = model.apply({"params": params}, pictures)[0]
        targets = plain * (1 - smoothing) + smoothing / 10
        return -jnp.sum(targets * jax.nn.log_softmax(logits)) / 16

    np.testing.assert_allclose(sums["loss_sum"] / 16, loss(state.params, 0.0), rtol=1e-5)
    right = jnp.argmax(model.apply({"params": state.params}, pictures)[0], axis=1) == batch["label"]
    assert int(sums["top1_correct"]) == int(right.sum())
    gradients = jax.grad(loss)(state.params, smoothing)
    for layer in ("conv1", "fc5"):
        moved = after.params[layer]["bias"] - state.params[layer]["bias"]
        np.testing.assert_allclose(moved, -RATE * gradients[layer]["bias"], rtol=1e-3, atol=1e-7)


# On several devices


def trained(
    devices: Devices, steps: int = 4, micro_batches: int = 1, cutmix: float = 0.0, **changes: Any
) -> tuple[Any, Any]:
    """The averaged parameters and the losses of a few steps, with changes to the optimizer."""
    config, model, optimizer, preprocessing = modern_parts(**changes)
    preprocessing = dataclasses.replace(preprocessing, cutmix=cutmix)
    step = devices.compile_train_step(
        make_train_step(model, optimizer, preprocessing, devices.axes, micro_batches, SMOOTHING)
    )
    state, losses = devices.place(fresh(config, model, optimizer)), []
    for batch in batches(steps, config.data.image_size):
        state, sums = step(state, devices.shard(batch))
        losses.append(float(sums["loss_sum"]))
    return copied(devices, averaged_params(state.opt_state, None)), losses


@pytest.mark.slow
def test_devices_change_neither_pairs_nor_averages() -> None:
    model = setup("lenet,smoke")[1]
    places = data_parallel(1), data_parallel(2), mesh_parallel(2, 2, model)
    (average, losses), *others = (trained(devices) for devices in places)
    assert losses[0] != losses[-1]
    for other, other_losses in others:
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        for array, expected in zip(jax.tree.leaves(other), jax.tree.leaves(average), strict=True):
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1e-3))


@pytest.mark.slow
def test_devices_and_micro_batches_change_neither_cutmix_nor_clipped_adamw() -> None:
    # Without a larger epsilon, AdamW makes steps of full size out of rounding errors.
    changes = {"cutmix": 1.0, "name": "adamw", "epsilon": 1e-2, "clip_norm": 0.5}
    average, losses = trained(data_parallel(1), **changes)
    assert losses != trained(data_parallel(1), **{**changes, "clip_norm": 0.0})[1]
    model = setup("lenet,smoke")[1]
    places = ((data_parallel(2), 1), (data_parallel(1), 2), (mesh_parallel(2, 1, model), 1))
    for devices, micro_batches in places:
        other, other_losses = trained(devices, micro_batches=micro_batches, **changes)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        for array, expected in zip(jax.tree.leaves(other), jax.tree.leaves(average), strict=True):
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1e-3))


def test_towers_hold_their_part_of_the_average() -> None:
    config, model, optimizer, _ = modern_parts()
    devices = mesh_parallel(2, 2, model)
    average = averaged_params(devices.place(fresh(config, model, optimizer)).opt_state, None)
    array = average["fc4"]["kernel"]
    assert {part.data.shape for part in array.addressable_shards} == {(array.shape[0], array.shape[1] // 2)}


# Runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path, make_config: MakeConfig, name: str) -> None:
    config = make_config("synthetic,small_modern,smoke", max_steps=6, **{"optimizer.name": name})
    train_and_evaluate(config, tmp_path / "whole")
    for config.max_steps in (3, 6):
        train_and_evaluate(config, tmp_path / "parts")
    whole, parts = (restore(tmp_path / name / "checkpoints", 6 * 16).tree for name in ("whole", "parts"))
    assert whole["averaged_steps"] == 6 and "average" in whole
    assert whole.pop("plateau") != parts.pop("plateau")  # which counts evaluations, also those of an early end
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    last = [read_metrics(tmp_path / name)[-1] for name in ("whole", "parts")]
    assert last[0] == last[1] and last[0]["kind"] == "test"


def test_it_is_the_average_that_is_tested(
    tmp_path: Path, make_config: MakeConfig, prepared_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("synthetic,small_modern,smoke", max_steps=6)
    result = train_and_evaluate(config, tmp_path)
    restored = restore(tmp_path / "checkpoints", 6 * 16)
    tree, experiment = restored.tree, open_experiment(config)
    losses = {}
    for names in itertools.product(("params", "average"), ("batch_stats", "average_stats")):
        params, batch_stats = experiment.devices.place([tree[name] for name in names])
        *_, totals = experiment.test(params, batch_stats, "test")
        losses[names] = totals["loss_sum"] / totals["count"]
    assert len(set(losses.values())) == 4 and losses["average", "average_stats"] == result["loss"]
    capsys.readouterr()
    evaluate.main([str(tmp_path), f"--prepared-dir={prepared_dir}"])
    assert f"loss {result['loss']:.4f}" in capsys.readouterr().out
    assert all(f"{losses[names]:.4f}" != f"{result['loss']:.4f}" for names in losses if "batch_stats" in names)

    jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path).batch_stats, tree["average_stats"])
    del tree["average_stats"]  # as in older checkpoints
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(6 * 16, tree, restored.metadata, None)
    jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path).batch_stats, tree["batch_stats"])
    resumed = run_folder.restored(experiment.init_state(None), restore(tmp_path / "checkpoints", 6 * 16).tree)
    jax.tree.map(np.testing.assert_array_equal, averaged_stats(resumed.opt_state, None), tree["batch_stats"])


def test_a_smooth_schedule_is_no_series_of_divisions(tmp_path: Path, make_config: MakeConfig) -> None:
    changes = {"optimizer.schedule": "cosine", "optimizer.warmup_epochs": 1.0}
    train_and_evaluate(make_config(max_steps=0, epochs=3.0, **changes), tmp_path)
    records = read_metrics(tmp_path)
    assert not [record for record in records if record["kind"] == "division"]
    rates = [record["learning_rate"] for record in records if record["kind"] == "step"]
    cosines = [(1 + math.cos(math.pi * part / 4)) / 2 for part in range(4)]
    assert rates == pytest.approx([0.0, 0.001, *(0.002 * factor for factor in cosines)])


def test_a_warm_up_is_no_division_either(tmp_path: Path, make_config: MakeConfig) -> None:
    changes = {"optimizer.schedule": "step", "optimizer.step_epochs": (2.0,), "optimizer.warmup_epochs": 1.0}
    train_and_evaluate(make_config(max_steps=0, epochs=3.0, **changes), tmp_path)
    divisions = [record for record in read_metrics(tmp_path) if record["kind"] == "division"]
    assert [(record["learning_rate_before"], record["examples_seen"]) for record in divisions] == [(0.002, 64)]
