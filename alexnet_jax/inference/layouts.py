"""Names and memory layouts of weights in PyTorch and Caffe, and conversion from and to this project's.

Here: convolution kernels are [rows, columns, channels, features], fully connected ones [inputs, units]; the first fully
connected layer flattens [rows, columns, channels]; colours are R, G, B. PyTorch and Caffe: [features, channels, rows,
columns] and [units, inputs], flattened [channels, rows, columns]; Caffe's colours are B, G, R. Towers are convolution
groups in both, in the same order of channels as here.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from alexnet_jax.errors import UserError, check_choice
from alexnet_jax.inference.weight_files import compare
from alexnet_jax.models.alexnet import AlexNet, get_model
from alexnet_jax.models.summary import trace_shapes

LAYOUTS = ("torchvision", "caffe")


@dataclasses.dataclass(frozen=True)
class _Slot:
    """One layer with weights in both layouts.

    Attributes:
      layer: the layer's name here, like "conv1".
      weight, bias: the names of its two arrays in the other layout; "" for the bias if the layer has none.
      norm: the names of the batch normalisation that follows, here and in the other layout; there "" if none follows.
      window: rows, columns and channels of a feature's kernel, and the number of features.
      is_flat: the layer is fully connected.
      is_bgr: the other layout orders the input channels B, G, R.
    """

    layer: str
    weight: str
    bias: str
    norm: tuple[str, str]
    window: tuple[int, int, int, int]
    is_flat: bool
    is_bgr: bool

    @property
    def vectors(self) -> dict[str, tuple[str, str, str]]:
        """All other arrays, one number for each feature: by name in the other layout, the path to them here."""
        ours, theirs = self.norm
        of_norm = {f"{theirs}.{name}": (tree, ours, key) for name, tree, key in _NORM} if theirs else {}
        return ({self.bias: ("params", self.layer, "bias")} if self.bias else {}) | of_norm

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights in the other layout (torchvision's or Caffe's), which has the features first."""
        rows, columns, channels, features = self.window
        return (features, channels * rows * columns) if self.is_flat else (features, channels, rows, columns)

    def outwards(self, kernel: Any) -> np.ndarray:
        """Converts a kernel from this project's layout to the other one."""
        weight = np.asarray(kernel).reshape(self.window).transpose(3, 2, 0, 1)
        return np.ascontiguousarray(weight[:, ::-1] if self.is_bgr else weight).reshape(self.shape)

    def inwards(self, weight: np.ndarray) -> np.ndarray:
        """Converts weights from the other layout to a kernel in this project's."""
        rows, columns, channels, features = self.window
        weight = weight.reshape(features, channels, rows, columns)
        kernel = np.ascontiguousarray((weight[:, ::-1] if self.is_bgr else weight).transpose(2, 3, 1, 0))
        return kernel.reshape(-1, features) if self.is_flat else kernel


_NORM = (
    ("weight", "params", "scale"),
    ("bias", "params", "bias"),
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
)
"""The arrays of batch normalisation: their names in PyTorch, the tree they are in here and their names here."""


def to_layout(layout: str, model: AlexNet, crop: int, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts variables to the names and shapes of another program.

    Args:
      layout: one of LAYOUTS.
      model: the network.
      crop: side of the network's input in pixels.
      variables: "params", {layer: {"kernel", "bias"}}, and for batch normalisation "batch_stats".

    Returns:
      The arrays by the other program's names.

    Raises UserError if the network has operations that the layout cannot express.
    """
    arrays: dict[str, np.ndarray] = {}
    for slot in _slots(layout, model, crop):
        arrays[slot.weight] = slot.outwards(variables["params"][slot.layer]["kernel"])
        for name, (tree, group, key) in slot.vectors.items():
            arrays[name] = np.asarray(variables[tree][group][key])
    return arrays


def from_layout(layout: str, model: AlexNet, crop: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts the arrays of another program to variables of the network; the inverse of `to_layout`.

    PyTorch's counts of batches, "num_batches_tracked", are left out.

    Raises UserError that lists all names and shapes that do not match, or if the network has operations that the layout
    cannot express, or if a number is NaN or infinite.
    """
    slots = list(_slots(layout, model, crop))
    expected = {slot.weight: jax.ShapeDtypeStruct(slot.shape, np.float32) for slot in slots}
    expected |= {name: jax.ShapeDtypeStruct(slot.shape[:1], np.float32) for slot in slots for name in slot.vectors}
    arrays = {name: array for name, array in arrays.items() if not name.endswith(".num_batches_tracked")}
    if differences := compare(arrays, expected):
        raise UserError(f"the weights do not fit the network: {'; '.join(differences)}")
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f"the weights hold NaN or infinity: {', '.join(broken)}")
    found = {("params", slot.layer, "kernel"): slot.inwards(arrays[slot.weight]) for slot in slots}
    found |= {path: np.array(arrays[name]) for slot in slots for name, path in slot.vectors.items()}
    return {"batch_stats": {}, **traverse_util.unflatten_dict(found)}


