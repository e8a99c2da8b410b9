"""ONNX files predict what the network does, for every operation that a network may have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from ml_collections import ConfigDict

from alexnet_jax.inference.export import FORMATS, export_run
from alexnet_jax.inference.onnx_graph import onnx_model
from alexnet_jax.models.presets import PRESETS
from alexnet_jax.ops.activations import ACTIVATIONS
from tests.helpers.narrow import NARROW
from tests.helpers.pictures import refused
from tests.helpers.random_run import CLASSES, random_run

SAME = ("run170", "caffenet", "modern", "single_tower", "cifar_80sec", "cifar_19pct", "logistic", "linear")
SAME += (
    "vgg11",
    "vgg16",
    "vgg_small",
    "googlenet",
    "inception_small",
    "resnet18",
    "resnet50",
    "resnet_small",
    "large_batch",
)
"""Presets whose layers and conventions all occur in another preset, or in one of NARROW."""

NETWORKS: list[Any] = [
    ("source", {}),
    *(pytest.param(preset, {}, marks=pytest.mark.slow) for preset in PRESETS if preset not in (*SAME, "source")),
    *(("lenet", {"model.activation": name}) for name in (*ACTIVATIONS, "prelu")),
    *(("lenet", {"test_views": 2, "data.mean_form": form}) for form in ("channel", "image_centre", "image_crop")),
    ("small", {"test_views": 10, "data.mean_form": "image_crop"}),
    ("small", {"test_views": 10}),
    ("small", {"model.cross_tower": False}),
    ("small", {"model.lrn": "none"}),
    ("small", {"model.lrn": "paper", "model.pool_window": "plain", "model.pool_kind": "avg"}),
    ("small_modern", {"model.dropout_rate": 0.3, "model.dropout_convention": "2012", "model.activation": "prelu"}),
    ("lenet", {"data.image_size": 33, "data.crop": 28, "test_views": 10, "model.num_classes": 5}),
    ("lenet", {"model.compute_dtype": "bfloat16"}),
]


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(f"{key}={change}" for key, change in value.items()) or "-"


@pytest.mark.parametrize(("preset", "changes"), NETWORKS, ids=name_of)
def test_it_answers_as_the_network_does(
    preset: str, changes: dict[str, Any], make_config: Callable[..., ConfigDict], tmp_path: Path
) -> None:
    run = random_run(make_config(f"synthetic,{preset},smoke", **changes))
    path = tmp_path / "model.onnx"
    assert export_run(run, FORMATS["onnx"], path) <= 1e-5  # a tenth of what is promised

    session = onnxruntime.InferenceSession(path)
    size = run.config.data.image_size
    images = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), np.uint8)
    images //= np.array([1, 2, 8], np.uint8).reshape(3, 1, 1, 1)
    answers = session.run(["probabilities"], {"images": images})[0]
    assert answers.dtype == np.float32 and answers.shape == (3, run.model.num_classes)
    assert answers.std(axis=0).max() > 5e-4  # it depends on the image
    np.testing.assert_allclose(answers, run.predict(images), atol=0.05 if "bfloat16" in changes.values() else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_networks_of_blocks(
    name: str, make_config: Callable[..., ConfigDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, name, NARROW[name])  # type: ignore[arg-type]
    run = random_run(make_config(**{"model.preset": name, "data.image_size": 40, "data.crop": 33}))
    assert export_run(run, FORMATS["onnx"], tmp_path / "model.onnx") <= 1e-5


def test_one_output_for_two_classes(
    make_config: Callable[..., ConfigDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.helpers.random_run.CLASSES", ("cat", "dog"))
    run = random_run(make_config("synthetic,logistic,smoke"))
    assert run.model.outputs == 1
    assert export_run(run, FORMATS["onnx"], tmp_path / "model.onnx") <= 1e-5


def test_it_says_what_it_is(make_config: Callable[..., ConfigDict]) -> None:
    run = random_run(make_config(**{"model.num_classes": 4}))
    model = onnx.load_from_string(onnx_model(run, {"class_names": run.outputs, "views": 1}))
    assert {entry.key: json.loads(entry.value) for entry in model.metadata_props} == {
        "class_names": [*CLASSES, "unused 3"],
        "views": 1,
    }
    (given,), (answer,) = model.graph.input, model.graph.output
    assert [size.dim_param or size.dim_value for size in given.type.tensor_type.shape.dim] == ["batch", 32, 32, 3]
    assert [size.dim_param or size.dim_value for size in answer.type.tensor_type.shape.dim] == ["batch", 4]
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_an_activation_without_counterpart_is_named(
    make_config: Callable[..., ConfigDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ACTIVATIONS, "cosine", jnp.cos)
    run = random_run(make_config())
    object.__setattr__(run, "model", run.model.clone(activation="cosine"))
    assert "config.model.activation='cosine'" in refused(lambda: onnx_model(run, {}))
