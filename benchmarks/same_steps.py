"""Run 145 of the source, step for step, here and in PyTorch, in code that shares nothing with this project's.

    python -m benchmarks.same_steps --width-divisor=8 --compress
    python -m benchmarks.same_steps --steps=1000 --config=configs/alexnet.py:imagenet2012,source --config.data.dir=DIR

Both start from the same parameters and see the same crops and dropout masks, drawn by this project. Network, loss,
gradients, update rule and schedule of the other are written below from the source's own files (CHM
layers/layers-145.cfg and layers/layer-params-145.cfg) and computed in float64, so that the difference is our rounding:
float32 in both would have that of both. A difference above TOLERANCE after a step ends the program with exit code 1.
results/same_steps.json is written. The images of the first command are stand-ins; the second needs ImageNet.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from flax import traverse_util
from ml_collections import ConfigDict

from alexnet_jax.cli.flags import config_from_flags
from alexnet_jax.experiment import open_experiment
from alexnet_jax.experiments.results import write_results
from alexnet_jax.steps import augmented, make_train_step
from alexnet_jax.system import console
from alexnet_jax.train_state import create_train_state, init_variables, training_key

TOLERANCE = 1e-4
"""The largest norm of the difference of an array of parameters, relative to the norm of the array."""

EPOCHS, DROPS, CONV1_LOWERED, CONV1_FROZEN = 91.0, (25.0, 51.0, 79.0), 67.0, 72.0
"""Epochs of run 145 and of the events of its schedule (the notes in CHM layers/layer-params-145.cfg)."""

MOMENTUM, WEIGHT_DECAY = 0.9, 0.0005
"""Of layer-params-145.cfg; biases have no weight decay."""

STAND_IN = "--config=configs/alexnet.py:synthetic,source"

Arrays = dict[str, np.ndarray]
"""Parameters by "layer/parameter"; kernels are [rows, columns, inputs, outputs], or [inputs, outputs]."""

Weights = dict[str, torch.Tensor]
"""The same in PyTorch."""

Row = dict[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    """Takes the steps, and prints and writes how far the parameters are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--width-divisor", type=int, default=1, help="divides the channels and units of every layer")
    parser.add_argument("--compress", action="store_true", help="all 91 epochs of the schedule take these steps")
    parser.add_argument("--output", type=Path, default=Path("results/same_steps.json"))
    options, words = parser.parse_known_args(argv)
    words = words if any(word.startswith("--config=") for word in words) else [STAND_IN, *words]
    config = config_from_flags("same_steps", words)
    rows = []
    for row in compare(config, options.steps, options.width_divisor, options.compress):
        print(", ".join(f"{name} {value:.6g}" for name, value in row.items()), flush=True)
        rows.append(row)
    flags = [f"--steps={options.steps}", f"--width-divisor={options.width_divisor}", *["--compress"] * options.compress]
    public = [word for word in words if not word.startswith(("--config.data.dir", "--config.data.prep"))]
    data = f"{config.data.name}, batches of {config.batch_size}, crops of {config.data.crop} pixels"
    write_results(
        options.output,
        ["-m", "benchmarks.same_steps", *flags, *public],
        data,
        [config.seed],
        {"torch": torch.__version__, "rows": rows},
    )
    if (worst := max(row["difference"] for row in rows)) > TOLERANCE:
        sys.exit(f"the parameters differ by {worst:.2g}, which is more than {TOLERANCE:g}")


