"""AlexNet, and the networks it is compared with, as one Flax module whose fields describe the variant."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from alexnet_jax.errors import UserError, check_choice
from alexnet_jax.models.presets import PRESETS, Layer
from alexnet_jax.ops.activations import ACTIVATIONS
from alexnet_jax.ops.bias import add_bias
from alexnet_jax.ops.convolution import conv, conv_local
from alexnet_jax.ops.dropout import dropout
from alexnet_jax.ops.normalization import LRN, LRN_CONVENTIONS, cross_map_norm, within_map_norm
from alexnet_jax.ops.pooling import pool, pool_to_grid
from alexnet_jax.ops.windows import NHWC, output_size, window_padding
from alexnet_jax.parallel import collectives
from alexnet_jax.parallel.collectives import ONE_DEVICE, Axes


class AlexNet(nn.Module):
    """AlexNet and related networks: layers, in a row or in branches, that end in logits.

    Attributes:
      layers: the layers with weights; the last one computes the logits.
      num_classes: outputs of the last layer.
      towers: 2 as in the paper, or 1.
      activation: "prelu" or a name in `ops.activations.ACTIVATIONS`.
      lrn: local response normalisation across channels; None removes every response normalisation.
      map_norm: (window, alpha) of response normalisation within a channel.
      pool_size, pool_pad: side of the pooling window and padding of its input, in pixels; the stride is 2.
      conv_ceil, pool_ceil: the last window may overhang the edge; see `ops.windows.output_size`.
      dropout_rate: probability of dropping a unit.
      dropout_convention: "2012" or "inverted"; see `ops.dropout`.
      bn_epsilon: added to the variance in batch normalisation.
      sigmoid_output: with two classes the last layer has one output z, and the logits are 0 and z: their softmax is
        sigmoid(z), their cross-entropy the binary one.
      loss: what training minimises; "cross_entropy", or "squared_error" of the outputs from the one-hot labels.
      dtype: type of activations and matrix products; parameters, normalisation and logits are float32.
      matmul_precision: "default", "high" or "highest": how accelerators round float32 products.
    """

    layers: tuple[Layer, ...]
    num_classes: int = 1000
    towers: int = 1
    activation: str = "relu"
    lrn: LRN | None = None
    map_norm: tuple[int, float] = (5, 0.001 / 25)
    pool_size: int = 3
    pool_pad: int = 0
    conv_ceil: bool = False
    pool_ceil: bool = False
    dropout_rate: float = 0.5
    dropout_convention: str = "2012"
    bn_epsilon: float = 1e-5
    sigmoid_output: bool = False
    loss: str = "cross_entropy"
    dtype: Any = jnp.float32
    matmul_precision: str = "default"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        dropout_keys: Key[Array, " batch"] | None = None,
        axes: Axes = ONE_DEVICE,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        """Computes logits and all activations.

        Under tensor parallelism (`axes.tower`), parameters and activations are this device's shards; see `is_split`.

        Args:
          images: crops after preprocessing.
          dropout_keys: one random key per image in training; None in testing.
          axes: the mapped axes; in training, batch normalisation averages over them.

        Returns:
          The logits, and the activations by name, in order: "conv1", "act1", "lrn1", "pool1", ... "fc8".
        """
        x: Array = images.astype(self.dtype)
        activations: dict[str, Array] = {}
        divided = ONE_DEVICE  # becomes `axes` once x holds only this device's shard of the channels or units
        for index, layer in enumerate(self.layers, start=1):
            name = f"{layer.kind}{index}"
            x = activations[layer.source] if layer.source else x
            if layer.pooled:
                x = activations[f"pooled{index}"] = self._pool_input(x, *layer.pooled)
            if axes.tower and self.is_split(name):
                x, dropout_keys = self._gather_inputs(layer, x, dropout_keys, axes, is_divided=divided is axes)
                divided = axes
            with _matmul_precision(self.matmul_precision):
                x = activations[name] = self._weights(layer, name, x, divided.towers)
            for operation in layer.then:
                name = f"{operation}{index}"
                match operation:
                    case "act":
                        x = self._activate(x, name)
                    case "lrn" if self.lrn is not None:
                        x = self._normalize_maps(x, self.lrn, divided)
                    case "map_norm" if self.lrn is not None:
                        x = within_map_norm(x, *self.map_norm)
                    case "pool":
                        x = self._pool(layer, [*activations.values()], divided)
                    case "bn":
                        over: Any = (axes.rows if divided.tower else axes.batch) or None
                        x = self._normalize_batch(x, name, dropout_keys is None, over)
                    case "dropout":
                        keys = None if dropout_keys is None else _fold_in(dropout_keys, index)
                        rate = self.dropout_rate if layer.dropout is None else layer.dropout
                        x = dropout(x, keys, rate, self.dropout_convention, divided.tower)
                    case "add" | "concat" | "mean":
                        x = _join(operation, [*(activations[other] for other in layer.joined), x])
                    case _:
                        continue
                activations[name] = x
        x = x.astype(jnp.float32)
        if divided.tower:
            combine = collectives.return_images if axes.tower in axes.batch else collectives.gather_features
            x = combine(x, axes)
        return (x if self.outputs == self.num_classes else jnp.pad(x, ((0, 0), (1, 0)))), activations

    @property
    def outputs(self) -> int:
        """The outputs of the last layer: one for each class, or a single one; see `sigmoid_output`."""
        return 1 if self.sigmoid_output and self.num_classes == 2 else self.num_classes

    @property
    def auxiliary_logits(self) -> tuple[str, ...]:
        """The activations that are the logits of auxiliary classifiers."""
        named = enumerate(self.layers, start=1)
        return tuple(f"fc{index}" for index, layer in named if layer.auxiliary and layer.features == 0)

    def is_split(self, name: str) -> bool:
        """Whether tensor parallelism shards the layer or parameter group of that name, like "fc6" or "bn6".

        A network of two towers is sharded in every layer, one shard per tower; a network of one tower only in its fully
        connected layers. Arrays are sharded along their last axis, the features.
        """
        number = re.search(r"\d+$", name)
        if number is None or not 1 <= int(number[0]) <= len(self.layers):
            return False
        return self.towers > 1 or self.layers[int(number[0]) - 1].kind == "fc"

    def check_split(self, shards: int) -> None:
        """Raises UserError if the network cannot be divided into that many shards."""
        if self.towers > 1 and shards not in (1, self.towers):
            raise UserError(f"config.parallel.towers={shards}, but the network has {self.towers} towers: give 1 or 2")
        if shards > 1 and (self.outputs < self.num_classes or any(layer.source for layer in self.layers)):
            raise UserError(
                f"config.parallel.towers={shards}: a network with branches, or with one output for two classes, cannot "
                "be divided; give config.parallel.towers=1"
            )
        for index, layer in enumerate(self.layers, start=1):
            features, name = layer.features or self.num_classes, f"{layer.kind}{index}"
            if self.is_split(name) and features % shards:
                key = "hidden_width" if layer.features else "num_classes"
                raise UserError(
                    f"config.parallel.towers={shards} does not divide the {features} features of {name}; "
                    f"give config.model.{key}={-(-features // shards) * shards} instead"
                )

    def _gather_inputs(
        self, layer: Layer, x: Array, keys: Key[Array, " batch"] | None, axes: Axes, is_divided: bool
    ) -> tuple[Array, Key[Array, " images"] | None]:
        """Gathers the inputs of a sharded layer from the devices that share the network.

        If x is sharded by features, that is all features, unless each tower sees only its own. If the devices hold
        different images so far, it is the images of all of them.

        Returns:
          The inputs, and the dropout keys of their images.
        """
        if is_divided:
            return (x if layer.own_tower else collectives.gather_features(x, axes)), keys
        if axes.tower in axes.batch:
            return collectives.gather_images(x, axes), None if keys is None else collectives.gather_keys(keys, axes)
        return x, keys

    def _activate(self, x: Array, name: str) -> Array:
        if self.activation == "prelu":
            return nn.PReLU(negative_slope_init=0.25, name=name)(x)  # one slope per layer, from 0.25: He et al. 2015
        return ACTIVATIONS[self.activation](x)

    def _pool_input(self, x: NHWC, kind: str, size: int, stride: int, pad: int) -> NHWC:
        return pool_to_grid(x, size) if kind == "grid" else pool(x, kind, size, stride, self.pool_ceil, pad)

    def _normalize_batch(self, x: Array, name: str, uses_averages: bool, over: Any) -> Array:
        options: dict[str, Any] = {"momentum": 0.9, "epsilon": self.bn_epsilon, "dtype": jnp.float32, "name": name}
        return nn.BatchNorm(uses_averages, axis_name=over, **options)(x.astype(jnp.float32)).astype(self.dtype)

    def _normalize_maps(self, x: NHWC, lrn: LRN, divided: Axes) -> NHWC:
        """Applies `cross_map_norm`; a window that crosses towers needs boundary channels of the other device."""
        if divided.towers == 1 or lrn.per_tower:
            return cross_map_norm(x, lrn, self.towers // divided.towers)
        reach = lrn.size // 2
        return cross_map_norm(collectives.exchange_halo(x, reach, divided), lrn)[..., reach:-reach]

    def _pool(self, layer: Layer, computed: Sequence[Array], divided: Axes) -> NHWC:
        """Pools the last of the activations; response normalisation right before, of whole windows, is its origin."""
        *_, last = (layer.kind, *layer.then[: layer.then.index("pool")])
        origin = None
        if last == "lrn" and self.lrn is not None and (divided.towers == 1 or self.lrn.per_tower):
            normalize = functools.partial(cross_map_norm, lrn=self.lrn, towers=self.towers // divided.towers)
            origin = computed[-2], normalize
        return pool(computed[-1], layer.pool, self.pool_size, 2, self.pool_ceil, self.pool_pad, origin)

    def _weights(self, layer: Layer, name: str, x: Array, shards: int) -> Array:
        """Applies one of `shards` shards of a layer's weights; a fully connected layer flattens its input first."""
        features, groups = (layer.features or self.outputs) // shards, self.towers // shards if layer.own_tower else 1
        places: Sequence[int] = ()
        if layer.kind == "fc":
            x = x.reshape(x.shape[0], -1)
            shape: tuple[int, ...] = x.shape[-1], features
            product: Callable[..., Array] = lax.dot
        else:
            size, step, channels = layer.kernel, layer.stride, x.shape[-1] // groups
            padding: Any = tuple(
                window_padding(extent, size, step, layer.pad, self.conv_ceil) for extent in x.shape[1:3]
            )
            shape = size, size, channels, features
            product = functools.partial(conv, stride=step, padding=padding, groups=groups)
        if layer.kind == "local":
            places = [output_size(extent, size, step, layer.pad, self.conv_ceil) for extent in x.shape[1:3]]
            shape = *places, channels * size**2, features
            product = functools.partial(conv_local, size=size, stride=step, padding=padding)
        return _Weights(shape, (*places, features), product, layer, self.dtype, name=name)(x)


