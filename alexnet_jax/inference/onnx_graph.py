"""Conversion of a trained network to an ONNX graph from pixels to probabilities.

ONNX uses NCHW, this project NHWC: the input is transposed once in the graph, and kernels are stored transposed.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from alexnet_jax.augment import Preprocessing
from alexnet_jax.errors import UserError
from alexnet_jax.inference.loaded_run import TrainedRun
from alexnet_jax.models.presets import Layer
from alexnet_jax.ops.normalization import LRN
from alexnet_jax.ops.windows import window_padding

OPSET, IR_VERSION = 17, 8
"""Version of ONNX's operations and file format; onnxruntime 1.12 (2022) and later read them."""


def onnx_model(run: TrainedRun, about: Mapping[str, Any]) -> bytes:
    """Builds and serialises the ONNX model of a run.

    Its input "images" is uint8, [batch, size, size, 3]; its output "probabilities" is float32, [batch, classes]. The
    graph includes test-time cropping and normalisation, computes in float32 and averages over `config.test_views`.

    Args:
      run: the trained network.
      about: the model's metadata; each value is stored as JSON.

    Returns:
      The content of an .onnx file.
    """
    import onnx
    from onnx import TensorProto, helper

    size, views = run.config.data.image_size, run.config.test_views
    graph = _Graph()
    logits = _network(graph, run, _crops(graph, run.preprocessing, size, views))
    probabilities = graph.add("Softmax", logits, axis=1)
    if views > 1:
        by_view = graph.add("Reshape", probabilities, np.array([views, -1, run.model.num_classes]))
        probabilities = graph.add("ReduceMean", by_view, axes=[0], keepdims=0)
    graph.add("Identity", probabilities, output="probabilities")
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])
    outputs = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", run.model.num_classes])
    whole = helper.make_graph(graph.nodes, "alexnet", [images], [outputs], graph.constants)
    versions: dict[str, Any] = {"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": IR_VERSION}
    model = helper.make_model(whole, producer_name="alexnet_jax", **versions)
    helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Graph:
    """An ONNX graph under construction: its nodes in order, and the constant arrays they use."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operation: str, *inputs: str | np.ndarray, output: str = "", **attributes: Any) -> str:
        """Adds a node and returns the name of its output; arrays among the inputs become constants."""
        from onnx import helper

        output = output or f"{operation}_{len(self.nodes)}"
        names = [
            value if isinstance(value, str) else self._constant(value, f"{output}_{number}")
            for number, value in enumerate(inputs)
        ]
        self.nodes.append(helper.make_node(operation, names, [output], name=output, **attributes))
        return output

    def _constant(self, array: np.ndarray, name: str) -> str:
        from onnx import numpy_helper

        kind = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array, kind), name))
        return name


def _crops(graph: _Graph, p: Preprocessing, size: int, views: int) -> str:
    """Adds `augment.testing_images`: all views of the batch, one view after another, [views * batch, 3, crop, crop]."""
    pixels, last, middle = graph.add("Cast", "images", to=1), size - p.crop, (size - p.crop) // 2  # 1 is float32
    if p.mean_form == "image_crop":
        pixels = graph.add("Sub", pixels, p.mean)
    corners = [(0, 0), (0, last), (last, 0), (last, last)] if views == 10 else []
    windows = []
    for row, column in [(middle, middle), *corners]:
        bounds = np.array([row, column]), np.array([row + p.crop, column + p.crop])
        windows.append(graph.add("Slice", pixels, *bounds, np.array([1, 2])))
    if views > 1:
        ends = np.array([-1]), np.array([np.iinfo(np.int64).min])
        windows += [graph.add("Slice", window, *ends, np.array([2]), np.array([-1])) for window in windows]
    crops = graph.add("Concat", *windows, axis=0)
    if p.mean_form != "image_crop":
        crops = graph.add("Sub", crops, p.mean if p.mean_form == "channel" else p.centre(p.mean))
    return graph.add("Transpose", graph.add("Div", crops, np.asarray(p.std)), perm=[0, 3, 1, 2])


def _network(graph: _Graph, run: TrainedRun, x: str) -> str:
    """Adds `AlexNet.__call__` in testing, without auxiliary classifiers; returns the name of the logits."""
    model, crop = run.model, run.preprocessing.crop
    shape: tuple[int, ...] = (crop, crop, 3)
    nodes: dict[str, str] = {}  # by the names of activations
    for index, layer in enumerate(model.layers, start=1):
        if layer.auxiliary:
            continue
        name = f"{layer.kind}{index}"
        if layer.source:
            x, shape = nodes[layer.source], run.layer_shapes[layer.source]
        if layer.pooled:
            x = nodes[f"pooled{index}"] = _pool(graph, x, shape, model.pool_ceil, *layer.pooled)
            shape = run.layer_shapes[f"pooled{index}"]
        x = nodes[name] = _weights(graph, run, layer, name, x, shape)
        shape = run.layer_shapes[name]
        for operation in layer.then:
            name = f"{operation}{index}"
            match operation:
                case "act":
                    x = _activation(graph, run, name, x)
                case "lrn" if model.lrn is not None:
                    x = _cross_map_norm(graph, model.lrn, model.towers, shape[-1], x)
                case "map_norm" if model.lrn is not None:
                    x = _within_map_norm(graph, *model.map_norm, x)
                case "pool":
                    x = _pool(graph, x, shape, model.pool_ceil, layer.pool, model.pool_size, 2, model.pool_pad)
                case "bn":
                    p, statistics = run.params[name], run.batch_stats[name]
                    arrays = (p["scale"], p["bias"], statistics["mean"], statistics["var"])
                    x = graph.add("BatchNormalization", x, *map(np.asarray, arrays), epsilon=model.bn_epsilon)
                case "add":
                    x = graph.add("Sum", *(nodes[other] for other in layer.joined), x)
                case "concat":
                    x = graph.add("Concat", *(nodes[other] for other in layer.joined), x, axis=1)
                case "mean":
                    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
                case "dropout" if model.dropout_convention == "2012":
                    x = graph.add("Mul", x, np.array(1.0 - model.dropout_rate))
                case _:
                    continue
            shape, nodes[name] = run.layer_shapes[name], x
    if model.outputs < model.num_classes:
        x = graph.add("Concat", graph.add("Mul", x, np.array(0.0)), x, axis=1)
    return x


def _pool(
    graph: _Graph, x: str, shape: tuple[int, ...], ceil: bool, kind: str, size: int, stride: int, pad: int
) -> str:
    """Adds `ops.pooling.pool`; `shape` is that of x for one image."""
    operation = {"max": "MaxPool", "avg": "AveragePool"}[kind]
    pads = _pads(shape, size, stride, pad, ceil)
    return graph.add(operation, x, kernel_shape=[size] * 2, strides=[stride] * 2, pads=pads)


def _weights(graph: _Graph, run: TrainedRun, layer: Layer, name: str, x: str, shape: tuple[int, ...]) -> str:
    """Adds a layer with weights; `shape` is that of x for one image, [rows, columns, channels] or [units]."""
    kernel = np.asarray(run.params[name]["kernel"])
    bias = np.asarray(run.params[name].get("bias", np.zeros(kernel.shape[-1])))
    if layer.kind == "fc":
        if len(shape) == 3:
            kernel = kernel.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        return graph.add("Gemm", graph.add("Flatten", x), kernel, bias)
    window: dict[str, Any] = {
        "kernel_shape": [layer.kernel] * 2,
        "strides": [layer.stride] * 2,
        "pads": _pads(shape, layer.kernel, layer.stride, layer.pad, run.model.conv_ceil),
    }
    if layer.kind == "local":
        return _local(graph, kernel, bias, shape[-1], x, window)
    groups = run.model.towers if layer.own_tower else 1
    return graph.add("Conv", x, kernel.transpose(3, 2, 0, 1), bias, group=groups, **window)


def _local(graph: _Graph, kernel: np.ndarray, bias: np.ndarray, channels: int, x: str, window: dict[str, Any]) -> str:
    """Adds a locally connected layer, which has a separate kernel at each output position.

    A convolution with one-hot kernels copies all windows; then one matrix product per position applies the kernels.

    Args:
      graph: the graph to add to.
      kernel: [rows, columns, channels * window, features].
      bias: [rows, columns, features].
      channels: the channels of x.
      x: the name of the input.
      window: kernel_shape, strides and pads of ONNX's Conv.

    Returns:
      The name of the output.
    """
    pixels = kernel.shape[2] // channels
    copies = np.tile(np.eye(pixels), (channels, 1)).reshape(channels * pixels, 1, *window["kernel_shape"])
    windows = graph.add("Conv", x, copies, group=channels, **window)
    products = graph.add("MatMul", graph.add("Transpose", windows, perm=[2, 3, 0, 1]), kernel)
    return graph.add("Transpose", graph.add("Add", products, bias[:, :, None]), perm=[2, 3, 0, 1])


def _activation(graph: _Graph, run: TrainedRun, name: str, x: str) -> str:
    """Adds one of `ops.activations.ACTIVATIONS`, or PReLU. Raises UserError for one that has no ONNX counterpart."""
    match run.model.activation:
        case "relu" | "tanh" | "sigmoid" as same:
            return graph.add(same.capitalize(), x)
        case "scaled_tanh":
            return graph.add("Mul", graph.add("Tanh", graph.add("Mul", x, np.array(2 / 3))), np.array(1.7159))
        case "leaky_relu":
            return graph.add("LeakyRelu", x, alpha=0.01)
        case "prelu":
            return graph.add("PRelu", x, np.asarray(run.params[name]["negative_slope"]).reshape(1))
        case other:
            raise UserError(f"config.model.activation={other!r} cannot be exported as ONNX; use --format=stablehlo")


def _cross_map_norm(graph: _Graph, lrn: LRN, towers: int, channels: int, x: str) -> str:
    """Adds `ops.normalization.cross_map_norm` over `channels` channels; ONNX divides alpha by the size."""
    attributes: dict[str, Any] = {"size": lrn.size, "alpha": lrn.alpha * lrn.size, "beta": 0.75, "bias": lrn.k}
    if not lrn.per_tower or towers == 1:
        return graph.add("LRN", x, **attributes)
    width, normalised = channels // towers, []
    for first in range(0, channels, width):
        tower = graph.add("Slice", x, np.array([first]), np.array([first + width]), np.array([1]))
        normalised.append(graph.add("LRN", tower, **attributes))
    return graph.add("Concat", *normalised, axis=1)


def _within_map_norm(graph: _Graph, size: int, alpha: float, x: str) -> str:
    """Adds `ops.normalization.within_map_norm` and returns its output.

    ONNX has averages over windows; the sum is size^2 times an average that counts the zero padding.
    """
    window: dict[str, Any] = {"kernel_shape": [size] * 2, "pads": [size // 2] * 4, "count_include_pad": 1}
    mean = graph.add("AveragePool", graph.add("Mul", x, x), **window)
    energy = graph.add("Add", graph.add("Mul", mean, np.array(alpha * size**2)), np.array(1.0))
    return graph.add("Mul", x, graph.add("Pow", energy, np.array(-0.75)))


def _pads(shape: tuple[int, ...], kernel: int, stride: int, pad: int, ceil: bool) -> list[int]:
    """`ops.windows.window_padding` in ONNX's order: top, left, bottom, right."""
    rows, columns = (window_padding(extent, kernel, stride, pad, ceil) for extent in shape[:2])
    return [rows[0], columns[0], rows[1], columns[1]]
