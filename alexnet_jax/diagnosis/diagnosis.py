"""Finds the likely cause if a run has not started to learn.

A network like that of 2012 may stay at chance level, a loss of ln(classes), for many thousands of steps. The loss alone
does not tell why (BVLC/caffe#401, #2085, #3243); data and layer statistics do.
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
"""A layer with at least this fraction of dead units counts as dead."""

BATCH = 64
"""Number of images on which the layer statistics are measured."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A likely cause of a run that does not learn.

    Attributes:
      cause: "labels", "inputs", "biases", "dead units", "initialisation", "learning rate" or "unknown".
      evidence: the measurements that point to it.
      remedy: what to try.
    """

    cause: str
    evidence: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Findings, the most likely first, and the current layer statistics."""

    findings: Sequence[Finding]
    layers: Sequence[LayerStatistics]

    def table(self) -> str:
        """The layer statistics as a table of text, one row per layer."""
        header = ("layer", "kernel std", "kernel/He", "bias", "output std", "dead", "gradient/kernel", "change/kernel")
        rows: list[tuple[str, ...]] = [header]
        for layer in self.layers:
            scales = (f"{number:.2g}" for number in (layer.kernel_std, layer.he_ratio, layer.bias, layer.output_std))
            rows.append((layer.name, *scales, f"{layer.dead:.0%}", f"{layer.gradient:.1g}", f"{layer.moved:.2g}"))
        return "\n".join("  ".join([f"{name:<6}", *(f"{cell:>15}" for cell in cells)]) for name, *cells in rows)

    def text(self) -> str:
        """The findings and the first remedy in one line."""
        first, *others = self.findings
        also = "".join(f"; less likely: {other.cause} ({other.evidence})" for other in others)
        return f"most likely cause: {first.cause} ({first.evidence}). Try {first.remedy}{also}"


@dataclasses.dataclass(frozen=True)
class Measurements:
    """The measurements that the findings are based on.

    Attributes:
      losses: the training losses so far.
      learning_rate: the learning rate of the last step.
      probe: accuracy of a linear classifier of thumbnails; None if there are too few images.
      input_rms: root mean square of the network's input.
      input_std: standard deviation of the input across images.
      initial, present: layer statistics before the first step, and now.
      has_batch_norm: whether the network has batch normalisation.
    """

    losses: StartWatch
    learning_rate: float
    probe: ProbeResult | None
    input_rms: float
    input_std: float
    initial: Sequence[LayerStatistics]
    present: Sequence[LayerStatistics]
    has_batch_norm: bool

    @property
    def furthest(self) -> float:
        """The largest change of a kernel since the start, as a fraction of its initial norm."""
        return max(layer.moved for layer in self.present)