def _matmul_precision(precision: str) -> AbstractContextManager:
    """Context that sets the precision of products; "default" leaves that of JAX, which a caller may have set."""
    return nullcontext() if precision == "default" else jax.default_matmul_precision(precision)


def _join(operation: str, maps: Sequence[Array]) -> Array:
    """Adds or concatenates maps, or averages those of the last over all positions."""
    match operation:
        case "add":
            return functools.reduce(jnp.add, maps)
        case "concat":
            return jnp.concatenate(maps, axis=-1)
    return maps[-1].mean(axis=(1, 2))


class _Weights(nn.Module):
    """The kernel and the bias of a layer, of these shapes; `product` is the linear function of its input and kernel."""

    shape: Sequence[int]
    bias_shape: Sequence[int]
    product: Callable[..., Array]
    layer: Layer
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inputs = math.prod(self.shape[len(self.bias_shape) - 1 : -1])
        kernel_init, bias_init = _initializers(self.layer, inputs)
        kernel = self.param("kernel", kernel_init, self.shape, jnp.float32)
        y = self.product(jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype))
        if self.layer.bias is None:
            return y
        return add_bias(y, self.param("bias", bias_init, self.bias_shape, jnp.float32))


_fold_in = jax.vmap(jax.random.fold_in, (0, None))


