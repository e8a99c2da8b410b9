"""The variants of AlexNet, read from presets.toml.

Every number there has its source. Abbreviations, there and in `ops/`: "paper" is Krizhevsky, Sutskever
and Hinton, NIPS 2012; "CHM" is the original code and its configurations (github.com/computerhistory/
AlexNet-Source-Code); "CC2" is github.com/akrizhevsky/cuda-convnet2; "Caffe" is github.com/BVLC/caffe; "torchvision" is
github.com/pytorch/vision.
"""

import dataclasses
import importlib.resources
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from alexnet_jax.models import inception, residual, vgg
from alexnet_jax.ops.normalization import LRN, LRN_CONVENTIONS


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer with weights and the operations that follow it.

    Layers stand in a row, each reading the output of the one before. `source` and `joined` make branches of a row: both
    name earlier activations, like "act3".

    Attributes:
      kind: "conv", "local" (a convolution that does not share its weights) or "fc".
      features: output channels or units; 0 in the last layer stands for the number of classes.
      then: the operations that follow, in order: "bn", "act", "lrn", "map_norm", "pool", "dropout"; "add" and "concat"
        with the activations in `joined`; "mean", over all positions of each map.
      kernel, stride, pad: the window's side, step and zero padding, in pixels.
      own_tower: each tower sees only its own half of the channels (group: 2 in Caffe).
      init: standard deviation of the normal distribution, or "he", or "he_out" (by the fan-out, as in torchvision), or
        "torch" for torch's default.
      bias: the initial value of biases, ignored with init "torch"; None for a layer without biases.
      pool: "max" or "avg".
      source: the activation that the layer reads; "" for the output of the layer before.
      pooled: (kind, size, stride, pad) of the pooling of the input before the weights; kind is "max", "avg", or "grid":
        averages over a grid of size x size cells.
      joined: the activations that "add" or "concat" takes, before its own input.
      dropout: the layer's own dropout rate; None for that of the network.
      auxiliary: the layer belongs to an auxiliary classifier, which serves only in training.
      torchvision: the name of the layer's module in torchvision, and of its batch normalisation.
    """

    kind: str
    features: int
    then: tuple[str, ...] = ()
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    own_tower: bool = False
    init: float | str = 0.01
    bias: float | None = 0.0
    pool: str = "max"
    source: str = ""
    pooled: tuple[str, int, int, int] | None = None
    joined: tuple[str, ...] = ()
    dropout: float | None = None
    auxiliary: bool = False
    torchvision: tuple[str, str] = ("", "")

    @property
    def is_hidden(self) -> bool:
        """Whether this is a fully connected layer that does not compute logits."""
        return self.kind == "fc" and self.features > 0


_FAMILIES: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "vgg": vgg.layers,
    "residual": residual.layers,
    "inception": inception.layers,
}
"""Functions that make the lines of `layers` of a network of blocks, by the key of their arguments."""


def _layer(then: str = "", **row: Any) -> Layer:
    """Parses a line like {conv = 96, kernel = 11, then = "act pool"}."""
    (kind,) = row.keys() & {"conv", "local", "fc"}
    return Layer(kind, row.pop(kind), tuple(then.split()), **row)


def read_presets(text: str) -> dict[str, dict[str, Any]]:
    """Parses presets in the format of presets.toml: fields of `AlexNet` by the name of the preset."""
    presets: dict[str, dict[str, Any]] = {}
    for name, table in tomllib.loads(text).items():
        for family in _FAMILIES.keys() & table:
            table["layers"] = _FAMILIES[family](**table.pop(family))
        if "layers" in table:
            table["layers"] = tuple(_layer(**row) for row in table["layers"])
        if isinstance(lrn := table.get("lrn"), str):
            table["lrn"] = LRN_CONVENTIONS[lrn]
        elif lrn:
            table["lrn"] = LRN(lrn["k"], lrn["scale"] / lrn["size"], lrn["size"])
        if norm := table.get("map_norm"):
            table["map_norm"] = norm["size"], norm["scale"] / norm["size"] ** 2
        presets[name] = {**presets.get(table.pop("like", ""), {}), **table}
    return presets


PRESETS: Mapping[str, Mapping[str, Any]] = read_presets(
    importlib.resources.files(__package__).joinpath("presets.toml").read_text()
)
"""Fields of `AlexNet` by the name of the preset."""
