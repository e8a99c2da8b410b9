"""`AlexNet` in PyTorch, the network against which `train_step.py` and `gpu.py` time this project."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import nn

from alexnet_jax.system.machine import available_cores

if TYPE_CHECKING:
    from alexnet_jax.models.alexnet import AlexNet
    from alexnet_jax.ops.normalization import LRN


class TorchAlexNet(nn.Module):
    """AlexNet as a PyTorch module; images are NCHW, best in channels_last.

    It can be pickled, and unpickling imports no JAX, so that a process's memory is PyTorch's alone.

    Attributes:
      operations: all operations in order; a layer with weights has its Flax name, conv1 to fc8.
      kernels: rows, columns and channels of a kernel of each layer, by that name.
    """

    def __init__(self, model: "AlexNet", crop: int) -> None:
        """Builds the network for crop x crop images, with PyTorch's default initialisation.

        Raises ValueError for a kind of layer, an operation or an activation that is not implemented here.
        """
        from alexnet_jax.ops.windows import output_size, window_padding  # here, so that unpickling imports no JAX

        super().__init__()
        self.operations = nn.Sequential()
        self.kernels: dict[str, tuple[int, int, int]] = {}
        extent, channels = crop, 3
        for index, layer in enumerate(model.layers, start=1):
            name, features = f"{layer.kind}{index}", layer.features or model.num_classes
            normalisation: Callable[[int], nn.Module] = nn.BatchNorm2d
            if layer.kind == "conv":
                groups = model.towers if layer.own_tower else 1
                window = extent, layer.kernel, layer.stride, layer.pad, model.conv_ceil
                before, after = window_padding(*window)
                if after > before:  # Conv2d pads all sides equally
                    self.operations.append(nn.ZeroPad2d((0, after - before, 0, after - before)))
                weighted: nn.Module = nn.Conv2d(
                    channels, features, layer.kernel, layer.stride, layer.pad, groups=groups
                )
                self.kernels[name] = layer.kernel, layer.kernel, channels // groups
                extent = output_size(*window)
            elif layer.kind == "local":
                extent = output_size(extent, layer.kernel, layer.stride, layer.pad, model.conv_ceil)
                weighted = Local(channels, features, layer.kernel, layer.stride, layer.pad, extent)
                self.kernels[name] = layer.kernel, layer.kernel, channels
            else:
                self.operations.append(nn.Flatten())
                weighted = nn.Linear(channels * extent**2, features)
                self.kernels[name] = extent, extent, channels
                extent, normalisation = 1, nn.BatchNorm1d
            self.operations.add_module(name, weighted)
            for operation in layer.then:
                if operation == "bn":
                    self.operations.add_module(f"bn{index}", normalisation(features))
                else:
                    self.operations.extend(_operation(operation, model, layer.pool))
            if "pool" in layer.then:
                extent = output_size(extent, model.pool_size, 2, 0, model.pool_ceil)
            channels = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Computes logits, [batch, classes], of preprocessed images, [batch, 3, crop, crop]."""
        return self.operations(images)

    def normalise_by_slices(self) -> None:
        """Replaces `F.local_response_norm` by sums of slices, which `torch.compile` fuses into one loop."""
        for module in self.modules():
            if isinstance(module, CrossMapNorm):
                module.by_slices = True

    def load_flax(self, params: Mapping[str, Any]) -> None:
        """Copies the parameters of the Flax network, whose first fully connected layer flattens NHWC, not NCHW."""
        with torch.no_grad():
            for name, arrays in params.items():
                layer: Any = self.operations.get_submodule(name)
                kernel, bias = (
                    np.asarray(arrays["kernel" if name in self.kernels else "scale"]),
                    np.asarray(arrays["bias"]),
                )
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    kernel = kernel.reshape(*self.kernels[name], -1).transpose(3, 2, 0, 1)
                layer.weight.copy_(torch.tensor(kernel.reshape(layer.weight.shape)))
                layer.bias.copy_(torch.tensor(bias.reshape(layer.bias.shape)))


def _operation(name: str, model: "AlexNet", pool: str) -> list[nn.Module]:
    """The modules for one name in `Layer.then`. Raises ValueError for one that is not implemented."""
    match name:
        case "act" if model.activation == "relu":
            return [nn.ReLU(inplace=True)]
        case "act" if model.activation == "tanh":
            return [nn.Tanh()]
        case "lrn":
            return [CrossMapNorm(model.lrn, model.towers)] if model.lrn else []
        case "map_norm":
            return [WithinMapNorm(*model.map_norm)] if model.lrn else []
        case "pool" if pool == "max":
            return [nn.MaxPool2d(model.pool_size, 2, ceil_mode=model.pool_ceil)]
        case "pool":
            return [nn.AvgPool2d(model.pool_size, 2, ceil_mode=model.pool_ceil, count_include_pad=False)]
        case "dropout" if model.dropout_convention == "inverted":
            return [nn.Dropout(float(model.dropout_rate))]
        case "dropout":
            return [nn.Dropout(float(model.dropout_rate)), Scale(1 - float(model.dropout_rate))]
        case _:
            raise ValueError(f"{name} (activation {model.activation}) is not implemented in PyTorch")


