"""The options of the network, and its types."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.metrics import classification_sums
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.presets import Layer
from tests.helpers.models import init, small, variables_of


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "tanh"},
        {"activation": "scaled_tanh"},
        {"activation": "sigmoid"},
        {"activation": "leaky_relu"},
        {"activation": "prelu"},
        {"lrn": "none"},
        {"lrn": "paper"},
        {"lrn": "caffe"},
        {"pool_window": "plain"},
        {"pool_kind": "avg"},
        {"dropout_rate": 0.25},
        {"dropout_convention": "inverted"},
        {"towers": 1},
    ],
    ids=lambda changes: "-".join(map(str, *changes.items())),
)
def test_each_switch_changes_what_the_network_computes(changes: dict[str, object]) -> None:
    images = 60 * jax.random.normal(jax.random.key(1), (2, 67, 67, 3))
    has_other_parameters = changes.keys() & {"towers", "pool_window"} or "prelu" in changes.values()

    def logits(model: AlexNet, variables: Any) -> jax.Array:
        return jax.jit(model.apply)(variables, images)[0]

    base, model = logits(small("source"), variables_of("source")), small("source", **changes)
    changed = logits(model, init(model) if has_other_parameters else variables_of("source"))
    assert changed.shape == base.shape
    assert not np.allclose(base, changed, rtol=1e-5)


def test_prelu_has_one_slope_a_layer_that_learns() -> None:
    model = small("lenet", activation="prelu")
    images, keys = jnp.ones((2, 28, 28, 3)), jax.random.split(jax.random.key(0), 2)
    variables = init(model, crop=28)
    logits_sum = lambda params: model.apply({"params": params}, images, keys)[0].sum()  # noqa: E731
    gradient = jax.jit(jax.grad(logits_sum))(variables["params"])
    slopes = [name for name in variables["params"] if name.startswith("act")]
    assert slopes == ["act1", "act2", "act3", "act4"]
    assert any(float(gradient[name]["negative_slope"]) != 0 for name in slopes)


@pytest.mark.parametrize("preset", ["source", "bn", "lenet"])
def test_bfloat16_is_of_activations_alone(preset: str) -> None:
    model, crop = small(preset, compute_dtype="bfloat16"), 28 if preset == "lenet" else 67
    images, keys = 60 * jax.random.normal(jax.random.key(1), (2, crop, crop, 3)), jax.random.split(jax.random.key(0), 2)
    variables = init(model, crop)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        (logits, activations), _ = model.apply({**variables, "params": params}, images, keys, mutable=["batch_stats"])
        return jnp.square(logits).sum(), (logits, activations)

    gradients, (logits, activations) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, gradients, logits))} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in activations.values()} == {jnp.dtype("bfloat16")}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_bfloat16_is_near_float32() -> None:
    images = 60 * jax.random.normal(jax.random.key(1), (2, 67, 67, 3))
    wide, narrow = (
        jax.jit(small("source", compute_dtype=dtype).apply)(variables_of("source"), images)[0]
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(wide - narrow).max() < 0.05 * np.abs(wide).max()


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_all_products_on_an_accelerator_have_the_precision_of_the_key(precision: str) -> None:
    model, images = small("lenet", matmul_precision=precision), jnp.zeros((2, 28, 28, 3))
    gradient = jax.jit(jax.value_and_grad(lambda params: model.apply({"params": params}, images)[0].sum()))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    program = gradient.trace(params).lower(lowering_platforms=("cuda",)).as_text()
    products = re.findall(r"stablehlo\.(?:convolution|dot_general).*", program)
    assert len(products) == 3 * 5 - 1  # both gradients of five layers, but for the images
    assert {len(re.findall(rf"\b{precision.upper()}\b", product)) for product in products} == {2}


def test_testing_with_the_2012_convention_halves_the_hidden_activations() -> None:
    images = 60 * jax.random.normal(jax.random.key(1), (1, 67, 67, 3))
    _, activations = jax.jit(small("source").apply)(variables_of("source"), images)
    np.testing.assert_allclose(activations["dropout6"], 0.5 * activations["act6"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("preset", "alexnt"),
        ("activation", "rleu"),
        ("lrn", "yes"),
        ("pool_window", "3"),
        ("pool_kind", "min"),
        ("dropout_convention", "2013"),
        ("towers", 3),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_exist(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"config\.model\.{key}="):
        small(**{"preset": "source", key: value})


def test_the_last_layer_may_be_wider_than_the_data_but_not_narrower() -> None:
    assert small("lenet", num_classes=1000).num_classes == 1000
    with pytest.raises(UserError, match=r"config\.model\.num_classes=9.* 10 classes"):
        small("lenet", num_classes=9)


def test_two_classes_need_one_output_in_the_sigmoid_form() -> None:
    model = AlexNet((Layer("fc", 0),), num_classes=2, sigmoid_output=True)
    images, labels = jnp.linspace(-1.0, 1.0, 5 * 12).reshape(5, 2, 2, 3), jnp.array([0, 1, 1, 0, 1])
    params = {"fc1": {"kernel": jnp.linspace(-1.0, 2.0, 12)[:, None], "bias": jnp.ones(1)}}
    logits, activations = jax.jit(model.apply)({"params": params}, images)
    (z,) = activations["fc1"].T
    np.testing.assert_allclose(jax.nn.softmax(logits)[:, 1], jax.nn.sigmoid(z), rtol=1e-6)
    binary = -jnp.where(labels == 1, jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)).sum()
    sums = classification_sums(logits, labels, labels >= 0)
    np.testing.assert_allclose(sums["loss_sum"], binary, rtol=1e-6)
    assert model.clone(num_classes=3).outputs == 3


def test_hidden_layers_of_other_widths() -> None:
    model = small("mlp", hidden_widths=(64, 32, 16))
    assert [layer.features for layer in model.layers] == [64, 32, 16, 0]
    assert model.layers[2] == dataclasses.replace(model.layers[0], features=16)


@pytest.mark.parametrize(
    ("preset", "changes", "named"),
    [
        ("logistic", {"hidden_widths": (5,)}, r"hidden_widths=\(5,\)"),
        ("googlenet", {"hidden_widths": (5,)}, r"hidden_widths=\(5,\)"),
        ("resnet_small", {"without_layers": ("conv3",)}, r"without_layers=\('conv3',\)"),
    ],
)
def test_what_a_network_does_not_have(preset: str, changes: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=rf"config\.model\.{named}"):
        small(preset, **changes)


def test_branches_are_not_divided() -> None:
    model = small("resnet_small")
    model.check_split(1)
    with pytest.raises(UserError, match=r"config\.parallel\.towers=2.*towers=1"):
        model.check_split(2)
    with pytest.raises(UserError, match=r"config\.parallel\.towers=2.*one output"):
        small("mlp").clone(num_classes=2).check_split(2)
