"""AlexNet as one Flax module whose fields describe a variant, and the variants as data.

The sources' names are spelt out in `layers.py`. No number stands here without the place it was read at.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from alexnet_jax import layers
from alexnet_jax.errors import UserError
from alexnet_jax.layers import LRN, LRN_CONVENTIONS


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


conv = functools.partial(Layer, "conv")
local = functools.partial(Layer, "local")
fc = functools.partial(Layer, "fc")


class AlexNet(nn.Module):
    """AlexNet and its relatives: layers in a row, then logits.

    Attributes:
      layers: the layers with weights, the classifier last.
      num_classes: units of the classifier.
      towers: 2 as in the paper, or 1.
      activation: "prelu" or a name in `layers.ACTIVATIONS`.
      lrn: cross-map normalisation, or None to leave every normalisation layer out.
      map_norm: (window, alpha) of the within-map normalisation.
      pool_size: side of the pooling window in pixels; it moves by 2.
      conv_ceil, pool_ceil: the last window may hang over the edge; see `layers.output_size`.
      dropout_rate: probability of dropping a unit.
      dropout_convention: "2012" or "inverted"; see `layers.dropout`.
    """

    layers: tuple[Layer, ...]
    num_classes: int = 1000
    towers: int = 1
    activation: str = "relu"
    lrn: LRN | None = None
    map_norm: tuple[int, float] = (5, 0.001 / 25)
    pool_size: int = 3
    conv_ceil: bool = False
    pool_ceil: bool = False
    dropout_rate: float = 0.5
    dropout_convention: str = "2012"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        dropout_keys: Key[Array, " batch"] | None = None,
        axis_name: str | None = None,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        """Logits and every intermediate activation by name.

        Args:
          images: normalised images.
          dropout_keys: one key an example; given in training, None in testing.
          axis_name: the mapped axis over which batch normalisation averages in training.

        Returns:
          logits, and the activations in order: "conv1", "act1", "lrn1", "pool1", ... "fc8".
        """
        train = dropout_keys is not None
        x: Array = images
        activations: dict[str, Array] = {}
        for index, layer in enumerate(self.layers, start=1):
            x = activations[f"{layer.kind}{index}"] = self._weights(layer, f"{layer.kind}{index}", x)
            for operation in layer.then:
                name = f"{operation}{index}"
                match operation:
                    case "act":
                        x = self._activate(x, name)
                    case "lrn" if self.lrn is not None:
                        x = layers.cross_map_norm(x, self.lrn, self.towers)
                    case "map_norm" if self.lrn is not None:
                        x = layers.within_map_norm(x, *self.map_norm)
                    case "pool":
                        x = layers.pool(x, layer.pool, self.pool_size, 2, self.pool_ceil)
                    case "bn":
                        x = nn.BatchNorm(not train, momentum=0.9, axis_name=axis_name, name=name)(x)
                    case "dropout":
                        keys = None if dropout_keys is None else _fold_in(dropout_keys, index)
                        x = layers.dropout(x, keys, self.dropout_rate, self.dropout_convention)
                    case _:
                        continue
                activations[name] = x
        return x, activations

    def _activate(self, x: Array, name: str) -> Array:
        if self.activation == "prelu":
            return nn.PReLU(negative_slope_init=0.25, name=name)(x)  # one slope a layer, from 0.25: He et al. 2015
        return layers.ACTIVATIONS[self.activation](x)

    def _weights(self, layer: Layer, name: str, x: Array) -> Array:
        """Applies the weighted part of a layer; a fully connected one flattens what it gets."""
        features = layer.features or self.num_classes
        groups = self.towers if layer.own_tower else 1
        if layer.kind == "fc":
            x = x.reshape(x.shape[0], -1)
            return nn.Dense(features, **_initializers(layer, fan_in=x.shape[-1]), name=name)(x)
        size, stride = layer.kernel, layer.stride
        padding = [layers.window_padding(extent, size, stride, layer.pad, self.conv_ceil) for extent in x.shape[1:3]]
        options = _initializers(layer, fan_in=size * size * x.shape[-1] // groups)
        if layer.kind == "local":
            return nn.ConvLocal(features, (size, size), (stride, stride), padding, **options, name=name)(x)
        return nn.Conv(
            features,
            (size, size),
            (stride, stride),
            padding,
            feature_group_count=groups,
            conv_general_dilated=layers.conv,
            **options,
            name=name,
        )(x)


def _fold_in(keys: Key[Array, " batch"], number: int) -> Key[Array, " batch"]:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _initializers(layer: Layer, fan_in: int) -> dict[str, Any]:
    """The initialisers of a layer's kernel and bias."""
    if layer.init == "torch":
        # torch.nn.modules: kaiming_uniform(a=sqrt(5)) is U(-1/sqrt(fan_in), 1/sqrt(fan_in)), for the bias too.
        bound = fan_in**-0.5
        return {
            "kernel_init": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            "bias_init": lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
        }
    if layer.init == "he":
        kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    else:
        kernel_init = nn.initializers.normal(layer.init)
    return {"kernel_init": kernel_init, "bias_init": nn.initializers.constant(layer.bias)}