class Local(nn.Module):
    """A layer with kernels of its own at each place: `F.unfold`, then one matrix product per place."""

    def __init__(self, channels: int, features: int, size: int, stride: int, pad: int, extent: int) -> None:
        super().__init__()
        self.window, self.extent = {"kernel_size": size, "stride": stride, "padding": pad}, extent
        self.weight = nn.Parameter(torch.empty(extent**2, channels * size**2, features))
        self.bias = nn.Parameter(torch.empty(extent**2, 1, features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes [batch, features, extent, extent]."""
        maps = torch.baddbmm(self.bias, F.unfold(x, **self.window).permute(2, 0, 1), self.weight)
        return maps.permute(1, 2, 0).unflatten(2, (self.extent, self.extent))


class CrossMapNorm(nn.Module):
    """`alexnet_jax.ops.normalization.cross_map_norm`, by `F.local_response_norm` or by sums of slices."""

    by_slices = False

    def __init__(self, lrn: "LRN", towers: int) -> None:
        super().__init__()
        self.size, self.alpha, self.k = lrn.size, lrn.alpha, lrn.k
        self.groups = towers if lrn.per_tower else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises maps, keeping their type."""
        normalised = [self._normalise(group).to(x.dtype) for group in x.chunk(self.groups, dim=1)]
        return normalised[0] if len(normalised) == 1 else torch.cat(normalised, dim=1)

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        if not self.by_slices:  # torch divides alpha by the size
            return F.local_response_norm(x, self.size, self.alpha * self.size, 0.75, self.k)
        x, half, channels = x.float(), self.size // 2, x.shape[1]
        squares = F.pad(x * x, (0, 0, 0, 0, half, half))
        energy = functools.reduce(torch.add, [squares[:, first : first + channels] for first in range(self.size)])
        return x * _power_minus_three_quarters(self.k + self.alpha * energy)


class WithinMapNorm(nn.Module):
    """`alexnet_jax.ops.normalization.within_map_norm`."""

    def __init__(self, size: int, alpha: float) -> None:
        super().__init__()
        self.size, self.alpha = size, alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises maps, keeping their type."""
        wide = x.float()
        mean = F.avg_pool2d(wide * wide, self.size, stride=1, padding=self.size // 2)
        return (wide * _power_minus_three_quarters(1 + self.alpha * self.size**2 * mean)).to(x.dtype)


def _power_minus_three_quarters(x: torch.Tensor) -> torch.Tensor:
    root = x.rsqrt()
    return root * root.sqrt()


class Scale(nn.Module):
    """Multiplies by a constant; after `nn.Dropout`, which rescales in training, this gives the 2012 convention."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scales all elements."""
        return x * self.factor


def save_network(config: ConfigDict, path: Path) -> None:
    """Writes the network of `config.model` as a PyTorch module, with the initial parameters of our training."""
    from alexnet_jax.models.alexnet import get_model
    from alexnet_jax.train_state import init_variables

    model = get_model(config.model, config.model.num_classes)
    network = TorchAlexNet(model, config.data.crop)
    network.load_flax(init_variables(model, config.data.crop, config.seed)["params"])
    torch.save(network, path)


def load_steps(
    config: ConfigDict,
    path: Path,
    training: bool,
    compiled: Mapping[str, Any] | None,
    lrn_by_slices: bool,
    device: str = "cpu",
    autocast: bool = False,
) -> Callable[[int], None]:
    """Creates a function that runs a number of training steps, or forward passes, on one batch of crops in memory.

    It uses what PyTorch recommends: channels_last, the fused optimizer, on a GPU TF32 and cuDNN's fastest algorithms,
    and in testing frozen weights, which the compiler lays out once.

    Args:
      config: batch size, crop and optimizer settings.
      path: the file that `save_network` wrote.
      training: run training steps; otherwise forward passes in testing.
      compiled: arguments of `torch.compile`; None to run eagerly.
      lrn_by_slices: see `TorchAlexNet.normalise_by_slices`.
      device: "cpu" or "cuda".
      autocast: compute products in bfloat16.
    """
    torch.set_num_threads(available_cores())
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    network = torch.load(path, weights_only=False).to(device, memory_format=torch.channels_last)
    if lrn_by_slices:
        network.normalise_by_slices()
    crops = 70 * torch.randn(config.batch_size, 3, config.data.crop, config.data.crop, device=device)
    crops = crops.to(memory_format=torch.channels_last)
    labels = torch.randint(config.model.num_classes, (config.batch_size,), device=device)
    options = {name: config.optimizer[name] for name in ("momentum", "weight_decay")}
    optimizer = torch.optim.SGD(network.parameters(), config.optimizer.learning_rate, **options, fused=True)

    def loss() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return F.cross_entropy(network(crops), labels)

    compute_loss = loss if compiled is None else torch.compile(loss, **compiled)

    def train(steps: int) -> None:
        for _ in range(steps):
            torch.compiler.cudagraph_mark_step_begin()  # the graph's outputs of the step before may be overwritten
            optimizer.zero_grad(set_to_none=True)
            compute_loss().backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    if training:
        return train
    network.eval()
    compute_logits = network if compiled is None else torch.compile(network, options={"freezing": True}, **compiled)

    def forward(steps: int) -> None:
        with torch.inference_mode():
            for _ in range(steps):
                compute_logits(crops)

    return forward