def compare(config: ConfigDict, steps: int, width_divisor: int = 1, compress: bool = False) -> Iterator[Row]:
    """Takes the steps of both.

    Yields:
      For each step the epoch of run 145, both losses, and how far apart the parameters are after it: "difference" is
      the largest of an array, relative to its norm; "of_change" that of all together, relative to how far they have
      come since the first step.
    """
    config = config.copy_and_resolve_references()
    config.data.cache = "disk"  # so that batches hold their images
    with console.muted(), jax.default_matmul_precision("highest"):
        images = len(open_experiment(config).dataset.splits["train"].labels)
        scale = steps * config.batch_size / images / EPOCHS if compress else 1.0
        ours = Ours(with_schedule(config, scale), width_divisor)
        start = ours.params()
        theirs = Theirs(start)
        for step, batch in enumerate(itertools.islice(ours.batches(), steps)):
            epoch = step * config.batch_size / images
            other_loss = theirs.step(*ours.inputs(batch), batch["label"], epoch / scale)
            losses = {"loss": ours.step(batch, epoch), "other_loss": other_loss}
            params, others = ours.params(), theirs.params()
            apart, change = minus(params, others), minus(others, start)
            largest = max(norm([array]) / max(norm([others[name]]), 1e-30) for name, array in apart.items())
            of_change = norm(apart.values()) / norm(change.values())
            yield {
                "step": step + 1,
                "epoch": epoch / scale,
                **losses,
                "difference": largest,
                "of_change": of_change,
            }


def with_schedule(config: ConfigDict, scale: float) -> ConfigDict:
    """The config with the schedule of run 145, its epochs multiplied by `scale`."""
    config.epochs = EPOCHS * scale
    config.data.color_noise_until_epoch = CONV1_LOWERED * scale
    config.optimizer.update({"schedule": "step", "step_epochs": tuple(epoch * scale for epoch in DROPS)})
    lowered, frozen = ("conv1/kernel", CONV1_LOWERED * scale, 0.1), ("conv1/*", CONV1_FROZEN * scale, 0.0)
    config.optimizer.learning_rate_multipliers = (lowered, frozen)
    return config


def minus(some: Arrays, others: Arrays) -> Arrays:
    """The difference of two trees of parameters."""
    return {name: array - others[name] for name, array in some.items()}


def norm(arrays: Iterable[np.ndarray]) -> float:
    """The norm of all elements together."""
    return sum(float(np.sum(array.astype(np.float64) ** 2)) for array in arrays) ** 0.5


class Ours:
    """This project's training step on one device, of a network whose channels and units are divided by a number."""

    def __init__(self, config: ConfigDict, width_divisor: int) -> None:
        self.config, self.experiment = config, open_experiment(config)
        layers = self.experiment.model.layers
        self.model = self.experiment.model.clone(
            layers=tuple(dataclasses.replace(layer, features=layer.features // width_divisor) for layer in layers)
        )
        self._preprocessing, self._key = self.experiment.preprocessing, training_key(config.seed)
        self._step = jax.jit(make_train_step(self.model, self.experiment.optimizer, self._preprocessing))
        variables = init_variables(self.model, config.data.crop, config.seed)
        self._state = create_train_state(variables, self.experiment.optimizer, config.seed)
        self._learning_rates = self.experiment.make_learning_rates()

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The batches of training."""
        stream = {"batch_size": self.config.batch_size, "seed": self.config.seed, "rows": slice(None)}
        with contextlib.closing(self.experiment.source.batches(0, **stream)) as batches:
            yield from batches

    def inputs(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The crops that the step makes of a batch, [batch, crop, crop, 3], and the dropout masks of fc6 and fc7."""
        return jax.device_get(self._inputs(batch))

    @functools.partial(jax.jit, static_argnums=0)
    def _inputs(self, batch: Any) -> Any:
        crops, _, _, keys = augmented(self._preprocessing, self._key, batch)

        def mask(layer: int) -> Any:
            shape = (self.model.layers[layer - 1].features,)
            return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), 0.5, shape))(keys)

        return crops, [mask(6), mask(7)]

    def step(self, batch: Mapping[str, np.ndarray], epoch: float) -> float:
        """Takes a step and returns the loss before it."""
        rates = jax.tree.map(np.float32, self._learning_rates.at(epoch).by_parameter)
        self._state, sums = self._step(dataclasses.replace(self._state, learning_rates=rates), batch)
        return float(sums["loss_sum"] / sums["count"])

    def params(self) -> Arrays:
        """The parameters."""
        return traverse_util.flatten_dict(jax.device_get(self._state.params), sep="/")


