"""Names and memory layouts of AlexNet weights in PyTorch and Caffe, and conversion from and to this project's.

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

from alexnet_jax.errors import UserError, check_choice
from alexnet_jax.inference.weight_files import compare
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.summary import trace_shapes

LAYOUTS = ("torchvision", "caffe")


@dataclasses.dataclass(frozen=True)
class _Slot:
    """One layer with weights in both layouts.

    Attributes:
      layer: the layer's name here, like "conv1".
      weight, bias: the names of its two arrays in the other layout.
      window: rows, columns and channels of a feature's kernel, and the number of features.
      is_flat: the layer is fully connected.
      is_bgr: the other layout orders the input channels B, G, R.
    """

    layer: str
    weight: str
    bias: str
    window: tuple[int, int, int, int]
    is_flat: bool
    is_bgr: bool

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


def to_layout(layout: str, model: AlexNet, crop: int, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts parameters to the names and shapes of another program.

    Args:
      layout: one of LAYOUTS.
      model: the network.
      crop: side of the network's input in pixels.
      params: {layer: {"kernel", "bias"}}.

    Returns:
      The arrays by the other program's names.

    Raises UserError if the network has operations that the layout cannot express.
    """
    arrays: dict[str, np.ndarray] = {}
    for slot in _slots(layout, model, crop):
        arrays[slot.weight] = slot.outwards(params[slot.layer]["kernel"])
        arrays[slot.bias] = np.asarray(params[slot.layer]["bias"])
    return arrays


def from_layout(layout: str, model: AlexNet, crop: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts the arrays of another program to parameters of the network; the inverse of `to_layout`.

    Raises UserError that lists all names and shapes that do not match, or if the network has operations that the layout
    cannot express.
    """
    slots = list(_slots(layout, model, crop))
    expected = {slot.weight: jax.ShapeDtypeStruct(slot.shape, np.float32) for slot in slots}
    expected |= {slot.bias: jax.ShapeDtypeStruct(slot.shape[:1], np.float32) for slot in slots}
    if differences := compare(arrays, expected):
        raise UserError(f"the weights do not fit the network: {'; '.join(differences)}")
    return {
        slot.layer: {"kernel": slot.inwards(arrays[slot.weight]), "bias": np.array(arrays[slot.bias])} for slot in slots
    }


def last_bias(layout: str, model: AlexNet) -> str:
    """The layout's name for the bias of the last layer, whose length is the number of classes."""
    return list(_names(layout, model))[-1][1]


def _slots(layout: str, model: AlexNet, crop: int) -> Iterator[_Slot]:
    """Yields the layers with weights, in order."""
    variables, shapes = trace_shapes(model, crop)
    inputs = dict(zip(shapes, [(crop, crop, 3), *shapes.values()], strict=False))
    for index, (layer, names) in enumerate(zip(model.layers, _names(layout, model), strict=True), start=1):
        name, is_flat = f"{layer.kind}{index}", layer.kind == "fc"
        *window, features = variables["params"][name]["kernel"].shape
        rows, columns, channels = (1, 1, *inputs[name])[-3:] if is_flat else window
        yield _Slot(name, *names, (rows, columns, channels, features), is_flat, layout == "caffe" and index == 1)


def _names(layout: str, model: AlexNet) -> Iterator[tuple[str, str]]:
    """Yields the layout's names of each layer's weights and bias. Raises UserError like `to_layout`."""
    _check(layout, model)
    if layout == "caffe":  # pycaffe numbers a layer's blobs
        for index, layer in enumerate(model.layers, start=1):
            yield f"{layer.kind}{index}.0", f"{layer.kind}{index}.1"
        return
    # torchvision/models/alexnet.py: two Sequentials; the dropout before fc6 is the first module of the second.
    module, position, dropout_before = "features", 0, False
    for layer in model.layers:
        if layer.kind == "fc" and module == "features":
            module, position = "classifier", int(dropout_before)
        yield f"{module}.{position}.weight", f"{module}.{position}.bias"
        dropout_before = "dropout" in layer.then
        position += 1 + sum(name in ("act", "pool") or module == "classifier" for name in layer.then)


def _check(layout: str, model: AlexNet) -> None:
    """Raises UserError for operations of the network that the layout cannot express."""
    check_choice("--layout", layout, LAYOUTS)
    kinds, then = {layer.kind for layer in model.layers}, {name for layer in model.layers for name in layer.then}
    operations = {
        "local layers": "local" in kinds,
        "batch normalisation": "bn" in then,
        "within-map normalisation": model.lrn is not None and "map_norm" in then,
        "activation prelu": model.activation == "prelu",
    }
    if layout == "torchvision":
        operations |= {
            "response normalisation": model.lrn is not None and "lrn" in then,
            "two towers": model.towers > 1 and any(layer.own_tower for layer in model.layers),
            "windows that hang over the edge": model.conv_ceil or model.pool_ceil,
            f"activation {model.activation}": model.activation != "relu",
            "average pooling": any("pool" in layer.then and layer.pool != "max" for layer in model.layers),
            f"pooling windows of {model.pool_size}": model.pool_size != 3,
        }
    foreign = [name for name, is_used in operations.items() if is_used]
    if foreign:
        presets = {"torchvision": "owt", "caffe": "caffe or caffenet"}[layout]
        raise UserError(f"--layout={layout} has no {', no '.join(foreign)}; it is the layout of the preset {presets}")
