"""AlexNet's layers as pure functions on NHWC arrays, each convention in which codebases differ made explicit.

Sources, here and in `presets.py`: "paper" is Krizhevsky, Sutskever and Hinton, NIPS 2012; "CHM" is the original code
and its configurations (github.com/computerhistory/AlexNet-Source-Code); "CC2" is github.com/akrizhevsky/cuda-convnet2;
"Caffe" is github.com/BVLC/caffe; "torchvision" is github.com/pytorch/vision.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from alexnet_jax.errors import UserError
from alexnet_jax.ops.convolution import Images, by_platform, pieces
from alexnet_jax.parallel.collectives import own_part

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
    return _normalize(x, (1, 1, lrn.size), lrn.k, lrn.alpha)


def within_map_norm(x: Images, size: int, alpha: float) -> Images:
    """Normalises over a size x size window inside each channel: a / (1 + alpha * sum a^2)^(3/4), zeros outside.

    The "rnorm" layer of the 2012 source (CHM layer.py:1183: the nominal scale divided by size squared).
    """
    return _normalize(x, (size, size, 1), 1.0, alpha)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _normalize(x: Images, window: tuple[int, int, int], k: float, alpha: float) -> Images:
    """x / d^(3/4) with d = k + alpha * the sum of x^2 over a window of odd sides around each activation, in float32."""

    def forward(x: Images) -> Images:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        _, factor = _energy_and_factor(wide, window, k, alpha)
        return (wide * factor).astype(x.dtype)

    return _piecewise(forward, x)


def _normalize_backward(window: tuple[int, int, int], k: float, alpha: float, x: Images, dy: Images) -> tuple[Images]:
    """dx = dy / d^(3/4) - 3/2 alpha x * (sum of dy x / d^(7/4) over the window), from x alone."""

    def backward(x: Images, dy: Images) -> Images:
        wide, dy = (array.astype(jnp.promote_types(x.dtype, jnp.float32)) for array in (x, dy))
        energy, factor = _energy_and_factor(wide, window, k, alpha)
        dx = dy * factor - 1.5 * alpha * wide * _window_sum(dy * wide * factor / energy, window)
        return dx.astype(x.dtype)

    return (_piecewise(backward, x, dy),)


_normalize.defvjp(lambda x, *options: (_normalize(x, *options), x), _normalize_backward)


def _energy_and_factor(x: Images, window: tuple[int, int, int], k: float, alpha: float) -> tuple[Images, Images]:
    """d and d^(-3/4), the power without a logarithm: far cheaper and as exact."""
    energy = k + alpha * _window_sum(x * x, window)
    root = lax.rsqrt(energy)
    return energy, root * jnp.sqrt(root)


def _window_sum(x: Images, window: tuple[int, int, int]) -> Images:
    """The sum over a window around each place, zeros outside, one direction after the other."""
    for axis, size in enumerate(window, start=1):
        config = [(size // 2, size // 2, 0) if number == axis else (0, 0, 0) for number in range(x.ndim)]
        padded, extent = lax.pad(x, jnp.zeros((), x.dtype), config), x.shape[axis]
        shifted = [lax.slice_in_dim(padded, start, start + extent, axis=axis) for start in range(size)]
        x = functools.reduce(jnp.add, shifted)
    return x


def _piecewise(function: Callable[..., Images], *arrays: Images) -> Images:
    """A function of each image by itself; the CPU takes a few at a time and keeps what it computes in its cache."""

    def on_cpu(*arrays: Images) -> Images:
        x = arrays[0]
        intermediates = 8 * x[0].size * x.itemsize
        outputs = lax.map(lambda piece: function(*piece), pieces(intermediates, *arrays))
        return outputs.reshape(-1, *x.shape[1:])[: len(x)]

    return by_platform(*arrays, cpu=on_cpu, default=function)


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
    """Max or average pooling. An average counts the pixels inside the map alone, as cuda-convnet and Caffe do.

    Of equal maxima in a window the first one, row by row, gets the gradient, as in XLA and in torch.
    """
    padding = [window_padding(extent, size, stride, 0, ceil) for extent in x.shape[1:3]]
    if kind == "max":
        return _max_pool(x, size, stride, (padding[0][1], padding[1][1]), x.shape[1:3])
    return nn.avg_pool(x, window_shape=(size, size), strides=(stride, stride), padding=padding, count_include_pad=False)


Sides = tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x: Images, size: int, stride: int, overhang: Sides, extents: Sides) -> Images:
    """Maxima of windows that hang over the end by `overhang`; XLA's own are slow, and their gradient ten times."""
    return functools.reduce(jnp.maximum, _places(x, size, stride, overhang))


