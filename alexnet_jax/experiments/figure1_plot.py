"""Pictures of what was measured, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Curves = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
"""Training errors in [0, 1] after epochs 1, 2, ...: by network, by activation, one list a seed."""

STYLES: dict[str, dict[str, Any]] = {
    "relu": {"color": "#1f5fa8", "linestyle": "-", "label": "ReLU"},
    "tanh": {"color": "#c0392b", "linestyle": "--", "label": "tanh"},
}


def draw_figure1(path: Path, curves: Curves, bound: float, title: str) -> None:
    """Draws training error against epochs as in the paper's Figure 1: a panel a network, a line a seed.

    Args:
      path: of the PNG file.
      curves: the errors.
      bound: the error at which a run ends, in [0, 1].
      title: above the panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(curves), figsize=(4.8 * len(curves), 4.2), sharey=True, squeeze=False)
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
    pyplot.close(figure)
