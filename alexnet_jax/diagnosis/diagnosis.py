"""Whether a run has started to learn, and if not, what is the likely cause.

A network of 2012's kind may stay at the loss of guessing, ln(classes), for many thousands of steps and for different
reasons (BVLC/caffe#401, #2085, #3243), which its loss alone does not tell apart.
"""

import dataclasses
import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import augment
from alexnet_jax.augment import Preprocessing
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.storage import read_images
from alexnet_jax.diagnosis.layer_statistics import LayerEvidence, Relation, distances, look_at_layers, look_for_relation
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.train_state import init_variables

WINDOW = 100
"""Steps over which the loss is averaged, or a fifth of those allowed if that is fewer."""

STARTED, STANDARD_ERRORS = 0.99, 4
"""A run has started once its mean loss is below this share of chance, and by so many standard errors."""

DEAD = 0.9
"""Share of a layer's units without which it is as good as closed."""

BATCH = 64
"""Images that the layers are looked at with."""


class StartWatch:
    """Watches training losses until they show that images have told something about labels.

    Answers that have nothing to do with the image cost at least the entropy of the labels: ln(classes) if all are
    equally frequent. So a mean loss that is below it by more than chance explains is learning, however slow; 0.99
    asks little more, and a run that has once started is never suspected again.

    Attributes:
      chance: the entropy of the labels, in nats.
      after: steps that a run may take to start; 0 for any number.
      started_at: the step by which it had; None so far.
      mean: of the last losses.
      first, highest: losses since the watch began.
    """

    def __init__(self, labels: np.ndarray, after: int):
        shares = np.bincount(labels) / len(labels)
        self.chance = float(-np.sum(shares[shares > 0] * np.log(shares[shares > 0])))
        self.after = after
        self.started_at: int | None = None
        self.first, self.highest, self.mean = math.nan, -math.inf, math.nan
        self._recent: deque[float] = deque(maxlen=min(WINDOW, max(2, after // 5)) if after else WINDOW)

    def is_stuck(self, step: int, loss: float) -> bool:
        """Takes the loss of a step; true if the run should have started by now."""
        if self.started_at is not None:
            return False
        self.first = loss if math.isnan(self.first) else self.first
        self.highest = max(self.highest, loss)
        self._recent.append(loss)
        if len(self._recent) < (self._recent.maxlen or 0):
            return False
        self.mean = statistics.fmean(self._recent)
        error = statistics.stdev(self._recent) / math.sqrt(len(self._recent))
        if self.mean < min(STARTED * self.chance, self.chance - STANDARD_ERRORS * error):
            self.started_at = step
        return self.started_at is None and 0 < self.after <= step

    def text(self, step: int) -> str:
        """That the run is stuck, in words."""
        return (
            f"nothing is learned: the mean training loss is {self.mean:.4f} after {step:,} steps, "
            f"guessing has {self.chance:.4f}"
        )


@dataclasses.dataclass(frozen=True)
class Finding:
    """A likely cause: "labels", "inputs", "biases", "dead units", "initialisation", "learning rate" or "unknown"."""

    cause: str
    evidence: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Findings, the most likely first, and the layers as they are."""

    findings: Sequence[Finding]
    layers: Sequence[LayerEvidence]
    moved: dict[str, float]

    def table(self) -> str:
        """The numbers by layer."""
        columns = ("layer", "kernel std", "of He's", "bias", "signal", "dead", "gradient/kernel", "moved")
        rows = ["  ".join(f"{name:>15}" if index else f"{name:<6}" for index, name in enumerate(columns))]
        for layer in self.layers:
            numbers = (
                f"{layer.kernel_std:.2g}",
                f"{layer.kernel_std / layer.he_std:.2g}",
                f"{layer.bias:.2g}",
                f"{layer.signal:.2g}",
                f"{layer.dead:.0%}",
                f"{layer.gradient:.1g}",
                f"{self.moved[layer.name]:.2g}",
            )
            rows.append("  ".join([f"{layer.name:<6}", *(f"{number:>15}" for number in numbers)]))
        return "\n".join(rows)

    def text(self) -> str:
        """The findings in one line."""
        first, *others = self.findings
        also = "".join(f"; less likely: {other.cause} ({other.evidence})" for other in others)
        return f"most likely cause: {first.cause} ({first.evidence}). Try {first.remedy}{also}"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the findings rest on: layers before the first step and now, and what else was seen.

    Attributes:
      watch: the losses.
      rate: the learning rate.
      label_share: of the training images that have the commonest label.
      relation: of thumbnails and labels.
      input_rms: root mean square of the network's input.
      input_signal: standard deviation of its input from image to image.
      initial, present: the layers; `moved` is how far their kernels have come.
      has_batch_norm: whether signals are scaled anew in the network.
    """

    watch: StartWatch
    rate: float
    label_share: float
    relation: Relation | None
    input_rms: float
    input_signal: float
    initial: Sequence[LayerEvidence]
    present: Sequence[LayerEvidence]
    moved: dict[str, float]
    has_batch_norm: bool


def diagnose(
    config: ConfigDict,
    model: AlexNet,
    dataset: Dataset,
    preprocessing: Preprocessing,
    variables: dict[str, Any],
    watch: StartWatch,
    rate: float,
) -> Diagnosis:
    """Why a run with these variables, whole and on the host, has not started."""
    records = dataset.splits["train"]
    ids = np.random.default_rng(0).permutation(len(records.labels))[:BATCH]
    pixels = read_images(records, ids)
    images, labels = augment.testing_images(preprocessing, jnp.asarray(pixels), 1)[0], records.labels[ids]
    initial = init_variables(model, config.data.crop, config.seed)
    counts = np.bincount(records.labels)
    evidence = Evidence(
        watch=watch,
        rate=rate,
        label_share=float(counts.max() / counts.sum()),
        relation=look_for_relation(records),
        input_rms=float(jnp.sqrt(jnp.mean(images**2))),
        input_signal=float(jnp.sqrt(jnp.var(images, axis=0).mean())),
        initial=look_at_layers(model, initial, images, labels),
        present=look_at_layers(model, variables, images, labels),
        moved=distances(variables["params"], initial["params"]),
        has_batch_norm=any("bn" in layer.then for layer in model.layers),
    )
    findings = list(_findings(evidence)) or [_nothing_found(evidence)]
    return Diagnosis(findings, evidence.present, evidence.moved)


def _deadest(layers: Sequence[LayerEvidence]) -> LayerEvidence:
    return max(layers, key=lambda layer: layer.dead)


def _findings(seen: Evidence) -> Iterator[Finding]:
    """Causes that the evidence shows, each once. What would explain the evidence of another comes before it."""
    named = set()
    for check in (
        _one_label,
        _inputs,
        _killed_from_the_start,
        _killed_on_the_way,
        _vanishing,
        _hidden_by_biases,
        _rate_too_low,
        _unrelated_labels,
        _rate_too_high,
        _small_kernels,
    ):
        finding = check(seen)
        if finding is not None and finding.cause not in named:
            named.add(finding.cause)
            yield finding


def _one_label(seen: Evidence) -> Finding | None:
    if seen.label_share < 1:
        return None
    return Finding("labels", "all training images have the same label", "a data set of two classes or more")


def _inputs(seen: Evidence) -> Finding | None:
    """Networks here are made for pixels of deviation 50 to 100, or 1: a hundred times less or more is neither."""
    remedy = "config.data.std=(1.0, 1.0, 1.0) for 2012's networks, (64.0, 64.0, 64.0) for He-started ones"
    if seen.input_signal < 1e-3 * seen.input_rms:
        return Finding("inputs", f"images differ by {seen.input_signal:.2g} alone", "other images: these are all alike")
    if not 0.01 < seen.input_rms < 1e4:
        return Finding("inputs", f"the network's input has a root mean square of {seen.input_rms:.2g}", remedy)
    return None


def _killed_from_the_start(seen: Evidence) -> Finding | None:
    worst = _deadest(seen.initial)
    if worst.dead < DEAD:
        return None
    cause = "biases" if worst.bias < -worst.product else "dead units"
    return Finding(
        cause,
        f"{worst.dead:.0%} of the units of {worst.name} answer to no image from the start; its biases start from "
        f"{worst.bias:.2g}, its kernel makes {worst.product:.2g} of the images",
        "a preset whose biases do not start below 0 (config.model.preset=caffe or bn), or leaky_relu as "
        "config.model.activation",
    )


def _killed_on_the_way(seen: Evidence) -> Finding | None:
    worst = _deadest(seen.present)
    before = next(layer for layer in seen.initial if layer.name == worst.name)
    if worst.dead < DEAD or before.dead > worst.dead / 2:
        return None
    return Finding(
        "learning rate",
        f"too high at {seen.rate:.2g}: {worst.dead:.0%} of the units of {worst.name} answer to no image any more, "
        f"{before.dead:.0%} at the start; kernels have moved by up to {max(seen.moved.values()):.2g} of their size",
        f"config.optimizer.learning_rate={seen.rate / 10:.2g}",
    )


def _vanishing(seen: Evidence) -> Finding | None:
    """With a relative gradient of 1e-5 and the customary rates a kernel needs 10^6 steps to change by its size."""
    typical = statistics.median(layer.gradient for layer in seen.initial)
    if typical > 1e-5 or _deadest(seen.initial).dead >= DEAD:
        return None
    return _initialisation(seen, f"gradients at the start are {typical:.1g} of the kernels in the typical layer; ")


def _initialisation(seen: Evidence, more: str = "") -> Finding:
    smallest = min(seen.initial, key=lambda layer: layer.kernel_std / layer.he_std)
    signals = " ".join(f"{layer.signal:.2g}" for layer in seen.initial)
    return Finding(
        "initialisation",
        f"{more}signals that tell images apart shrink from layer to layer: {signals}; the kernel of {smallest.name} "
        f"starts from {smallest.kernel_std:.2g}, He's rule says {smallest.he_std:.2g}",
        "a preset that starts by He's rule, bn, or nearly so, source: config.model.preset",
    )


def _hidden_by_biases(seen: Evidence) -> Finding | None:
    """The presets' biases are at most 6 times what their kernels make of the images."""
    worst = max(seen.initial, key=lambda layer: abs(layer.bias) / max(layer.product, 1e-30))
    if abs(worst.bias) < 30 * worst.product or worst.bias == 0:
        return None
    return Finding(
        "biases",
        f"those of {worst.name} start from {worst.bias:.2g}; its kernel makes {worst.product:.2g} of the images",
        "a preset with smaller biases, as caffe has (0.1), or bn (0): config.model.preset",
    )


def _rate_too_low(seen: Evidence) -> Finding | None:
    furthest, gradient = max(seen.moved.values()), max(layer.gradient for layer in seen.present)
    if furthest > 0.01 or gradient == 0:
        return None
    return Finding(
        "learning rate",
        f"too low at {seen.rate:.2g}: no kernel has moved by more than {furthest:.1g} of its size; a step of the "
        f"steepest is {seen.rate * gradient:.1g} of it",
        f"config.optimizer.learning_rate={max(100 * seen.rate, 0.001):.2g}",
    )


def _unrelated_labels(seen: Evidence) -> Finding | None:
    relation = seen.relation
    if relation is None or relation.p_value < 1e-3:
        return None
    return Finding(
        "labels",
        f"nothing in the images seems to tell them: a linear classifier of thumbnails is right in "
        f"{relation.accuracy:.1%} of {relation.images} new images, {relation.chance:.1%} would be by chance "
        f"(p={relation.p_value:.2g})",
        "to compare some training images with their labels: are they in the same order, is the data set shuffled?",
    )


def _rate_too_high(seen: Evidence) -> Finding | None:
    highest, furthest = seen.watch.highest, max(seen.moved.values())
    usual = max(seen.watch.chance, seen.watch.first)
    if highest < 3 * usual and furthest < 30:
        return None
    return Finding(
        "learning rate",
        f"too high at {seen.rate:.2g}: the loss began with {seen.watch.first:.3g} and rose to {highest:.3g}, kernels "
        f"have moved by up to {furthest:.2g} of their size",
        f"config.optimizer.learning_rate={seen.rate / 10:.2g}",
    )


def _small_kernels(seen: Evidence) -> Finding | None:
    ratios = [layer.kernel_std / layer.he_std for layer in seen.initial]
    return None if seen.has_batch_norm or statistics.median(ratios) > 0.5 else _initialisation(seen)


def _nothing_found(seen: Evidence) -> Finding:
    return Finding(
        "unknown",
        "inputs, labels, kernels, biases, units and gradients look as they should",
        f"config.optimizer.learning_rate={seen.rate / 10:.2g} or {seen.rate * 10:.2g}, another config.seed, or "
        "config.model.preset=bn",
    )