def diagnose(experiment: Experiment, variables: dict[str, Any], losses: StartWatch, learning_rate: float) -> Diagnosis:
    """Measures data and layers and finds out why a run has not started to learn.

    Args:
      experiment: the model and data of the run.
      variables: the current params and batch_stats, on the host.
      losses: the training losses so far.
      learning_rate: the learning rate of the last step.
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
        input_std=float(jnp.sqrt(jnp.var(images, axis=0).mean())),
        initial=measure_layers(model, initial, initial, images, labels),
        present=measure_layers(model, variables, initial, images, labels),
        has_batch_norm=any("bn" in layer.then for layer in model.layers),
    )
    return Diagnosis(find_causes(measured), measured.present)


def find_causes(measured: Measurements) -> list[Finding]:
    """Lists the causes that the measurements point to, each once, the most likely first.

    A cause that would explain the symptoms of another comes before it.
    """
    findings: dict[str, Finding] = {}
    for search in (_unusable_data, _dead_units, _no_progress, _weaker_signs):
        for finding in search(measured):
            findings.setdefault(finding.cause, finding)
    return list(findings.values()) or [_nothing_found(measured)]


def _unusable_data(measured: Measurements) -> Iterator[Finding]:
    """Finds constant labels, constant images, and inputs of a wrong scale.

    The presets expect inputs with a standard deviation of 50 to 100, or 1; the limits are a hundred times beyond.
    """
    std, rms = measured.input_std, measured.input_rms
    if measured.losses.chance == 0:
        yield Finding("labels", "all training images have the same label", "a data set with two or more classes")
    if std < 1e-3 * rms:
        yield Finding("inputs", f"the standard deviation across images is only {std:.2g}", "images that differ")
    elif not 0.01 < rms < 1e4:
        yield Finding(
            "inputs",
            f"the network's input has a root mean square of {rms:.2g}",
            "config.data.std=(1.0, 1.0, 1.0) for the networks of 2012, (64.0, 64.0, 64.0) with He's initialisation",
        )


def _dead_units(measured: Measurements) -> Iterator[Finding]:
    """Finds layers whose units output 0 for all images, since the start or since some later step."""
    first, now = (max(layers, key=lambda layer: layer.dead) for layers in (measured.initial, measured.present))
    if first.dead >= DEAD:
        yield Finding(
            "biases" if first.bias < -first.product_rms else "dead units",
            f"{first.dead:.0%} of the units of {first.name} are dead from the start (0 for all images); its biases "
            f"start at {first.bias:.2g}, the products of inputs and kernel are about {first.product_rms:.2g}",
            "a preset whose biases do not start below 0 (config.model.preset=caffe or bn), or leaky_relu as "
            "config.model.activation",
        )
    before = next(layer.dead for layer in measured.initial if layer.name == now.name)
    if now.dead >= DEAD and before <= now.dead / 2:
        yield _learning_rate_too_high(
            measured,
            f"{now.dead:.0%} of the units of {now.name} are dead (0 for all images), {before:.0%} at the start; "
            f"kernels have changed by up to {measured.furthest:.2g} of their norm",
        )


def _no_progress(measured: Measurements) -> Iterator[Finding]:
    """Finds vanishing gradients, biases that dominate the images, and kernels that hardly change.

    With a relative gradient of 1e-5 and usual learning rates, a kernel needs 10^6 steps to change by its norm. The
    biases of the presets are at most 6 times the products of inputs and kernel.
    """
    typical = statistics.median(layer.gradient for layer in measured.initial)
    if typical <= 1e-5 and max(layer.dead for layer in measured.initial) < DEAD:
        evidence = f"at the start, the median layer's gradient is {typical:.1g} of its kernel; "
        yield _initialisation(measured, evidence)
    worst = max(measured.initial, key=lambda layer: abs(layer.bias) / max(layer.product_rms, 1e-30))
    if worst.bias != 0 and abs(worst.bias) >= 30 * worst.product_rms:
        yield Finding(
            "biases",
            f"those of {worst.name} start at {worst.bias:.2g}; the products of inputs and kernel are about "
            f"{worst.product_rms:.2g}",
            "a preset with smaller biases: config.model.preset=caffe (0.1) or bn (0)",
        )
    learning_rate, steepest = measured.learning_rate, max(layer.gradient for layer in measured.present)
    if steepest != 0 and measured.furthest <= 0.01:
        yield Finding(
            "learning rate",
            f"too low at {learning_rate:.2g}: no kernel has changed by more than {measured.furthest:.1g} of its norm; "
            f"the largest relative update of a step is {learning_rate * steepest:.1g}",
            f"config.optimizer.learning_rate={max(100 * learning_rate, 0.001):.2g}",
        )


def _weaker_signs(measured: Measurements) -> Iterator[Finding]:
    """Finds labels that thumbnails do not predict, a loss that has risen, and kernels far smaller than He's rule."""
    losses, probe = measured.losses, measured.probe
    if probe is not None and probe.p_value >= 1e-3:
        yield Finding(
            "labels",
            f"they seem unrelated to the images: a linear classifier of thumbnails is right "
            f"for {probe.accuracy:.1%} of {probe.images} new images, chance level is {probe.chance:.1%} "
            f"(p={probe.p_value:.2g})",
            "to compare some training images with their labels: were they shuffled separately?",
        )
    if losses.highest >= 3 * max(losses.chance, losses.first) or measured.furthest >= 30:
        yield _learning_rate_too_high(
            measured,
            f"the loss started at {losses.first:.3g} and rose to {losses.highest:.3g}, kernels have changed by up to "
            f"{measured.furthest:.2g} of their norm",
        )
    if not measured.has_batch_norm and statistics.median(layer.he_ratio for layer in measured.initial) <= 0.5:
        yield _initialisation(measured)


def _learning_rate_too_high(measured: Measurements, evidence: str) -> Finding:
    learning_rate = measured.learning_rate
    remedy = f"config.optimizer.learning_rate={learning_rate / 10:.2g}"
    return Finding("learning rate", f"too high at {learning_rate:.2g}: {evidence}", remedy)


def _initialisation(measured: Measurements, evidence: str = "") -> Finding:
    smallest = min(measured.initial, key=lambda layer: layer.he_ratio)
    deviations = " ".join(f"{layer.output_std:.2g}" for layer in measured.initial)
    return Finding(
        "initialisation",
        f"{evidence}the standard deviations of outputs across images shrink from layer to layer: {deviations}; the "
        f"kernel of {smallest.name} starts with {smallest.kernel_std:.2g}, He's rule gives {smallest.he_std:.2g}",
        "a preset initialised by He's rule (config.model.preset=bn), or close to it (source)",
    )


def _nothing_found(measured: Measurements) -> Finding:
    evidence = "inputs, labels, kernels, biases, units and gradients look normal"
    values = " or ".join(f"{factor * measured.learning_rate:.2g}" for factor in (0.1, 10))
    others = "another config.seed, or config.model.preset=bn"
    return Finding("unknown", evidence, f"config.optimizer.learning_rate={values}, {others}")
