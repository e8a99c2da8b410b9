"""AlexNet's layers as pure functions on NHWC arrays, each convention in which codebases differ made explicit.

Sources, here and in `models.py`: "paper" is Krizhevsky, Sutskever and Hinton, NIPS 2012; "CHM" is the original code and
its configurations (github.com/computerhistory/AlexNet-Source-Code); "CC2" is github.com/akrizhevsky/cuda-convnet2;
"Caffe" is github.com/BVLC/caffe; "torchvision" is github.com/pytorch/vision.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from alexnet_jax.errors import UserError

Images = Float[Array, "batch height width channel"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "scaled_tanh": lambda x: 1.7159 * jnp.tanh(2 / 3 * x),  # LeCun et al. 1998, "Efficient BackProp", section 4.4
    "sigmoid": nn.sigmoid,
    "leaky_relu": lambda x: nn.leaky_relu(x, negative_slope=0.01),  # Maas et al. 2013
}
"""Activations without parameters. PReLU has one a layer and lives in `models.py`."""


@dataclasses.dataclass(frozen=True)
class LRN:
    """Local response normalisation across channels: b_i = a_i / (k + alpha * sum_j a_j^2)^(3/4), paper section 3.3.

    The sum runs over the `size` channels around i, clipped at the first and the last channel.

    Attributes:
      k: the constant in the denominator.
      alpha: the factor on each squared activation. Codes that divide a nominal alpha by the size have it divided here.
      size: the number of neighbouring channels, odd.
      per_tower: the window stops at the border between the two towers.
    """

    k: float
    alpha: float
    size: int = 5
    per_tower: bool = False


LRN_CONVENTIONS = {
    # CHM layers/layer-params-145.cfg: scale=0.0001 minDiv=2 pow=0.75; layer.py:1183 divides scale by size=5; one
    # [rnorm1a] and one [rnorm1b], so that no window crosses the towers.
    "source": LRN(k=2.0, alpha=1e-4 / 5, per_tower=True),
    # Paper section 3.3: k=2, n=5, alpha=1e-4, beta=0.75; N is the number of kernels in the layer.
    "paper": LRN(k=2.0, alpha=1e-4),
    # Caffe models/bvlc_alexnet/train_val.prototxt: alpha 1e-4, local_size 5; lrn_layer.cpp divides alpha by the size;
    # k keeps its default 1 (caffe.proto).
    "caffe": LRN(k=1.0, alpha=1e-4 / 5),
}


def cross_map_norm(x: Images, lrn: LRN, towers: int = 1) -> Images:
    """Divides each activation by the energy of its neighbours in other channels; see `LRN`."""
    if lrn.per_tower and towers > 1:
        parts = jnp.split(x, towers, axis=-1)
        return jnp.concatenate([cross_map_norm(part, lrn) for part in parts], axis=-1)
    half = lrn.size // 2
    padding = ((0, 0), (0, 0), (0, 0), (half, half))
    energy = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, lrn.size), (1, 1, 1, 1), padding)
    return x * _power_minus_three_quarters(lrn.k + lrn.alpha * energy)


def within_map_norm(x: Images, size: int, alpha: float) -> Images:
    """Normalises over a size x size window inside each channel: a / (1 + alpha * sum a^2)^(3/4), zeros outside.

    The "rnorm" layer of the 2012 source (CHM layer.py:1183: the nominal scale divided by size squared).
    """
    padding = ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0))
    energy = lax.reduce_window(x * x, 0.0, lax.add, (1, size, size, 1), (1, 1, 1, 1), padding)
    return x * _power_minus_three_quarters(1.0 + alpha * energy)


def _power_minus_three_quarters(x: Array) -> Array:
    """x^(-3/4) without a logarithm: far cheaper than `x ** -0.75` and as exact."""
    root = lax.rsqrt(x)
    return root * jnp.sqrt(root)


def conv(lhs: Array, rhs: Array, *args, feature_group_count: int = 1, **kwargs) -> Array:  # type: ignore[no-untyped-def]
    """`lax.conv_general_dilated` on NHWC, with one convolution a group.

    Two towers really are two: XLA's grouped convolution on the CPU is 10 to 20 times slower than its two halves.
    """
    if feature_group_count == 1:
        return lax.conv_general_dilated(lhs, rhs, *args, **kwargs)
    inputs = jnp.split(lhs, feature_group_count, axis=-1)
    kernels = jnp.split(rhs, feature_group_count, axis=-1)
    outputs = [lax.conv_general_dilated(x, kernel, *args, **kwargs) for x, kernel in zip(inputs, kernels, strict=True)]
    return jnp.concatenate(outputs, axis=-1)


def output_size(size: int, kernel: int, stride: int, pad: int, ceil: bool) -> int:
    """How many windows a row of `size` pixels holds: (size - kernel + 2 pad) / stride + 1, rounded.

    `ceil` lets the last window hang over the edge, as cuda-convnet does in convolutions and in pooling (CHM
    layer.py:1003) and Caffe in pooling: so 224 pixels give the 55 outputs of the paper, where rounding down needs 227.
    """
    span = size - kernel + 2 * pad
    return (math.ceil(span / stride) if ceil else math.floor(span / stride)) + 1


def window_padding(size: int, kernel: int, stride: int, pad: int, ceil: bool) -> tuple[int, int]:
    """Pixels to add before and after a row so that a VALID window visits `output_size` places.

    Raises UserError if not a single window fits.
    """
    outputs = output_size(size, kernel, stride, pad, ceil)
    if outputs < 1 or size + 2 * pad < kernel:
        raise UserError(
            f"a {kernel}x{kernel} window does not fit into a {size}x{size} map: "
            "make config.data.crop larger or choose a preset for small images"
        )
    overhang = (outputs - 1) * stride + kernel - size - 2 * pad
    return pad, pad + max(overhang, 0)


def pool(x: Images, kind: str, size: int, stride: int, ceil: bool) -> Float[Array, "batch rows columns channel"]:
    """Max or average pooling. An average counts the pixels inside the map alone, as cuda-convnet and Caffe do."""
    padding = [window_padding(extent, size, stride, 0, ceil) for extent in x.shape[1:3]]
    if kind == "max":
        return nn.max_pool(x, window_shape=(size, size), strides=(stride, stride), padding=padding)
    return nn.avg_pool(x, window_shape=(size, size), strides=(stride, stride), padding=padding, count_include_pad=False)


def dropout(
    x: Float[Array, "batch ..."],
    keys: Key[Array, " batch"] | None,
    rate: float,
    convention: str,
) -> Float[Array, "batch ..."]:
    """Drops each unit with probability `rate`; without keys, what the network does in testing.

    The mask of an example depends on its own key alone, so it is the same in any batch and on any device.

    Args:
      x: activations.
      keys: one key an example in training, None in testing.
      rate: probability of dropping a unit, in [0, 1).
      convention: "2012" masks in training and multiplies by 1 - rate in testing (paper section 4.2; CHM src/layer.cu
        HiddenSexLayer); "inverted" divides by 1 - rate in training and does nothing in testing (Caffe, torch, Flax).
    """
    keep = 1.0 - rate
    if keys is None:
        return x * keep if convention == "2012" else x
    mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(keys)
    return jnp.where(mask, x if convention == "2012" else x / keep, 0.0)