def _max_pool_forward(x: Images, size: int, stride: int, overhang: Sides, extents: Sides) -> tuple[Images, Array]:
    """The maxima, and which place in its window each has."""
    maximum, *others = _places(x, size, stride, overhang)
    place = jnp.zeros(maximum.shape, jnp.int8)
    for number, values in enumerate(others, start=1):
        place = jnp.where(values > maximum, jnp.int8(number), place)
        maximum = jnp.maximum(maximum, values)
    return maximum, place


def _max_pool_backward(
    size: int, stride: int, overhang: Sides, extents: Sides, place: Array, dy: Images
) -> tuple[Images]:
    """Each pixel adds up dy of the windows in which it was the maximum.

    Pixels at the same offset from a multiple of the stride lie at the same places of their windows: one plane for each.
    """
    cells = [-(-extent // stride) for extent in extents]
    reach = (size - 1) // stride  # windows before the one at its own cell that a pixel may lie in
    config = [(0, 0, 0), *((reach, cell - n, 0) for cell, n in zip(cells, dy.shape[1:3], strict=True)), (0, 0, 0)]
    dy, place = lax.pad(dy, jnp.zeros((), dy.dtype), config), lax.pad(place, jnp.int8(-1), config)

    def plane(row: int, column: int) -> Array:
        total = jnp.zeros((), dy.dtype)
        for up in range((size - 1 - row) // stride + 1):
            for left in range((size - 1 - column) // stride + 1):
                windows = np.s_[:, reach - up : reach - up + cells[0], reach - left : reach - left + cells[1]]
                number = (row + up * stride) * size + column + left * stride
                total = total + jnp.where(place[windows] == number, dy[windows], 0)
        return total

    planes = lax.optimization_barrier([[plane(row, column) for column in range(stride)] for row in range(stride)])
    dx = jnp.stack([jnp.stack(columns, axis=3) for columns in planes], axis=2)
    dx = dx.reshape(len(dx), cells[0] * stride, cells[1] * stride, -1)
    return (dx[:, : extents[0], : extents[1]],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _places(x: Images, size: int, stride: int, overhang: Sides) -> list[Array]:
    """For each place in a window, row by row, what all windows have there."""
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *((0, after, 0) for after in overhang), (0, 0, 0)])
    rows, columns = ((extent - size) // stride * stride + 1 for extent in x.shape[1:3])
    return [
        x[:, row : row + rows : stride, column : column + columns : stride]
        for row in range(size)
        for column in range(size)
    ]


def dropout(
    x: Float[Array, "batch ..."],
    keys: Key[Array, " batch"] | None,
    rate: float | Float[Array, ""],
    convention: str,
    tower: str | None = None,
) -> Float[Array, "batch ..."]:
    """Drops each unit with probability `rate`; without keys, what the network does in testing.

    The mask of an example depends on its own key alone, so it is the same in any batch and on any device.

    Args:
      x: activations.
      keys: one key an example in training, None in testing.
      rate: probability of dropping a unit, in [0, 1).
      convention: "2012" masks in training and multiplies by 1 - rate in testing (paper section 4.2; CHM src/layer.cu
        HiddenSexLayer); "inverted" divides by 1 - rate in training and does nothing in testing (Caffe, torch, Flax).
      tower: the mapped axis over which the units are divided, if they are; the mask is that of all of them.
    """
    keep = 1.0 - rate
    if keys is None:
        return x * keep if convention == "2012" else x
    shape = (*x.shape[1:-1], x.shape[-1] * (lax.axis_size(tower) if tower else 1))
    mask = jax.vmap(lambda key: own_part(jax.random.bernoulli(key, keep, shape), tower))(keys)
    return jnp.where(mask, x if convention == "2012" else x / keep, 0.0)
