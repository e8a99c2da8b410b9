"""The PyTorch network of the benchmarks computes the same as ours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.models.alexnet import AlexNet, get_model
from alexnet_jax.models.presets import Layer
from alexnet_jax.train_state import init_variables
from configs import alexnet

torch = pytest.importorskip("torch")

from benchmarks.torch_alexnet import TorchAlexNet  # noqa: E402

pytestmark = pytest.mark.slow

BATCH = 3
# Crops at which the last map is 2 x 2 or larger, so that the order of flattening matters, and at which windows
# overhang where the preset lets them.
CROPS = {"caffe": 95, "source": 94, "paper": 119, "owt": 95, "lenet": 28, "cifar_13pct": 24}


def network(preset: str, **changes: object) -> AlexNet:
    config = alexnet.get_config(f"synthetic,{preset}")
    config.model.update({"hidden_width": 32, **changes})
    return get_model(config.model, num_classes=10)


def images_of(crop: int) -> np.ndarray:
    """Random images at the scale of grey levels, at which response normalisation matters."""
    return np.random.default_rng(0).normal(scale=60, size=(BATCH, crop, crop, 3)).astype(np.float32)


def random_params(model: AlexNet, crop: int) -> Any:
    """Parameters whose kernels keep the scale of the images up to the logits, with biases other than 0."""
    generator = np.random.default_rng(1)
    images = jax.ShapeDtypeStruct((1, crop, crop, 3), jnp.float32)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return generator.normal(scale=scale, size=leaf.shape).astype(np.float32)

    return jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0), images)["params"])


def in_torch(model: AlexNet, crop: int, params: Any) -> TorchAlexNet:
    peer = TorchAlexNet(model, crop)
    peer.load_flax(params)
    return peer


def nchw(images: np.ndarray) -> Any:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def assert_close(actual: Any, expected: Any) -> None:
    """Asserts equality to 1e-4 of the largest value."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize("changes", [{}, {"pool_kind": "avg", "activation": "tanh"}], ids=["", "average-tanh"])
@pytest.mark.parametrize("preset", CROPS)
def test_logits(preset: str, changes: dict[str, object]) -> None:
    model, crop = network(preset, **changes), CROPS[preset]
    params, images = random_params(model, crop), images_of(CROPS[preset])
    with torch.inference_mode():
        logits = in_torch(model, crop, params).eval()(nchw(images))
    assert_close(logits, jax.jit(model.apply)({"params": params}, images)[0])


@pytest.mark.parametrize("lrn_by_slices", [False, True])
@pytest.mark.parametrize("preset", ["caffe", "source"])
def test_gradients_of_every_parameter(preset: str, lrn_by_slices: bool) -> None:
    model, crop = network(preset, dropout_rate=0.0), CROPS[preset]
    params, images, labels = random_params(model, crop), images_of(crop), np.array([3, 1, 4])
    peer = in_torch(model, crop, params)
    if lrn_by_slices:
        peer.normalise_by_slices()
    torch.nn.functional.cross_entropy(peer(nchw(images)), torch.from_numpy(labels)).backward()

    def loss(params: Any) -> jax.Array:
        logits, _ = model.apply({"params": params}, jnp.asarray(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    expected = in_torch(model, crop, jax.jit(jax.grad(loss))(params))
    for (name, parameter), gradient in zip(peer.named_parameters(), expected.parameters(), strict=True):
        assert parameter.grad.abs().max() > 0, name
        assert_close(parameter.grad, gradient.detach().numpy())


@pytest.mark.parametrize(("convention", "in_training", "in_testing"), [("2012", 1, 0.75), ("inverted", 4 / 3, 1)])
def test_dropout(convention: str, in_training: float, in_testing: float) -> None:
    layers = (Layer("fc", 1000, ("dropout",)),)
    model = AlexNet(layers=layers, dropout_rate=0.25, dropout_convention=convention)
    peer, images = TorchAlexNet(model, crop=2), nchw(images_of(2))
    plain = peer.operations.fc1(images.flatten(1))
    dropped = peer(images)
    assert 0.7 < (dropped != 0).float().mean() < 0.8
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0.0, plain * in_training))
    torch.testing.assert_close(peer.eval()(images), plain * in_testing)


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"activation": "prelu"}, "prelu"), ({"activation": "sigmoid"}, "sigmoid")],
)
def test_what_is_not_written_in_pytorch_is_refused(changes: dict[str, object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        TorchAlexNet(network("lenet", **changes), crop=67)


def test_batch_normalisation_in_training() -> None:
    model = network("small_modern", dropout_rate=0.0)
    params, images = random_params(model, 28), images_of(28)
    keys = jax.random.split(jax.random.key(0), BATCH)
    variables = {**init_variables(model, 28, seed=0), "params": params}
    logits = jax.jit(lambda x: model.apply(variables, x, keys, mutable=["batch_stats"])[0][0])(images)
    assert_close(in_torch(model, 28, params).train()(nchw(images)), logits)