def last_bias(layout: str, model: AlexNet) -> str:
    """The layout's name for the bias of the last layer, whose length is the number of classes."""
    return list(_names(layout, model))[-1][1]


def guess_layout(arrays: Mapping[str, np.ndarray]) -> str:
    """The layout whose names the arrays have: Caffe numbers the blobs of a layer."""
    return "caffe" if any(name.endswith(".0") for name in arrays) else "torchvision"


def count_outputs(layout: str, config: ConfigDict, arrays: Mapping[str, np.ndarray]) -> int:
    """The number of outputs of the network of `config.model`: given there, or the arrays' biases of the last layer."""
    if config.num_classes is not None:
        return config.num_classes
    bias = arrays.get(last_bias(layout, get_model(config, 1)), np.zeros(1000))
    return max(bias.size, 1)


def _slots(layout: str, model: AlexNet, crop: int) -> Iterator[_Slot]:
    """Yields the layers with weights, in order."""
    variables, shapes = trace_shapes(model, crop)
    inputs = dict(zip(shapes, [(crop, crop, 3), *shapes.values()], strict=False))
    for index, (layer, names) in enumerate(zip(model.layers, _names(layout, model), strict=True), start=1):
        weight, bias, norm = names
        name, is_flat = f"{layer.kind}{index}", layer.kind == "fc"
        *window, features = variables["params"][name]["kernel"].shape
        rows, columns, channels = (1, 1, *inputs[name])[-3:] if is_flat else window
        shape = rows, columns, channels, features
        yield _Slot(name, weight, bias, (f"bn{index}", norm), shape, is_flat, layout == "caffe" and index == 1)


def _names(layout: str, model: AlexNet) -> Iterator[tuple[str, str, str]]:
    """Yields the layout's names of each layer's weights, bias and batch normalisation. Raises like `to_layout`."""
    _check(layout, model)
    if layout == "caffe":  # pycaffe numbers a layer's blobs
        for index, layer in enumerate(model.layers, start=1):
            yield f"{layer.kind}{index}.0", f"{layer.kind}{index}.1", ""
        return
    if _is_named(model):
        for layer in model.layers:
            name, norm = layer.torchvision
            yield f"{name}.weight", "" if layer.bias is None else f"{name}.bias", norm
        return
    # torchvision/models/alexnet.py and vgg.py: two Sequentials; a dropout before the first fully connected layer is the
    # first module of the second.
    module, position, dropout_before = "features", 0, False
    for layer in model.layers:
        if layer.kind == "fc" and module == "features":
            module, position = "classifier", int(dropout_before)
        yield f"{module}.{position}.weight", f"{module}.{position}.bias", ""
        dropout_before = "dropout" in layer.then
        position += 1 + sum(name in ("act", "pool") or module == "classifier" for name in layer.then)


def _is_named(model: AlexNet) -> bool:
    """Whether each layer knows its name in torchvision."""
    return all(layer.torchvision[0] for layer in model.layers)


def _check(layout: str, model: AlexNet) -> None:
    """Raises UserError for operations of the network that the layout cannot express."""
    check_choice("--layout", layout, LAYOUTS)
    kinds, then = {layer.kind for layer in model.layers}, {name for layer in model.layers for name in layer.then}
    operations = {
        "local layers": "local" in kinds,
        "batch normalisation": "bn" in then and not (layout == "torchvision" and _is_named(model)),
        "single output for two classes": model.outputs < model.num_classes,
        "within-map normalisation": model.lrn is not None and "map_norm" in then,
        "activation prelu": model.activation == "prelu",
    }
    if layout == "torchvision":
        is_vgg = "pool" in then and all(layer.kernel == 3 for layer in model.layers if layer.kind == "conv")
        operations |= {
            "response normalisation": model.lrn is not None and "lrn" in then,
            "two towers": model.towers > 1 and any(layer.own_tower for layer in model.layers),
            "windows that hang over the edge": model.conv_ceil or (model.pool_ceil and not _is_named(model)),
            f"activation {model.activation}": model.activation != "relu",
            "average pooling": any("pool" in layer.then and layer.pool != "max" for layer in model.layers),
            f"pooling windows of {model.pool_size}": model.pool_size != (2 if is_vgg else 3),
        }
    foreign = [name for name, is_used in operations.items() if is_used]
    if foreign:
        presets = {"torchvision": "owt, vgg, googlenet and resnet", "caffe": "caffe or caffenet"}[layout]
        raise UserError(f"--layout={layout} has no {', no '.join(foreign)}; it is the layout of {presets}")
