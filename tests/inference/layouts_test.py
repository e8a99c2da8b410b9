"""Weights in the layouts of torchvision and Caffe."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.inference.layouts import from_layout, last_bias, to_layout
from alexnet_jax.models.alexnet import AlexNet, get_model
from configs import alexnet

# Crops at which the last map is larger than 1 x 1, so that the order of flattening matters.
CASES = [("torchvision", "owt", 95), ("caffe", "caffe", 95), ("caffe", "caffenet", 95), ("caffe", "lenet", 28)]


def network(preset: str, **changes: object) -> AlexNet:
    config = alexnet.get_config(f"synthetic,{preset}")
    config.model.update({"hidden_width": 16, **changes})
    return get_model(config.model, num_classes=7)


def random_params(model: AlexNet, crop: int) -> Any:
    """Parameters that all differ, with kernels of a scale that keeps that of the images up to the logits."""
    generator = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, crop, crop, 3), "float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return jax.tree.map(
        lambda leaf: generator.normal(scale=(2 / math.prod(leaf.shape[:-1])) ** 0.5, size=leaf.shape).astype("float32"),
        shapes,
    )


@pytest.mark.parametrize(("layout", "preset", "crop"), CASES)
def test_there_and_back_is_exact(layout: str, preset: str, crop: int) -> None:
    model = network(preset)
    params = random_params(model, crop)
    arrays = to_layout(layout, model, crop, {"params": params})
    assert last_bias(layout, model) == list(arrays)[-1]
    back = from_layout(layout, model, crop, arrays)["params"]
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    again = to_layout(layout, model, crop, {"params": back})
    assert all(np.array_equal(again[name], array) for name, array in arrays.items())


def test_names_and_shapes_of_torchvision() -> None:
    """The names of `torchvision.models.alexnet().state_dict()` with their shapes."""
    model = get_model(alexnet.get_config("synthetic,owt").model, num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    arrays = to_layout("torchvision", model, 224, {"params": params})
    assert {name: array.shape for name, array in arrays.items()} == {
        "features.0.weight": (64, 3, 11, 11),
        "features.0.bias": (64,),
        "features.3.weight": (192, 64, 5, 5),
        "features.3.bias": (192,),
        "features.6.weight": (384, 192, 3, 3),
        "features.6.bias": (384,),
        "features.8.weight": (256, 384, 3, 3),
        "features.8.bias": (256,),
        "features.10.weight": (256, 256, 3, 3),
        "features.10.bias": (256,),
        "classifier.1.weight": (4096, 9216),
        "classifier.1.bias": (4096,),
        "classifier.4.weight": (4096, 4096),
        "classifier.4.bias": (4096,),
        "classifier.6.weight": (1000, 4096),
        "classifier.6.bias": (1000,),
    }


def test_caffe_has_blue_first_and_half_of_the_channels_in_groups() -> None:
    model, crop = network("caffe"), 95
    params = random_params(model, crop)
    arrays = to_layout("caffe", model, crop, {"params": params})
    assert arrays["conv1.0"].shape == (96, 3, 11, 11) and arrays["conv2.0"].shape == (256, 48, 5, 5)
    np.testing.assert_array_equal(arrays["conv1.0"][5, 0], params["conv1"]["kernel"][:, :, 2, 5])
    np.testing.assert_array_equal(arrays["conv1.0"][5, 2], params["conv1"]["kernel"][:, :, 0, 5])
    np.testing.assert_array_equal(arrays["conv2.0"][200, 7], params["conv2"]["kernel"][:, :, 7, 200])
    maps = params["fc6"]["kernel"].reshape(2, 2, 256, 16)
    np.testing.assert_array_equal(arrays["fc6.0"].reshape(16, 256, 2, 2)[3, 9], maps[:, :, 9, 3])
    np.testing.assert_array_equal(arrays["fc7.0"], params["fc7"]["kernel"].T)
    np.testing.assert_array_equal(arrays["fc8.1"], params["fc8"]["bias"])


def test_all_differences_in_one_message() -> None:
    model, crop = network("owt"), 95
    arrays = to_layout("torchvision", model, crop, {"params": random_params(model, crop)})
    del arrays["features.0.bias"], arrays["classifier.1.weight"]
    arrays["features.3.weight"] = arrays["features.3.weight"][:, ::2]
    arrays["classifier.6.weight"] = arrays["classifier.6.weight"].reshape(1, 1, 7, 16)
    arrays["features.1.running_mean"] = np.zeros(64, np.float32)
    with pytest.raises(UserError) as caught:
        from_layout("torchvision", model, crop, arrays)
    assert str(caught.value).split(": ", 1)[1].split("; ") == [
        "classifier.1.weight is missing",
        "features.0.bias is missing",
        "features.1.running_mean is unknown",
        "classifier.6.weight is (1, 1, 7, 16), not (7, 16)",
        "features.3.weight is (192, 32, 5, 5), not (192, 64, 5, 5)",
    ]


@pytest.mark.parametrize(
    ("layout", "preset", "changes", "what"),
    [
        ("torchvision", "caffe", {}, "response normalisation, no two towers, no windows that hang over the edge"),
        ("torchvision", "owt", {"activation": "tanh"}, "activation tanh"),
        ("torchvision", "owt", {"pool_kind": "avg"}, "average pooling"),
        ("torchvision", "owt", {"pool_window": "plain"}, "pooling windows of 2"),
        ("torchvision", "bn", {}, "batch normalisation"),
        ("caffe", "bn", {}, "batch normalisation"),
        ("caffe", "cifar_13pct", {}, "local layers"),
        ("caffe", "source", {}, "within-map normalisation"),
        ("caffe", "caffe", {"activation": "prelu"}, "activation prelu"),
        ("darknet", "owt", {}, "torchvision, caffe"),
    ],
)
def test_what_a_layout_does_not_have(layout: str, preset: str, changes: dict[str, object], what: str) -> None:
    with pytest.raises(UserError, match=what):
        to_layout(layout, network(preset, **changes), 95, {})