def _initializers(layer: Layer, fan_in: int) -> tuple[Any, Any]:
    """The initialisers of a layer's kernel and bias."""
    if layer.init == "torch":
        # torch.nn.modules: kaiming_uniform(a=sqrt(5)) is U(-1/sqrt(fan_in), 1/sqrt(fan_in)), for the bias too.
        bound = fan_in**-0.5
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return uniform, lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
    if layer.init in _HE:
        kernel_init = nn.initializers.variance_scaling(2.0, _HE[layer.init], "normal")
    else:
        kernel_init = nn.initializers.normal(layer.init)
    return kernel_init, nn.initializers.constant(layer.bias or 0.0)


_HE: dict[str | float, Any] = {"he": "fan_in", "he_out": "fan_out"}
"""Initialisations of He et al. 2015, which keep the variance of activations or that of gradients."""


_CHOICES: dict[str, tuple[str, dict[Any, Any]]] = {
    "towers": ("towers", {1: 1, 2: 2}),
    "activation": ("activation", {name: name for name in (*ACTIVATIONS, "prelu")}),
    "lrn": ("lrn", {**LRN_CONVENTIONS, "none": None}),
    "pool_window": ("pool_size", {"overlapping": 3, "plain": 2}),
    "dropout_convention": ("dropout_convention", {name: name for name in ("2012", "inverted")}),
}
"""Keys of `config.model`, each with the field of `AlexNet` that it overrides and the meaning of its values."""


