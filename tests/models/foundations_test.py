"""The textbook formulas behind AlexNet, checked against the code that implements them."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax import metrics
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.presets import PRESETS, Layer
from alexnet_jax.models.summary import summarize
from alexnet_jax.ops.activations import ACTIVATIONS
from alexnet_jax.ops.convolution import conv
from alexnet_jax.ops.dropout import dropout
from alexnet_jax.ops.platforms import fast_compilation
from alexnet_jax.ops.pooling import pool
from alexnet_jax.ops.windows import output_size
from alexnet_jax.optimizer import make_optimizer
from configs.alexnet import get_config
from tests.helpers.arrays import normal32


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


# Fully connected networks


def pixels(x: np.ndarray) -> jax.Array:
    """Each row as an image of one pixel with the inputs as its three channels."""
    return jnp.asarray(x)[:, None, None, :]


def params_of(*weights_and_bias: tuple[np.ndarray, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    return {f"fc{i}": {"kernel": W, "bias": b} for i, (W, b) in enumerate(weights_and_bias, start=1)}


def test_fully_connected_layer_is_weights_transposed_times_inputs_plus_bias() -> None:
    image, W, b = normal32(0, 1, 2, 2, 3), normal32(1, 12, 5), normal32(2, 5)
    logits, _ = AlexNet((Layer("fc", 0),), num_classes=5).apply({"params": params_of((W, b))}, jnp.asarray(image))
    a = image.reshape(12, 1).astype(np.float64)
    np.testing.assert_allclose(logits.T, W.T @ a + b[:, None], rtol=1e-5)


def test_backpropagation_through_two_layers() -> None:
    """Sigmoid in the hidden and in the output layer, binary cross-entropy summed over examples and outputs."""
    X, Y = normal32(0, 6, 3), np.array([[0, 1], [1, 1], [1, 0], [0, 0], [1, 0], [0, 1]], np.float32)
    W1, b1, W2, b2 = normal32(1, 3, 4), normal32(2, 4), normal32(3, 4, 2), normal32(4, 2)
    network = AlexNet((Layer("fc", 4, ("act",)), Layer("fc", 0)), num_classes=2, activation="sigmoid")

    def loss(params: dict) -> jax.Array:
        z, _ = network.apply({"params": params}, pixels(X))
        y_hat = ACTIVATIONS["sigmoid"](z)
        return -jnp.sum(Y * jnp.log(y_hat) + (1 - Y) * jnp.log(1 - y_hat))

    gradients = jax.jit(jax.grad(loss))(params_of((W1, b1), (W2, b2)))

    X, Y, W1, b1, W2, b2 = (array.astype(np.float64) for array in (X, Y, W1, b1, W2, b2))
    A1 = sigmoid(X @ W1 + b1)
    Y_hat = sigmoid(A1 @ W2 + b2)
    delta2 = Y_hat - Y
    delta1 = (delta2 @ W2.T) * A1 * (1 - A1)
    expected = params_of((X.T @ delta1, delta1.sum(axis=0)), (A1.T @ delta2, delta2.sum(axis=0)))
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6), gradients, expected)


def test_two_linear_layers_are_one() -> None:
    x, W1, b1, W2, b2 = normal32(0, 5, 3), normal32(1, 3, 4), normal32(2, 4), normal32(3, 4, 2), normal32(4, 2)
    network = AlexNet((Layer("fc", 4), Layer("fc", 0)), num_classes=2)
    logits, _ = network.apply({"params": params_of((W1, b1), (W2, b2))}, pixels(x))
    np.testing.assert_allclose(logits, x @ (W1 @ W2) + (b1 @ W2 + b2), rtol=1e-4, atol=1e-5)


def test_relu_between_two_layers_makes_them_more_than_one() -> None:
    network = AlexNet((Layer("fc", 1, ("act",)), Layer("fc", 0)), num_classes=1)
    params = params_of((np.ones((3, 1), np.float32), np.zeros(1)), (np.ones((1, 1), np.float32), np.zeros(1)))
    x = np.array([[1, 2, 4], [-1, -2, -4], [0, 0, 0]], np.float32)
    logits, _ = network.apply({"params": params}, pixels(x))
    # One linear layer would have f(x) + f(-x) = 2 f(0).
    np.testing.assert_array_equal(logits, [[7], [0], [0]])


# Activations


# Name: the function and its derivative. No point of the grid below is 0, where some have no derivative.
CLOSED_FORMS: dict[str, tuple[Callable, Callable]] = {
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x))),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "scaled_tanh": (
        lambda x: 1.7159 * np.tanh(2 * x / 3),
        lambda x: 1.7159 * 2 / 3 * (1 - np.tanh(2 * x / 3) ** 2),
    ),
    "relu": (lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1, 0)),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.01 * x), lambda x: np.where(x > 0, 1, 0.01)),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_activation_and_its_derivative(name: str) -> None:
    x = np.linspace(-4, 4, 40)
    values, slopes = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(jnp.asarray(x))
    function, derivative = CLOSED_FORMS[name]
    np.testing.assert_allclose(values, function(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes, derivative(x), rtol=1e-5, atol=1e-6)


def test_an_activation_takes_a_single_number() -> None:
    with fast_compilation(False):  # ReLU as a CPU computes it
        assert [float(jax.grad(ACTIVATIONS["relu"])(x)) for x in (-2.0, 3.0)] == [0, 1]


def test_every_activation_has_its_closed_form_here() -> None:
    assert set(CLOSED_FORMS) == set(ACTIVATIONS)


def test_prelu_learns_its_slope_from_the_negative_inputs() -> None:
    network = AlexNet((Layer("fc", 0, ("act",)),), num_classes=3, activation="prelu")
    x = np.array([[-2, 0.5, -1]], np.float32)
    params = network.init(jax.random.key(0), pixels(x))["params"]
    params["fc1"]["kernel"] = jnp.eye(3)
    total, gradients = jax.jit(jax.value_and_grad(lambda p: network.apply({"params": p}, pixels(x))[0].sum()))(params)
    # The slope starts from 0.25.
    assert total == 0.25 * -2 + 0.5 + 0.25 * -1
    assert gradients["act1"]["negative_slope"] == -2 + -1
    np.testing.assert_array_equal(gradients["fc1"]["bias"], [0.25, 1, 0.25])


# Loss, optimiser and dropout


def test_gradient_of_cross_entropy_is_softmax_minus_target() -> None:
    logits, labels, mask = 3 * normal32(0, 4, 6), jnp.array([0, 5, 2, 2]), jnp.ones(4, bool)
    loss_gradient = jax.jit(jax.grad(lambda z: metrics.classification_sums(z, labels, mask)["loss_sum"]))
    probabilities = loss_gradient(jnp.asarray(logits)) + np.eye(6)[labels]
    powers = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert np.all((probabilities > 0) & (probabilities < 1))


def test_momentum() -> None:
    """v <- 0.9 v + 0.1 gradient, w <- w - v, from v = 0 on J = w^2 / 2, whose gradient is w."""
    config = get_config("lenet").optimizer
    config.update({"momentum": 0.9, "weight_decay": 0.0})
    params = {"fc1": {"kernel": jnp.array([[1.0]]), "bias": jnp.array([-10.0])}}
    optimizer, rates = make_optimizer(config, params), jax.tree.map(lambda _: 0.1, params)
    state = optimizer.init(params)
    # v is 0.1, then 0.09 + 0.09 = 0.18, 0.162 + 0.072 = 0.234, 0.2106 + 0.0486 = 0.2592.
    for expected in (0.9, 0.72, 0.486, 0.2268):
        updates, state = optimizer.update(params, state, params, learning_rates=rates)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["fc1"]["kernel"], [[expected]], rtol=1e-6)
        np.testing.assert_allclose(params["fc1"]["bias"], [-10 * expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("convention", "rate", "kept_in_training", "in_testing"),
    [("2012", 0.5, 1, 0.5), ("2012", 0.25, 1, 0.75), ("inverted", 0.5, 2, 1), ("inverted", 0.75, 4, 1)],
)
def test_mean_of_dropout_in_training_is_its_output_in_testing(
    convention: str, rate: float, kept_in_training: float, in_testing: float
) -> None:
    examples, unit = 4000, np.array([1, -2, 5], np.float32)
    x, keys = jnp.tile(unit, (examples, 1)), jax.random.split(jax.random.key(0), examples)
    training = np.asarray(dropout(x, keys, rate, convention))
    assert np.all((training == 0) | (training == kept_in_training * unit))
    deviation = kept_in_training * np.abs(unit) * math.sqrt(rate * (1 - rate) / examples)
    assert np.all(np.abs(training.mean(axis=0) - in_testing * unit) < 5 * deviation)
    np.testing.assert_array_equal(dropout(x, None, rate, convention)[0], in_testing * unit)


# Convolution


IMAGE = [
    [1, 2, 0, 1, 3],
    [0, 1, 2, 3, 1],
    [1, 0, 1, 2, 2],
    [2, 1, 0, 1, 0],
    [3, 1, 2, 0, 1],
]
KERNEL = [
    [1, 0, -1],
    [2, 0, -2],
    [0, 1, 0],
]


def convolve(kernel: list[list[int]], stride: int, pad: int) -> np.ndarray:
    x, kernel = jnp.array(IMAGE, float)[None, :, :, None], jnp.array(kernel, float)[:, :, None, None]
    return np.asarray(conv(x, kernel, stride, ((pad, pad), (pad, pad)), groups=1))[0, :, :, 0]


def test_convolution_shrinks_the_image() -> None:
    # The upper left pixel: 1*1 - 1*0 + 2*0 - 2*2 + 1*0 = -3.
    expected = [[-3, -2, 1], [-1, -6, 0], [5, 0, -1]]
    np.testing.assert_array_equal(convolve(KERNEL, stride=1, pad=0), expected)


def test_convolution_with_padding_keeps_the_size() -> None:
    expected = [[-4, 3, 4, -3, 3], [-3, -3, -2, 1, 9], [1, -1, -6, 0, 7], [1, 5, 0, -1, 5], [-3, 4, 2, 2, 1]]
    np.testing.assert_array_equal(convolve(KERNEL, stride=1, pad=1), expected)


def test_convolution_with_stride_skips_windows() -> None:
    np.testing.assert_array_equal(convolve(KERNEL, stride=2, pad=0), [[-3, 1], [5, -1]])


def test_convolution_does_not_flip_its_kernel() -> None:
    """The 1 in the corner picks the upper left pixel of each window; a flipped kernel would pick the lower right."""
    corner = [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(convolve(corner, stride=1, pad=0), [[1, 2, 0], [0, 1, 2], [1, 0, 1]])


# Layer: (h, k, p, s, d, K): pixels, window, padding, stride, channels that a kernel sees, kernels.
TWO_TOWERS = {
    "conv1": (227, 11, 0, 4, 3, 96),
    "conv2": (27, 5, 2, 1, 48, 256),
    "conv3": (13, 3, 1, 1, 256, 384),
    "conv4": (13, 3, 1, 1, 192, 384),
    "conv5": (13, 3, 1, 1, 192, 256),
}
CONVOLUTIONS = {
    "source": {**TWO_TOWERS, "conv1": (224, 11, 0, 4, 3, 96)},
    "paper": TWO_TOWERS,
    "caffe": TWO_TOWERS,
    "single_tower": {
        **TWO_TOWERS,
        "conv2": (27, 5, 2, 1, 96, 256),
        "conv4": (13, 3, 1, 1, 384, 384),
        "conv5": (13, 3, 1, 1, 384, 256),
    },
    "owt": {
        "conv1": (224, 11, 2, 4, 3, 64),
        "conv2": (27, 5, 2, 1, 64, 192),
        "conv3": (13, 3, 1, 1, 192, 384),
        "conv4": (13, 3, 1, 1, 384, 256),
        "conv5": (13, 3, 1, 1, 256, 256),
    },
}


@pytest.mark.parametrize("preset", CONVOLUTIONS)
def test_output_size_and_parameters_of_every_convolution(preset: str) -> None:
    model, table = AlexNet(**PRESETS[preset]), CONVOLUTIONS[preset]
    # Only the 2012 source lets the last window hang over the edge.
    ceil = preset == "source"
    round_ = math.ceil if ceil else math.floor
    rows = {row.name: row for row in summarize(model, crop=table["conv1"][0]) if row.name.startswith("conv")}
    assert list(rows) == list(table)
    for name, (h, k, p, s, d, K) in table.items():
        outputs = round_((h - k + 2 * p) / s + 1)
        assert output_size(h, k, s, p, ceil) == outputs
        assert rows[name].shape == (outputs, outputs, K)
        assert rows[name].parameters == K * (k * k * d + 1)


# Pooling


POOLED_IMAGE = [
    [9, 1, 0, 2, 6],
    [3, 4, 1, 5, 0],
    [2, 0, 1, 0, 3],
    [1, 6, 2, 7, 4],
    [0, 3, 8, 1, 2],
]
MAXIMA = np.array([[9, 5, 6], [6, 7, 7], [8, 8, 8]])
SUMS = np.array([[21, 14, 18], [20, 26, 23], [23, 28, 28]])


@pytest.mark.parametrize(("kind", "expected"), [("max", MAXIMA), ("avg", SUMS / 9)])
def test_pooling_3x3_at_every_pixel(kind: str, expected: np.ndarray) -> None:
    pooled = pool(jnp.array(POOLED_IMAGE, float)[None, :, :, None], kind, size=3, stride=1, ceil=False)
    np.testing.assert_allclose(pooled[0, :, :, 0], expected, rtol=1e-6)
