"""The likely cause if a run has not started to learn.

A network of 2012's kind may stay at the loss of guessing, ln(classes), for many thousands of steps and for different
reasons (BVLC/caffe#401, #2085, #3243), which its loss alone does not tell apart.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment
from alexnet_jax.data.storage import read_images
from alexnet_jax.diagnosis.layer_statistics import LayerStatistics, measure_layers
from alexnet_jax.diagnosis.linear_probe import ProbeResult, probe_labels
from alexnet_jax.diagnosis.start_watch import StartWatch
from alexnet_jax.experiment import Experiment
from alexnet_jax.train_state import init_variables

DEAD = 0.9
"""Fraction of a layer's units without which it is as good as closed."""

BATCH = 64
"""Images on which the layers are measured."""


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
    layers: Sequence[LayerStatistics]

    def table(self) -> str:
        """The statistics of each layer."""
        header = ("layer", "kernel std", "of He's", "bias", "signal", "dead", "gradient/kernel", "moved")
        rows: list[tuple[str, ...]] = [header]
        for layer in self.layers:
            scales = (f"{number:.2g}" for number in (layer.kernel_std, layer.of_he, layer.bias, layer.signal))
            rows.append((layer.name, *scales, f"{layer.dead:.0%}", f"{layer.gradient:.1g}", f"{layer.moved:.2g}"))
        return "\n".join("  ".join([f"{name:<6}", *(f"{cell:>15}" for cell in cells)]) for name, *cells in rows)

    def text(self) -> str:
        """The findings in one line."""
        first, *others = self.findings
        also = "".join(f"; less likely: {other.cause} ({other.evidence})" for other in others)
        return f"most likely cause: {first.cause} ({first.evidence}). Try {first.remedy}{also}"


@dataclasses.dataclass(frozen=True)
class Measurements:
    """What the findings rest on.

    Attributes:
      losses: of training.
      learning_rate: of the last step.
      probe: how well thumbnails tell the labels; None if there are too few.
      input_rms: root mean square of the network's input.
      input_signal: standard deviation of its input from image to image.
      initial, present: the layers before the first step, and now.
      has_batch_norm: whether the network scales signals anew.
    """

    losses: StartWatch
    learning_rate: float
    probe: ProbeResult | None
    input_rms: float
    input_signal: float
    initial: Sequence[LayerStatistics]
    present: Sequence[LayerStatistics]
    has_batch_norm: bool

    @property
    def furthest(self) -> float:
        """The largest distance of a kernel from its initial value, as a fraction of its size there."""
        return max(layer.moved for layer in self.present)


def diagnose(experiment: Experiment, variables: dict[str, Any], losses: StartWatch, learning_rate: float) -> Diagnosis:
    """Finds out why a run has not started.

    Args:
      experiment: what the run trains.
      variables: params and batch_stats by now, whole and on the host.
      losses: the training losses so far.
      learning_rate: of the last step.
    """
    records, model = experiment.dataset.splits["train"], experiment.model
    ids = np.random.default_rng(0).permutation(len(records.labels))[:BATCH]
    pixels, labels = jnp.asarray(read_images(records, ids)), records.labels[ids]
    images = augment.testing_images(experiment.preprocessing, pixels, 1)[0]
    initial = init_variables(model, experiment.config.data.crop, experiment.config.seed)
    measured = Measurements(
        losses=losses,
        learning_rate=learning_rate,
        probe=probe_labels(records),
        input_rms=float(jnp.sqrt(jnp.mean(images**2))),
        input_signal=float(jnp.sqrt(jnp.var(images, axis=0).mean())),
        initial=measure_layers(model, initial, initial, images, labels),
        present=measure_layers(model, variables, initial, images, labels),
        has_batch_norm=any("bn" in layer.then for layer in model.layers),
    )
    return Diagnosis(find_causes(measured), measured.present)


def find_causes(measured: Measurements) -> list[Finding]:
    """The causes that the measurements show, each once, the most likely first.

    What would explain the evidence of another cause comes before it.
    """
    findings: dict[str, Finding] = {}
    for search in (_unusable_data, _dead_units, _no_progress, _fainter_signs):
        for finding in search(measured):
            findings.setdefault(finding.cause, finding)
    return list(findings.values()) or [_nothing_found(measured)]


def _unusable_data(measured: Measurements) -> Iterator[Finding]:
    """Networks here are made for pixels of deviation 50 to 100, or 1: a hundred times less or more is neither."""
    signal, rms = measured.input_signal, measured.input_rms
    if measured.losses.chance == 0:
        yield Finding("labels", "all training images have the same label", "a data set of two classes or more")
    if signal < 1e-3 * rms:
        yield Finding("inputs", f"images differ by {signal:.2g} alone", "other images: these are all alike")
    elif not 0.01 < rms < 1e4:
        yield Finding(
            "inputs",
            f"the network's input has a root mean square of {rms:.2g}",
            "config.data.std=(1.0, 1.0, 1.0) for 2012's networks, (64.0, 64.0, 64.0) for He-started ones",
        )