def get_model(config: ConfigDict, num_classes: int) -> AlexNet:
    """Builds the network of a preset, with those keys of `config.model` that are not None as overrides.

    Args:
      config: `config.model`.
      num_classes: the classes of the data, the number of outputs unless `config.num_classes` is given.

    Raises UserError if a name is unknown or there are fewer outputs than classes.
    """
    preset = PRESETS[_known("preset", config.preset, PRESETS)]
    outputs = num_classes if config.num_classes is None else config.num_classes
    if outputs < num_classes:
        raise UserError(f"config.model.num_classes={outputs}, but the data have {num_classes} classes")
    fields = {**preset, "num_classes": outputs, "dtype": jnp.dtype(config.compute_dtype)}
    fields["matmul_precision"] = config.matmul_precision
    for key, (field, values) in _CHOICES.items():
        if (value := getattr(config, key)) is not None:
            fields[field] = values[_known(key, value, values)]
    layers = preset["layers"]
    if config.dropout_rate is not None:
        fields["dropout_rate"] = config.dropout_rate
        layers = [replace(layer, dropout=None) for layer in layers]
    if (pool_kind := config.pool_kind) is not None:
        layers = [replace(layer, pool=_known("pool_kind", pool_kind, ("max", "avg"))) for layer in layers]
    if (width := config.hidden_width) is not None:
        layers = [replace(layer, features=width) if layer.is_hidden else layer for layer in layers]
    if config.hidden_widths:
        layers = _with_hidden_layers(layers, config.hidden_widths)
    model = AlexNet(**{**fields, "layers": _without(layers, config.without_layers)})
    return model if config.cross_tower else _separate_towers(model)


def _with_hidden_layers(stack: Sequence[Layer], widths: Sequence[int]) -> tuple[Layer, ...]:
    """Replaces the hidden fully connected layers by layers of these widths, each in all else like the first of them.

    Raises UserError if there are none, or if the network has branches, whose layers know each other's numbers.
    """
    hidden = [index for index, layer in enumerate(stack) if layer.is_hidden]
    if not hidden or any(layer.source for layer in stack):
        raise UserError(f"config.model.hidden_widths={tuple(widths)} needs a preset of layers in a row, some hidden")
    new = [replace(stack[hidden[0]], features=width) for width in widths]
    return (*stack[: hidden[0]], *new, *stack[hidden[-1] + 1 :])


def _without(stack: Sequence[Layer], names: Sequence[str]) -> tuple[Layer, ...]:
    """Removes layers with the operations that follow them; the names of later layers are renumbered.

    Pooling after a removed layer moves to the layer before it, so that later maps keep their size.

    Raises UserError for a name that is not a layer between the first and the last.
    """
    known = [f"{layer.kind}{index}" for index, layer in enumerate(stack, start=1)]
    if names and any(layer.source for layer in stack):
        raise UserError(f"config.model.without_layers={tuple(names)} needs a preset whose layers stand in a row")
    for name in names:
        _known("without_layers", name, known[1:-1])
    kept = [stack[0]]
    for name, layer in zip(known[1:], stack[1:], strict=True):
        if name not in names:
            kept.append(layer)
        elif "pool" in layer.then:
            if "pool" in kept[-1].then:
                raise UserError(
                    f"config.model.without_layers={name!r}: its pooling would follow another; remove a later layer"
                )
            kept[-1] = replace(kept[-1], then=(*kept[-1].then, "pool"), pool=layer.pool)
    return tuple(kept)


def _separate_towers(model: AlexNet) -> AlexNet:
    """A copy of the model whose towers first meet in a fully connected layer.

    Normalisation and the convolutions after the first see their own tower alone.

    Raises UserError if there is only one tower, or a layer that cannot be divided into towers.
    """
    first, *others = model.layers
    if model.towers == 1 or any(layer.kind == "local" for layer in others):
        raise UserError(
            "config.model.cross_tower=False needs two towers of convolutions: config.model.towers=2, and a preset "
            "without local layers"
        )
    stack = (first, *(replace(layer, own_tower=layer.kind == "conv") for layer in others))
    lrn = None if model.lrn is None else replace(model.lrn, per_tower=True)
    return model.clone(layers=stack, lrn=lrn)


def _known(key: str, value: Any, known: Any) -> Any:
    return check_choice(f"config.model.{key}", value, known)
