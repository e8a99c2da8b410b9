"""The variants of AlexNet as data: which layers, in which order, with which numbers.

No number stands here without the place it was read at. Sources, here and in `ops/`: "paper" is Krizhevsky, Sutskever
and Hinton, NIPS 2012; "CHM" is the original code and its configurations (github.com/computerhistory/
AlexNet-Source-Code); "CC2" is github.com/akrizhevsky/cuda-convnet2; "Caffe" is github.com/BVLC/caffe; "torchvision" is
github.com/pytorch/vision.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from alexnet_jax.ops.normalization import LRN, LRN_CONVENTIONS


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer with weights and the operations that follow it.

    Attributes:
      kind: "conv", "local" (a convolution that does not share its weights) or "fc".
      features: output channels or units; 0 in the last layer stands for the number of classes.
      then: what follows, in order: "bn", "act", "lrn", "map_norm", "pool", "dropout".
      kernel, stride, pad: the window's side, step and zero padding, in pixels.
      own_tower: each tower sees its own half of the channels alone (in Caffe's terms group: 2).
      init: standard deviation of the normal distribution, or "he", or "torch" for torch's default.
      bias: the constant that biases start from; ignored with init "torch".
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
        """Whether this is a fully connected layer before the last."""
        return self.kind == "fc" and self.features > 0


conv = functools.partial(Layer, "conv")
local = functools.partial(Layer, "local")
fc = functools.partial(Layer, "fc")


def _alexnet_2012(
    conv1: tuple[str, ...] = ("act", "lrn", "pool"),
    conv2: tuple[str, ...] = ("act", "lrn", "pool"),
    conv5: tuple[str, ...] = ("act", "pool"),
    before_act: tuple[str, ...] = (),
    conv345_init: float | str = 0.01,
    init: float | str = 0.01,
    fc_init: float | str = 0.01,
    bias: float = 1.0,
) -> tuple[Layer, ...]:
    """The eight layers of paper section 3.5; others differ in the order of operations and in the initialisation.

    Biases of conv2, conv4, conv5, fc6 and fc7 start from `bias` (paper section 5), the others from 0.
    """
    act = (*before_act, "act")
    return (
        conv(96, conv1, kernel=11, stride=4, init=init),
        conv(256, conv2, kernel=5, pad=2, own_tower=True, init=init, bias=bias),
        conv(384, act, kernel=3, pad=1, init=conv345_init),
        conv(384, act, kernel=3, pad=1, own_tower=True, init=conv345_init, bias=bias),
        conv(256, conv5, kernel=3, pad=1, own_tower=True, init=conv345_init, bias=bias),
        fc(4096, (*act, "dropout"), init=fc_init, bias=bias),
        fc(4096, (*act, "dropout"), init=fc_init, bias=bias),
        fc(0, init=init if init == "he" else 0.01),
    )


def _small(
    conv1: tuple[str, ...], conv2: tuple[str, ...], conv5: tuple[str, ...], act: tuple[str, ...] = ("act",)
) -> tuple[Layer, ...]:
    """The eight layers for images of 28 pixels: a sixth to an eighth of the maps, a 32nd of the hidden units.

    conv1 moves by 2 pixels and its 16 x 16 outputs are pooled to 8, 4 and 2, by either pooling window. Each standard
    deviation is the source's times the root of the ratio of fan-ins: signals start as large as in the full network.
    """
    return (
        conv(16, conv1, kernel=5, stride=2, pad=3, init=0.02),
        conv(32, conv2, kernel=5, pad=2, own_tower=True, init=0.025, bias=1.0),
        conv(48, act, kernel=3, pad=1, init=0.085),
        conv(48, act, kernel=3, pad=1, own_tower=True, init=0.085, bias=1.0),
        conv(32, conv5, kernel=3, pad=1, own_tower=True, init=0.085, bias=1.0),
        fc(128, (*act, "dropout"), init=0.085, bias=1.0),
        fc(128, (*act, "dropout"), init=0.057, bias=1.0),
        fc(0, init=0.057),
    )


_CIFAR_CONV3 = (
    # CHM example-layers/layers-19pct.cfg
    conv(32, ("act", "pool"), kernel=5, pad=2, init=1e-4),
    conv(32, ("act", "pool"), kernel=5, pad=2, pool="avg"),
    conv(64, ("act", "pool"), kernel=5, pad=2, pool="avg"),
)
_CUDA_CONVNET = {"conv_ceil": True, "pool_ceil": True}
# pooling_layer.cpp rounds up; dropout_layer.cpp is inverted.
_CAFFE = {"towers": 2, "lrn": LRN_CONVENTIONS["caffe"], "pool_ceil": True, "dropout_convention": "inverted"}

_SOURCE_ORDER: Mapping[str, tuple[str, ...]] = {
    "conv1": ("lrn", "pool", "act"),
    "conv2": ("act", "lrn", "map_norm", "pool"),
    "conv5": ("pool", "act"),
}
_SOURCE_NORM = {"towers": 2, "lrn": LRN_CONVENTIONS["source"], **_CUDA_CONVNET}
_SOURCE = {
    # Run 145 of the 2012 source, whose errors are those of the paper's "1 CNN": CHM layers/layers-145.cfg. conv1 is
    # normalised before its ReLU, which sits on the pooling layer (so does conv5's); layer 2 has a second, within-map
    # norm (scale 0.001, size 5); conv3-5 start from 0.03; 224 pixels with windows that overhang; dropout as "2012".
    "layers": _alexnet_2012(**_SOURCE_ORDER, conv345_init=0.03),
    **_SOURCE_NORM,
}

# One tower with batch normalisation (Ioffe and Szegedy 2015) before each of the seven ReLUs in place of LRN; started as
# He et al. 2015 prescribe for ReLU, biases 0.
_BN_ORDER: Mapping[str, tuple[str, ...]] = dict.fromkeys(("conv1", "conv2", "conv5"), ("bn", "act", "pool"))
_BN = {
    "layers": _alexnet_2012(**_BN_ORDER, before_act=("bn",), conv345_init="he", init="he", fc_init="he", bias=0.0),
    "dropout_convention": "inverted",
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "source": _SOURCE,
    # Run 170 differs from it in its schedule alone: CHM layers/layer-params-170.cfg.
    "run170": _SOURCE,
    # As printed: sections 3.3 to 3.5 (ReLU, then normalisation, then pooling), 4.2 and 5. Wants 227 pixels for 55 x 55.
    "paper": {"layers": _alexnet_2012(), "towers": 2, "lrn": LRN_CONVENTIONS["paper"]},
    # Caffe models/bvlc_alexnet/train_val.prototxt: bias 0.1 ("initialization to 1 gave flat loss", its readme.md), fc6
    # and fc7 from 0.005, 227 pixels.
    "caffe": {"layers": _alexnet_2012(fc_init=0.005, bias=0.1), **_CAFFE},
    # Caffe models/bvlc_reference_caffenet/train_val.prototxt: pooling before normalisation, bias 1.
    "caffenet": {"layers": _alexnet_2012(("act", "pool", "lrn"), ("act", "pool", "lrn"), fc_init=0.005), **_CAFFE},
    # The paper's network with every kernel seeing all channels, as most later codes have it.
    "single_tower": {"layers": _alexnet_2012(), "lrn": LRN_CONVENTIONS["paper"]},
    # "One weird trick" (Krizhevsky 2014) in torchvision's layout, models/alexnet.py: no normalisation, dropout before
    # fc6 and before fc7, torch's default initialisation, 224 pixels with padding 2.
    "owt": {
        "layers": (
            conv(64, ("act", "pool"), kernel=11, stride=4, pad=2, init="torch"),
            conv(192, ("act", "pool"), kernel=5, pad=2, init="torch"),
            conv(384, ("act",), kernel=3, pad=1, init="torch"),
            conv(256, ("act",), kernel=3, pad=1, init="torch"),
            conv(256, ("act", "pool", "dropout"), kernel=3, pad=1, init="torch"),
            fc(4096, ("act", "dropout"), init="torch"),
            fc(4096, ("act",), init="torch"),
            fc(0, init="torch"),
        ),
        "dropout_convention": "inverted",
    },
    "bn": _BN,
    # The network of `bn`; what is modern beyond that is in how it trains: configs/alexnet.py.
    "modern": _BN,
    # CHM example-layers/layers-80sec.cfg: 26 % test error on CIFAR-10.
    "cifar_80sec": {"layers": (*_CIFAR_CONV3, fc(64, ("act",), init=0.1), fc(0, init=0.1)), **_CUDA_CONVNET},
    # CHM example-layers/layers-19pct.cfg: four layers with weights, a candidate for the net of the paper's Figure 1.
    "cifar_19pct": {"layers": (*_CIFAR_CONV3, fc(0)), **_CUDA_CONVNET},
    # CHM example-layers/layers-18pct.cfg: within-map norm (size 3, scale 0.00005) over the first two pooling layers.
    "cifar_18pct": {
        "layers": (
            *(dataclasses.replace(layer, then=("act", "pool", "map_norm")) for layer in _CIFAR_CONV3[:2]),
            *(_CIFAR_CONV3[2], fc(0)),
        ),
        "lrn": LRN_CONVENTIONS["source"],
        "map_norm": (3, 0.00005 / 9),
        **_CUDA_CONVNET,
    },
    # CHM example-layers/layers-conv-local-13pct.cfg: what paper section 3.3 calls a four-layer CNN, without norm.
    "cifar_13pct": {
        "layers": (
            conv(64, ("act", "pool"), kernel=5, pad=2, init=1e-4),
            conv(64, ("act", "pool"), kernel=5, pad=2),
            local(32, ("act",), kernel=3, pad=1, init=0.04),
            local(32, ("act",), kernel=3, pad=1, init=0.04),
            fc(0),
        ),
        **_CUDA_CONVNET,
    },
    # CC2 layers/layers-cifar10-11pct.cfg and layer-params-cifar10-11pct.cfg: cmrnorm of size 9, scale 0.001.
    "cifar_11pct": {
        "layers": (
            conv(64, ("act", "pool", "lrn"), kernel=5, pad=2, init=1e-4),
            conv(64, ("act", "lrn", "pool"), kernel=5, pad=2),
            local(64, ("act",), kernel=3, pad=1, init=0.04),
            local(32, ("act",), kernel=3, pad=1, init=0.04),
            fc(0),
        ),
        "lrn": LRN(k=1.0, alpha=0.001 / 9, size=9),
        **_CUDA_CONVNET,
    },
    # `source` scaled to images of 32 pixels, for ablations on a small machine.
    "small": {"layers": _small(**_SOURCE_ORDER), **_SOURCE_NORM},
    # `bn` scaled in the same way.
    "small_modern": {
        "layers": tuple(
            dataclasses.replace(layer, init="he", bias=0.0) for layer in _small(**_BN_ORDER, act=("bn", "act"))
        ),
        "dropout_convention": "inverted",
        **_CUDA_CONVNET,
    },
    # LeNet-5 (LeCun et al. 1998) in the modern form: two convolutions with max pooling, 120 and 84 units, ReLU.
    "lenet": {
        "layers": (
            conv(6, ("act", "pool"), kernel=5, pad=2, init="he"),
            conv(16, ("act", "pool"), kernel=5, init="he"),
            fc(120, ("act",), init="he"),
            fc(84, ("act",), init="he"),
            fc(0, init="he"),
        ),
        "pool_size": 2,
    },
}
"""Fields of `AlexNet` by the name of a variant."""