class Theirs:
    """Run 145 in PyTorch, in float64."""

    def __init__(self, start: Arrays) -> None:
        """Starts from these parameters."""
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._weights = {name: self._tensor(array).requires_grad_() for name, array in start.items()}
        self._velocity = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}

    def params(self) -> Arrays:
        """The parameters."""
        return {name: weight.detach().cpu().numpy().copy() for name, weight in self._weights.items()}

    def step(self, crops: np.ndarray, masks: Sequence[np.ndarray], labels: np.ndarray, epoch: float) -> float:
        """Takes a step at an epoch of run 145 and returns the loss before it."""
        logits = logits_of(self._weights, self._tensor(crops), [self._tensor(mask) for mask in masks])
        loss = F.cross_entropy(logits, self._tensor(labels).long())
        gradients = torch.autograd.grad(loss, list(self._weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(self._weights.items(), gradients, strict=True):
                rate, decay = learning_rate(name, epoch), WEIGHT_DECAY if name.endswith("kernel") else 0.0
                velocity = self._velocity[name]
                velocity.mul_(MOMENTUM).sub_(decay * rate * weight).sub_(rate * gradient)
                if rate:
                    weight.add_(velocity)
        return loss.item()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array)).to(self._device)
        return tensor.double() if tensor.is_floating_point() else tensor


def learning_rate(name: str, epoch: float) -> float:
    """The learning rate of a parameter: epsW or epsB of its layer, as changed by hand at the epochs of the notes."""
    if name.startswith("conv1/") and epoch >= CONV1_FROZEN:
        return 0.0
    if name.endswith("/bias"):
        return 0.02
    lowered = 10 if name == "conv1/kernel" and epoch >= CONV1_LOWERED else 1
    return 0.01 / 10 ** sum(epoch >= drop for drop in DROPS) / lowered


def logits_of(weights: Weights, images: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """The network of layers-145.cfg in training; images are [batch, rows, columns, 3], masks those of fc6 and fc7."""

    def conv(x: torch.Tensor, layer: str, groups: int, pad: int, stride: int = 1) -> torch.Tensor:
        kernel = weights[f"{layer}/kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, weights[f"{layer}/bias"], stride, pad, groups=groups)

    def full(x: torch.Tensor, layer: str) -> torch.Tensor:
        return x @ weights[f"{layer}/kernel"] + weights[f"{layer}/bias"]

    x = images.permute(0, 3, 1, 2)
    overhang = -(x.shape[-1] - 11) % 4
    x = conv(F.pad(x, (0, overhang, 0, overhang)), "conv1", groups=1, pad=0, stride=4)
    x = F.relu(pool(norm_of_towers(x)))
    x = F.relu(conv(x, "conv2", groups=2, pad=2))
    x = pool(norm_within_maps(norm_of_towers(x)))
    x = F.relu(conv(x, "conv3", groups=1, pad=1))
    x = F.relu(conv(x, "conv4", groups=2, pad=1))
    x = F.relu(pool(conv(x, "conv5", groups=2, pad=1)))
    x = F.relu(full(x.permute(0, 2, 3, 1).flatten(1), "fc6")) * masks[0]
    x = F.relu(full(x, "fc7")) * masks[1]
    return full(x, "fc8")


def pool(x: torch.Tensor) -> torch.Tensor:
    """Maxima over 3 x 3 windows with stride 2; the last may overhang the edge."""
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def norm_of_towers(x: torch.Tensor) -> torch.Tensor:
    """[rnorm1a] and [rnorm1b]: scale 0.0001 / size 5, minDiv 2, pow 0.75, each over one tower's channels."""
    return torch.cat([F.local_response_norm(tower, 5, alpha=1e-4, beta=0.75, k=2.0) for tower in x.chunk(2, 1)], 1)


def norm_within_maps(x: torch.Tensor) -> torch.Tensor:
    """Scale 0.001 / 25 over the 5 x 5 places around each, pow 0.75."""
    energy = F.avg_pool2d(x * x, 5, stride=1, padding=2)  # which counts places outside the map as 0
    return x / (1 + 0.001 * energy) ** 0.75


if __name__ == "__main__":
    main()