def _dead_units(measured: Measurements) -> Iterator[Finding]:
    """Units that answer to no image, from the start or since."""
    first, now = (max(layers, key=lambda layer: layer.dead) for layers in (measured.initial, measured.present))
    if first.dead >= DEAD:
        yield Finding(
            "biases" if first.bias < -first.product else "dead units",
            f"{first.dead:.0%} of the units of {first.name} answer to no image from the start; its biases start from "
            f"{first.bias:.2g}, its kernel makes {first.product:.2g} of the images",
            "a preset whose biases do not start below 0 (config.model.preset=caffe or bn), or leaky_relu as "
            "config.model.activation",
        )
    before = next(layer.dead for layer in measured.initial if layer.name == now.name)
    if now.dead >= DEAD and before <= now.dead / 2:
        yield _learning_rate_too_high(
            measured,
            f"{now.dead:.0%} of the units of {now.name} answer to no image any more, {before:.0%} at the start; "
            f"kernels have moved by up to {measured.furthest:.2g} of their size",
        )


def _no_progress(measured: Measurements) -> Iterator[Finding]:
    """Gradients that vanish, biases that hide the images, kernels that hardly move.

    With a relative gradient of 1e-5 and the customary learning rates a kernel needs 10^6 steps to change by its size.
    The presets' biases are at most 6 times what their kernels make of the images.
    """
    typical = statistics.median(layer.gradient for layer in measured.initial)
    if typical <= 1e-5 and max(layer.dead for layer in measured.initial) < DEAD:
        evidence = f"gradients at the start are {typical:.1g} of the kernels in the typical layer; "
        yield _initialisation(measured, evidence)
    worst = max(measured.initial, key=lambda layer: abs(layer.bias) / max(layer.product, 1e-30))
    if worst.bias != 0 and abs(worst.bias) >= 30 * worst.product:
        yield Finding(
            "biases",
            f"those of {worst.name} start from {worst.bias:.2g}; its kernel makes {worst.product:.2g} of the images",
            "a preset with smaller biases, as caffe has (0.1), or bn (0): config.model.preset",
        )
    learning_rate, steepest = measured.learning_rate, max(layer.gradient for layer in measured.present)
    if steepest != 0 and measured.furthest <= 0.01:
        yield Finding(
            "learning rate",
            f"too low at {learning_rate:.2g}: no kernel has moved by more than {measured.furthest:.1g} of its size; "
            f"a step of the steepest is {learning_rate * steepest:.1g} of it",
            f"config.optimizer.learning_rate={max(100 * learning_rate, 0.001):.2g}",
        )


def _fainter_signs(measured: Measurements) -> Iterator[Finding]:
    """Labels that thumbnails do not tell, a loss that has risen, kernels far below He's rule."""
    losses, probe = measured.losses, measured.probe
    if probe is not None and probe.p_value >= 1e-3:
        yield Finding(
            "labels",
            f"nothing in the images seems to tell them: a linear classifier of thumbnails is right in "
            f"{probe.accuracy:.1%} of {probe.images} new images, {probe.chance:.1%} would be by chance "
            f"(p={probe.p_value:.2g})",
            "to compare some training images with their labels: are they in the same order, is the data set shuffled?",
        )
    if losses.highest >= 3 * max(losses.chance, losses.first) or measured.furthest >= 30:
        yield _learning_rate_too_high(
            measured,
            f"the loss began with {losses.first:.3g} and rose to {losses.highest:.3g}, kernels have moved by up to "
            f"{measured.furthest:.2g} of their size",
        )
    if not measured.has_batch_norm and statistics.median(layer.of_he for layer in measured.initial) <= 0.5:
        yield _initialisation(measured)


def _learning_rate_too_high(measured: Measurements, evidence: str) -> Finding:
    rate = measured.learning_rate
    remedy = f"config.optimizer.learning_rate={rate / 10:.2g}"
    return Finding("learning rate", f"too high at {rate:.2g}: {evidence}", remedy)


def _initialisation(measured: Measurements, evidence: str = "") -> Finding:
    smallest = min(measured.initial, key=lambda layer: layer.of_he)
    signals = " ".join(f"{layer.signal:.2g}" for layer in measured.initial)
    return Finding(
        "initialisation",
        f"{evidence}signals that tell images apart shrink from layer to layer: {signals}; the kernel of "
        f"{smallest.name} starts from {smallest.kernel_std:.2g}, He's rule says {smallest.he_std:.2g}",
        "a preset that starts by He's rule, bn, or nearly so, source: config.model.preset",
    )


def _nothing_found(measured: Measurements) -> Finding:
    evidence = "inputs, labels, kernels, biases, units and gradients look as they should"
    rates = " or ".join(f"{factor * measured.learning_rate:.2g}" for factor in (0.1, 10))
    others = "another config.seed, or config.model.preset=bn"
    return Finding("unknown", evidence, f"config.optimizer.learning_rate={rates}, {others}")