def _alexnet_2012(
    conv1: tuple[str, ...],
    conv2: tuple[str, ...],
    conv5: tuple[str, ...] = ("act", "pool"),
    before_act: tuple[str, ...] = (),
    conv345_init: float | str = 0.01,
    init: float | str = 0.01,
    fc_init: float | str = 0.01,
    bias: float = 1.0,
) -> tuple[Layer, ...]:
    """The eight layers of paper section 3.5; variants differ in the order of operations and in the initialisation.

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


_CIFAR_CONV3 = (
    # CHM example-layers/layers-19pct.cfg
    conv(32, ("act", "pool"), kernel=5, pad=2, init=1e-4),
    conv(32, ("act", "pool"), kernel=5, pad=2, pool="avg"),
    conv(64, ("act", "pool"), kernel=5, pad=2, pool="avg"),
)
_CUDA_CONVNET = {"conv_ceil": True, "pool_ceil": True}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Run 145 of the 2012 source, whose errors are those of the paper's "1 CNN": CHM layers/layers-145.cfg. conv1 is
    # normalised before its ReLU, which sits on the pooling layer (so does conv5's); layer 2 has a second, within-map
    # norm (scale 0.001, size 5); conv3-5 start from 0.03; 224 pixels with windows that overhang; dropout as "2012".
    "source": {
        "layers": _alexnet_2012(
            conv1=("lrn", "pool", "act"),
            conv2=("act", "lrn", "map_norm", "pool"),
            conv5=("pool", "act"),
            conv345_init=0.03,
        ),
        "towers": 2,
        "lrn": LRN_CONVENTIONS["source"],
        **_CUDA_CONVNET,
    },
    # As printed: sections 3.3 to 3.5 (ReLU, then normalisation, then pooling), 4.2 and 5. Wants 227 pixels for 55 x 55.
    "paper": {
        "layers": _alexnet_2012(conv1=("act", "lrn", "pool"), conv2=("act", "lrn", "pool")),
        "towers": 2,
        "lrn": LRN_CONVENTIONS["paper"],
    },
    # Caffe models/bvlc_alexnet/train_val.prototxt: bias 0.1 ("initialization to 1 gave flat loss", its readme.md), fc6
    # and fc7 from 0.005, 227 pixels; pooling_layer.cpp rounds up; dropout_layer.cpp is inverted.
    "caffe": {
        "layers": _alexnet_2012(conv1=("act", "lrn", "pool"), conv2=("act", "lrn", "pool"), fc_init=0.005, bias=0.1),
        "towers": 2,
        "lrn": LRN_CONVENTIONS["caffe"],
        "pool_ceil": True,
        "dropout_convention": "inverted",
    },
    # Caffe models/bvlc_reference_caffenet/train_val.prototxt: pooling before normalisation, bias 1.
    "caffenet": {
        "layers": _alexnet_2012(conv1=("act", "pool", "lrn"), conv2=("act", "pool", "lrn"), fc_init=0.005),
        "towers": 2,
        "lrn": LRN_CONVENTIONS["caffe"],
        "pool_ceil": True,
        "dropout_convention": "inverted",
    },
    # The paper's network with every kernel seeing all channels, as most later codes have it.
    "single_tower": {
        "layers": _alexnet_2012(conv1=("act", "lrn", "pool"), conv2=("act", "lrn", "pool")),
        "lrn": LRN_CONVENTIONS["paper"],
    },
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
    # One tower with batch normalisation (Ioffe and Szegedy 2015) before each of the seven ReLUs in place of LRN;
    # started as He et al. 2015 prescribe for ReLU, biases 0.
    "bn": {
        "layers": _alexnet_2012(
            conv1=("bn", "act", "pool"),
            conv2=("bn", "act", "pool"),
            conv5=("bn", "act", "pool"),
            before_act=("bn",),
            conv345_init="he",
            init="he",
            fc_init="he",
            bias=0.0,
        ),
        "dropout_convention": "inverted",
    },
    # CHM example-layers/layers-80sec.cfg: 26 % test error on CIFAR-10.
    "cifar_80sec": {"layers": (*_CIFAR_CONV3, fc(64, ("act",), init=0.1), fc(0, init=0.1)), **_CUDA_CONVNET},
    # CHM example-layers/layers-19pct.cfg: four layers with weights, a candidate for the net of the paper's Figure 1.
    "cifar_19pct": {"layers": (*_CIFAR_CONV3, fc(0)), **_CUDA_CONVNET},
    # CHM example-layers/layers-18pct.cfg: within-map norm (size 3, scale 0.00005) over the first two pooling layers.
    "cifar_18pct": {
        "layers": (
            *(dataclasses.replace(layer, then=("act", "pool", "map_norm")) for layer in _CIFAR_CONV3[:2]),
            _CIFAR_CONV3[2],
            fc(0),
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


def get_model(config: ConfigDict, num_classes: int) -> AlexNet:
    """The network that `config.model` asks for: a preset with the keys that are not None in place of its own values.

    Raises UserError if a name is unknown or there are fewer outputs than the `num_classes` of the data.
    """
    preset = PRESETS[_known("preset", config.preset, PRESETS)]
    outputs = num_classes if config.num_classes is None else config.num_classes
    if outputs < num_classes:
        raise UserError(f"config.model.num_classes={outputs}, but the data have {num_classes} classes")
    model = AlexNet(**{**preset, "num_classes": outputs})
    changes: dict[str, Any] = {}
    if config.towers is not None:
        changes["towers"] = _known("towers", config.towers, (1, 2))
    if config.activation is not None:
        changes["activation"] = _known("activation", config.activation, (*layers.ACTIVATIONS, "prelu"))
    if config.lrn is not None:
        changes["lrn"] = {**LRN_CONVENTIONS, "none": None}[_known("lrn", config.lrn, (*LRN_CONVENTIONS, "none"))]
    if config.pool_window is not None:
        changes["pool_size"] = {"overlapping": 3, "plain": 2}[
            _known("pool_window", config.pool_window, ("overlapping", "plain"))
        ]
    if config.dropout_rate is not None:
        changes["dropout_rate"] = config.dropout_rate
    if config.dropout_convention is not None:
        changes["dropout_convention"] = _known("dropout_convention", config.dropout_convention, ("2012", "inverted"))
    stack = list(model.layers)
    if config.pool_kind is not None:
        kind = _known("pool_kind", config.pool_kind, ("max", "avg"))
        stack = [dataclasses.replace(layer, pool=kind) for layer in stack]
    if config.hidden_width is not None:
        stack = [
            dataclasses.replace(layer, features=config.hidden_width) if layer.kind == "fc" and layer.features else layer
            for layer in stack
        ]
    return model.clone(layers=tuple(stack), **changes)


def _known(key: str, value: Any, known: Any) -> Any:
    """The value itself, or a UserError that lists what there is."""
    if value not in known:
        raise UserError(f"config.model.{key}={value!r} is unknown; there are: {', '.join(map(str, known))}")
    return value


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """A row of the table of layers: output shape without the batch, parameters, multiply-accumulates of one image."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


def summarize(model: AlexNet, crop: int) -> list[LayerSummary]:
    """Every operation that has parameters or changes the shape, for one crop x crop image; computes no activation.

    A convolution counts a multiply-accumulate for each kernel weight at each output pixel, padding included.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def init(images: Array) -> Any:
        (_, activations), variables = model.init_with_output(jax.random.key(0), images)
        shapes.update({name: activation.shape[1:] for name, activation in activations.items()})
        return variables

    variables = jax.eval_shape(init, jax.ShapeDtypeStruct((1, crop, crop, 3), jnp.float32))
    rows: list[LayerSummary] = []
    previous: tuple[int, ...] = (crop, crop, 3)
    for name, shape in shapes.items():
        parameters = variables["params"].get(name, {})
        macs = parameters["kernel"].size if "kernel" in parameters else 0
        if name.startswith("conv"):
            macs *= shape[0] * shape[1]
        if parameters or shape != previous or name.startswith(("lrn", "map_norm")):
            rows.append(LayerSummary(name, shape, sum(leaf.size for leaf in parameters.values()), macs))
        previous = shape
    return rows
