"""The paper's Figure 1: epochs that ReLU and tanh networks need to reach a training error, and the plot."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexnet_jax.errors import UserError
from alexnet_jax.experiments.results import Spread

Curves = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
"""Training errors in [0, 1] after epochs 1, 2, ..., by network and activation; one list per seed."""

STYLES: dict[str, dict[str, Any]] = {
    "relu": {"color": "#1f5fa8", "linestyle": "-", "label": "ReLU"},
    "tanh": {"color": "#c0392b", "linestyle": "--", "label": "tanh"},
}


@dataclasses.dataclass(frozen=True)
class Race:
    """The runs of a network with one activation, until they reach a bound on the training error.

    Attributes:
      rate: the best learning rate.
      losses: final training loss of the probe run at each learning rate; infinite if it diverged.
      epochs: epochs to the bound, one per seed; None if the run ended before it.
      errors: training errors in [0, 1] after each epoch, one tuple per seed.
      cap: the length of a run in epochs.
    """

    rate: float
    losses: Mapping[float, float]
    epochs: tuple[int | None, ...]
    errors: tuple[tuple[float, ...], ...]
    cap: int

    @property
    def is_over(self) -> bool:
        """Whether all seeds reached the bound."""
        return None not in self.epochs

    @property
    def spread(self) -> Spread:
        """Mean and standard deviation of the epochs; a run that did not reach the bound counts with its full length."""
        return Spread.of([float(self.cap if epochs is None else epochs) for epochs in self.epochs])

    def text(self) -> str:
        """The epochs as mean ± standard deviation, or as a lower bound if a seed did not reach the bound."""
        if self.is_over:
            return self.spread.text(".1f")
        reached = sum(epochs is not None for epochs in self.epochs)
        return f"more than {self.spread.mean:.1f} ({reached} of {len(self.epochs)} seeds within {self.cap})"


def best_learning_rate(losses: Mapping[float, float], who: str) -> float:
    """The learning rate with the lowest loss. Raises UserError, naming `who`, if all losses are infinite."""
    best = min(losses, key=lambda learning_rate: losses[learning_rate])
    if math.isinf(losses[best]):
        raise UserError(f"{who} diverged at every learning rate of --rates; give smaller ones")
    return best


def is_at_the_edge(losses: Mapping[float, float], learning_rate: float) -> bool:
    """Whether the learning rate is the smallest or largest of those tried, so that one beyond it may be better."""
    return len(losses) > 1 and learning_rate in (min(losses), max(losses))


def epochs_to(errors: Sequence[float], bound: float) -> int | None:
    """Epochs until the error is at most `bound`; None if it never is."""
    return next((number for number, error in enumerate(errors, 1) if error <= bound), None)


def ratio(relu: Race, tanh: Race) -> tuple[str, float | None]:
    """The ratio of tanh's mean epochs to ReLU's.

    Returns:
      "exactly", "more than" or "less than" with the ratio, or "unknown" with None if neither reached the bound.
    """
    if not (relu.is_over or tanh.is_over):
        return "unknown", None
    sense = "less than" if not relu.is_over else "exactly" if tanh.is_over else "more than"
    return sense, tanh.spread.mean / relu.spread.mean


def ratio_at_last_error(relu: Sequence[float], tanh: Sequence[float]) -> float | None:
    """The ratio of tanh's epochs to ReLU's at the final training error of tanh, interpolated between epochs.

    Args:
      relu, tanh: training errors after epochs 1, 2, ...

    Returns:
      The ratio; None if ReLU never reaches that error.
    """
    epochs = epochs_to(relu, tanh[-1])
    if epochs is None:
        return None
    if epochs == 1:
        return float(len(tanh))
    before, after = relu[epochs - 2 : epochs]
    return len(tanh) / (epochs - 1 + (before - tanh[-1]) / (before - after))


def ratio_text(sense: str, factor: float | None) -> str:
    """The result of `ratio` as text, like "more than 1.4 times"."""
    return sense if factor is None else f"{sense} {factor:.1f} times".removeprefix("exactly ")


def draw_figure1(path: Path, curves: Curves, bound: float, title: str) -> None:
    """Draws training error against epochs as in the paper's Figure 1: one panel per network, one line per seed.

    Args:
      path: the PNG file to write.
      curves: the training errors.
      bound: the error at which a run ends, in [0, 1].
      title: the title of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(curves), 4.2))
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)
    for panel, (network, by_activation) in zip(panels[0], curves.items(), strict=True):
        for activation, errors_by_seed in by_activation.items():
            style = STYLES[activation]
            for number, errors in enumerate(errors_by_seed):
                label = style["label"] if number == 0 else None
                epochs = range(1, len(errors) + 1)
                panel.plot(epochs, errors, **{**style, "label": label}, linewidth=1.6, alpha=0.85, marker=".")
        panel.axhline(bound, color="0.45", linewidth=0.8)
        panel.annotate(f"{bound:.0%}", (0.99, bound - 0.008), xycoords=("axes fraction", "data"), ha="right", va="top")
        panel.set(title=network, xlabel="epochs", ylim=(0, 0.8))
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
        panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("training error rate")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
