"""Before anything is timed: our step learns, and computes the loss that PyTorch computes."""

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
"""Steps on one batch, after which its loss must be lower."""

TOLERANCE = {"float32": 0.005, "bfloat16": 0.02}
"""Of the loss, as a share of it; float32 products are TF32 on a GPU."""


def check(config: ConfigDict, dtype: str, device: str) -> str:
    """What was found, in a line. Raises RuntimeError if there is nothing worth timing."""
    losses = _losses_of_steps(config)
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        raise RuntimeError(f"{dtype}: our loss goes {', '.join(f'{loss:.4g}' for loss in losses)} on one batch")
    ours, theirs = _first_losses(config, dtype, device)
    if not abs(ours - theirs) <= TOLERANCE[dtype] * theirs:
        raise RuntimeError(f"{dtype}: the first loss is {ours:.6g}, PyTorch's {theirs:.6g}")
    return (
        f"our loss goes from {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps on one batch; of equal "
        f"parameters it is {ours:.6g}, PyTorch's {theirs:.6g} (may differ by {TOLERANCE[dtype]:.1%})"
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
    """Our loss and PyTorch's, without dropout, of parameters that keep the scale of grey levels up to the logits.

    With the preset's own parameters all logits are about 0, and the loss is ln(classes) whatever the layers do.
    """
    model = get_model(config.model, config.model.num_classes)
    layers = tuple(dataclasses.replace(layer, init="he") for layer in model.layers)
    params = init_variables(model.clone(layers=layers), config.data.crop, config.seed)["params"]
    generator = np.random.default_rng(0)
    shape = (config.batch_size, config.data.crop, config.data.crop, 3)
    crops = generator.normal(scale=70, size=shape).astype(np.float32)
    labels = generator.integers(0, config.model.num_classes, config.batch_size)

    logits, _ = jax.jit(model.apply)({"params": params}, crops)
    ours = optax.softmax_cross_entropy_with_integer_labels(logits.astype(np.float32), labels).mean()

    network = TorchAlexNet(model, config.data.crop)
    network.load_flax(params)
    network.eval().to(device)
    images = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        theirs = F.cross_entropy(network(images), torch.from_numpy(labels).to(device))
    return float(ours), theirs.item()
