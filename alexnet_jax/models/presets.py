"""The variants of AlexNet, read from presets.toml.

Every number there has its source. Abbreviations, there and in `ops/`: "paper" is Krizhevsky, Sutskever
and Hinton, NIPS 2012; "CHM" is the original code and its configurations (github.com/computerhistory/
AlexNet-Source-Code); "CC2" is github.com/akrizhevsky/cuda-convnet2; "Caffe" is github.com/BVLC/caffe; "torchvision" is
github.com/pytorch/vision.
"""

import dataclasses
import importlib.resources
import tomllib
from collections.abc import Mapping
from typing import Any

from alexnet_jax.ops.normalization import LRN, LRN_CONVENTIONS


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer with weights and the operations that follow it.

    Attributes:
      kind: "conv", "local" (a convolution that does not share its weights) or "fc".
      features: output channels or units; 0 in the last layer stands for the number of classes.
      then: the operations that follow, in order: "bn", "act", "lrn", "map_norm", "pool", "dropout".
      kernel, stride, pad: the window's side, step and zero padding, in pixels.
      own_tower: each tower sees only its own half of the channels (group: 2 in Caffe).
      init: standard deviation of the normal distribution, or "he", or "torch" for torch's default.
      bias: the initial value of biases; ignored with init "torch".
      pool: "max" or "avg".
    """

    kind: str
    features: int
    then: tuple[str, ...] = ()
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    own_tower: bool = False
    init: float | str = 0.01
    bias: float = 0.0
    pool: str = "max"

    @property
    def is_hidden(self) -> bool:
        """Whether this is a fully connected layer other than the last."""
        return self.kind == "fc" and self.features > 0


def _layer(then: str = "", **row: Any) -> Layer:
    """Parses a line like {conv = 96, kernel = 11, then = "act pool"}."""
    (kind,) = row.keys() & {"conv", "local", "fc"}
    return Layer(kind, row.pop(kind), tuple(then.split()), **row)


def _read_presets(text: str) -> dict[str, dict[str, Any]]:
    presets: dict[str, dict[str, Any]] = {}
    for name, table in tomllib.loads(text).items():
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


PRESETS: Mapping[str, Mapping[str, Any]] = _read_presets(
    importlib.resources.files(__package__).joinpath("presets.toml").read_text()
)
"""Fields of `AlexNet` by the name of the preset."""
