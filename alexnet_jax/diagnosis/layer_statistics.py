"""Layer statistics of a network on one batch, for the diagnosis of a run that does not learn; deterministic."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alexnet_jax.models.alexnet import AlexNet


@dataclasses.dataclass(frozen=True)
class LayerStatistics:
    """Statistics of a layer with weights on one batch.

    Attributes:
      name: its name, like "conv1".
      kernel_std: root mean square of its kernel.
      he_std: sqrt(2 / fan-in), which keeps the variance of activations constant under ReLU (He et al. 2015).
      bias: mean of its biases.
      product_rms: root mean square of its outputs without the bias.
      output_std: standard deviation of its outputs across images; the root of the mean variance of all outputs.
      dead: fraction of features that are 0 at every position of every image after the activation function.
      gradient: root mean square of the kernel's gradient, as a fraction of `kernel_std`.
      moved: distance of the kernel from its initial value, as a fraction of its initial norm.
    """

    name: str
    kernel_std: float
    he_std: float
    bias: float
    product_rms: float
    output_std: float
    dead: float
    gradient: float
    moved: float

    @property
    def he_ratio(self) -> float:
        """The ratio of `kernel_std` to `he_std`."""
        return self.kernel_std / self.he_std


def measure_layers(
    model: AlexNet,
    variables: dict[str, Any],
    initial: dict[str, Any],
    images: Float[Array, "batch crop crop 3"],
    labels: Int[Array, " batch"] | np.ndarray,
) -> list[LayerStatistics]:
    """Measures all layers in training mode, but without dropout, whose noise would count as variation across images.

    Args:
      model: the network.
      variables: its params and batch_stats, on the host.
      initial: its params and batch_stats before the first step.
      images: the network's input.
      labels: the true classes of the images.
    """
    keys = jax.random.split(jax.random.key(0), len(images))
    layers = tuple(dataclasses.replace(layer, dropout=None) for layer in model.layers)
    calm = model.clone(layers=layers, dropout_rate=0.0)
    numbers = jax.device_get(_measure(calm, variables, images, labels, keys))
    rows = []
    for name, row in numbers.items():
        kernel, first = (tree["params"][name]["kernel"] for tree in (variables, initial))
        moved = float(np.linalg.norm(kernel - first) / np.linalg.norm(first))
        rows.append(LayerStatistics(name, moved=moved, **jax.tree.map(float, row)))
    return rows


@functools.partial(jax.jit, static_argnums=0)
def _measure(model: AlexNet, variables: dict[str, Any], images: Array, labels: Array, keys: Array) -> Any:
    """The fields of LayerStatistics except `moved`, by layer."""

    def loss(params: Any) -> tuple[Array, dict[str, Array]]:
        (logits, activations), _ = model.apply({**variables, "params": params}, images, keys, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), activations

    params = variables["params"]
    gradients, activations = jax.grad(loss, has_aux=True)(params)
    rows = {}
    for index, layer in enumerate(model.layers, start=1):
        name = f"{layer.kind}{index}"
        kernel, output = params[name]["kernel"], activations[name].astype(jnp.float32)
        bias = params[name].get("bias", jnp.zeros(1))
        active = activations.get(f"act{index}", jnp.ones((1, 1)))
        size = _rms(kernel)
        rows[name] = {
            "kernel_std": size,
            "he_std": math.sqrt(2 / _fan_in(kernel, name)),
            "bias": bias.mean(),
            "product_rms": _rms(output - jnp.broadcast_to(bias, output.shape)),
            "output_std": jnp.sqrt(jnp.var(output, axis=0).mean()),
            "dead": jnp.mean(jnp.all(active == 0, axis=tuple(range(active.ndim - 1)))),
            "gradient": _rms(gradients[name]["kernel"]) / jnp.maximum(size, jnp.finfo(jnp.float32).tiny),
        }
    return rows


def _fan_in(kernel: Array, name: str) -> int:
    """Inputs of one unit; the kernel of a local layer is [rows, columns, inputs, features]."""
    return math.prod(kernel.shape[-2:-1] if name.startswith(("fc", "local")) else kernel.shape[:-1])


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))
