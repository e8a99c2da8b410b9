"""Checks before timing that our step learns and that its loss agrees with PyTorch's."""

import dataclasses
import math

import jax
import numpy as np
import optax
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict

from alexnet_jax.experiments.step_timing import RandomTraining
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.train_state import init_variables
from benchmarks.torch_alexnet import TorchAlexNet

STEPS = 30
"""Training steps on one batch, after which its loss must be lower."""

TOLERANCE = {"float32": 0.005, "bfloat16": 0.02}
"""Relative tolerance of the loss; on a GPU, float32 products are computed in TF32."""


def check(config: ConfigDict, dtype: str, device: str) -> str:
    """Runs both checks.

    Args:
      config: the config of the run.
      dtype: "float32" or "bfloat16", the type of computation.
      device: "cpu" or "cuda", as PyTorch names it.

    Returns:
      A line with the losses.

    Raises RuntimeError if a check fails.
    """
    losses = _losses_of_steps(config)
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        values = ", ".join(f"{loss:.4g}" for loss in losses)
        raise RuntimeError(f"{dtype}: our loss does not decrease on one batch: {values}")
    ours, theirs = _first_losses(config, dtype, device)
    if not abs(ours - theirs) <= TOLERANCE[dtype] * theirs:
        raise RuntimeError(f"{dtype}: our first loss is {ours:.6g}, PyTorch's {theirs:.6g}")
    return (
        f"our loss goes from {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps on one batch; with equal "
        f"parameters it is {ours:.6g}, PyTorch's is {theirs:.6g} (tolerance {TOLERANCE[dtype]:.1%})"
    )


def _losses_of_steps(config: ConfigDict) -> list[float]:
    training = RandomTraining(config)
    state = training.state
    losses = []
    for _ in range(STEPS):
        state, sums = training.experiment.train_step(state, training.batch)
        losses.append(float(sums["loss_sum"]) / float(sums["count"]))
    return losses


def _first_losses(config: ConfigDict, dtype: str, device: str) -> tuple[float, float]:
    """Our loss and PyTorch's with the same parameters, without dropout.

    Kernels follow He's rule, so that logits have the scale of the inputs. With the preset's initialisation all logits
    would be about 0, and the loss ln(classes) whatever the layers compute.
    """
    model = get_model(config.model, config.model.num_classes)
    layers = tuple(dataclasses.replace(layer, init="he") for layer in model.layers)
    variables = init_variables(model.clone(layers=layers), config.data.crop, config.seed)
    generator = np.random.default_rng(0)
    shape = (config.batch_size, config.data.crop, config.data.crop, 3)
    crops = generator.normal(scale=70, size=shape).astype(np.float32)
    labels = generator.integers(0, config.model.num_classes, config.batch_size)

    logits, _ = jax.jit(model.apply)(variables, crops)
    ours = optax.softmax_cross_entropy_with_integer_labels(logits.astype(np.float32), labels).mean()

    network = TorchAlexNet(model, config.data.crop)
    network.load_flax(variables["params"])
    network.eval().to(device)
    images = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        theirs = F.cross_entropy(network(images), torch.from_numpy(labels).to(device))
    return float(ours), theirs.item()
