"""The figures of a report. Each function says how to fill a matplotlib figure; `render` makes a PNG file of it."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]

RIGHT, WRONG, TRAIN, VALIDATION, MARK = "#2a9d5c", "#d1495b", "#4f8fd0", "#e08a2e", "#9a9a9a"
_THEMES = {"light": ("#ffffff", "#24292f", "#d8dde3"), "dark": ("#15181d", "#dfe3e8", "#3a414b")}
"""Background, text and lines."""

ANNOTATED = 12
"""Classes up to which the cells of a confusion matrix have their numbers."""


def render(draw: Draw, theme: str = "light") -> bytes:
    """A PNG file of the figure."""
    import matplotlib
    from matplotlib.figure import Figure

    background, text, line = _THEMES[theme]
    style: Any = {
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": line,
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), background),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), text),
        "axes.edgecolor": text,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font does not have is drawn as boxes
        figure, file = Figure(layout="constrained"), io.BytesIO()
        draw(figure)
        figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def curves(
    epochs: Sequence[Mapping[str, Any]],
    losses: Sequence[tuple[float, float]],
    rates: Sequence[tuple[float, float]],
    test_errors: dict[str, float | None],
) -> Draw:
    """Errors and losses against epochs, a vertical line at each drop of the learning rate.

    Args:
      epochs: records of metrics.jsonl of that kind.
      losses: (epoch, loss) of single training steps.
      rates: (epoch, learning rate after it) of each drop.
      test_errors: top1_error and top5_error in [0, 1], of the end; empty without.
    """

    def draw(figure: "Figure") -> None:
        figure.set_size_inches(8, 6)
        errors, loss = figure.subplots(2, 1, sharex=True)
        places = [record["epoch"] for record in epochs]
        if losses:
            loss.plot(*zip(*losses, strict=True), color=TRAIN, linewidth=0.6, alpha=0.5, label="training, single steps")
        lines = [
            (errors, 100, "training top-1", "train_top1_error", TRAIN, "-"),
            (errors, 100, "validation top-1", "validation_top1_error", VALIDATION, "-"),
            (errors, 100, "validation top-5", "validation_top5_error", VALIDATION, ":"),
            (loss, 1, "training", "train_loss", TRAIN, "-"),
            (loss, 1, "validation", "validation_loss", VALIDATION, "-"),
        ]
        for panel, unit, label, key, color, style in lines:
            values = [record[key] for record in epochs]
            if values and None not in values:
                panel.plot(places, unit * np.array(values), style, color=color, label=label, marker=".", markersize=4)
        for name, marker in (("top1", "*"), ("top5", "P")):
            value = test_errors.get(f"{name}_error")
            if value is not None and places:
                label = f"test {name[:3]}-{name[3]}"
                errors.plot(places[-1], 100 * value, marker, color=WRONG, markersize=9, label=label)
        for epoch, rate in rates:
            for panel in (errors, loss):
                panel.axvline(epoch, color=MARK, linewidth=0.9, linestyle="--")
            errors.annotate(f"{rate:.2g}", (epoch, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        errors.set(ylabel="error, %", ylim=(0, None))
        loss.set(ylabel="loss, nats", xlabel="epochs", ylim=(0, None))
        for panel in (errors, loss):
            panel.grid(linewidth=0.5)
            if panel.lines:
                panel.legend(frameon=False, fontsize=8)

    return draw


def kernels(filters: np.ndarray) -> Draw:
    """The kernels of a first layer, [rows, columns, 3, kernels], each scaled by its largest weight (paper Figure 3)."""
    count = filters.shape[-1]
    columns = min(16, count)
    rows = -(-count // columns)

    def draw(figure: "Figure") -> None:
        figure.set_size_inches(8, 0.52 * rows + 0.1)
        largest = np.abs(filters).max(axis=(0, 1, 2), keepdims=True)
        tiles = np.moveaxis(0.5 + filters / (2 * np.maximum(largest, 1e-12)), -1, 0)
        for number, panel in enumerate(np.ravel(figure.subplots(rows, columns, squeeze=False))):
            panel.axis("off")
            if number < count:
                panel.imshow(tiles[number], interpolation="nearest")

    return draw


def answers(
    images: np.ndarray, labels: Sequence[str], guesses: Sequence[Sequence[tuple[str, float]]], columns: int = 4
) -> Draw:
    """Images with their labels and bars of the likeliest classes, the right one green (paper Figure 4, left)."""
    rows = -(-len(images) // columns)

    def draw(figure: "Figure") -> None:
        figure.set_size_inches(8, 2.9 * rows)
        panels = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 2] * rows)
        for panel in panels.ravel():
            panel.axis("off")
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            row, column = divmod(number, columns)
            _show(panels[2 * row, column], image, label)
            bars, few = panels[2 * row + 1, column], guesses[number]
            shares = [share for _, share in few]
            colors = [RIGHT if name == label else WRONG for name, _ in few]
            bars.barh(range(len(few)), shares, color=colors, alpha=0.55, height=0.85)
            bars.set(xlim=(0, 1.2), ylim=(4.5, -0.5))
            for place, (name, share) in enumerate(few):
                bars.text(0.02, place, _short(name, 17), va="center", fontsize=7.5)
                bars.text(1.2, place, f"{share:.0%}", va="center", ha="right", fontsize=7.5)

    return draw


def neighbours(
    images: np.ndarray, labels: Sequence[str], near: np.ndarray, near_labels: Sequence[Sequence[str]]
) -> Draw:
    """Test images, each followed by its nearest training images, [images, near, size, size, 3] (Figure 4, right)."""

    def draw(figure: "Figure") -> None:
        rows, columns = len(images), near.shape[1] + 1
        figure.set_size_inches(8, 1.35 * rows)
        panels = figure.subplots(rows, columns, squeeze=False)
        for row in range(rows):
            _show(panels[row, 0], images[row], labels[row], bold=True)
            for column in range(1, columns):
                name = near_labels[row][column - 1]
                color = RIGHT if name == labels[row] else WRONG
                _show(panels[row, column], near[row, column - 1], name, color=color)

    return draw


def confusion(counts: np.ndarray, names: Sequence[str]) -> Draw:
    """How often a class (row) was taken for another (column), as shares of the row; counts where there is room."""

    def draw(figure: "Figure") -> None:
        classes = len(names)
        side = 3.6 + 0.14 * min(classes, 30)
        figure.set_size_inches(side + 0.8, side)
        panel = figure.subplots()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        picture = panel.imshow(shares, cmap="cividis", vmin=0, vmax=1)
        figure.colorbar(picture, ax=panel, label="share of the class", shrink=0.8)
        short = [_short(name, 14) for name in names]
        panel.set_xticks(range(classes), short, rotation=90, fontsize=8 if classes <= 20 else 6)
        panel.set_yticks(range(classes), short, fontsize=8 if classes <= 20 else 6)
        panel.set(xlabel="answer", ylabel="label")
        if classes <= ANNOTATED:
            for row, column in np.argwhere(counts):
                color = "black" if shares[row, column] > 0.55 else "white"
                panel.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=color)

    return draw


def _show(panel: Any, image: np.ndarray, title: str, color: str | None = None, bold: bool = False) -> None:
    panel.axis("off")
    panel.imshow(image)
    style: Any = {"color": color} if color else {}
    panel.set_title(_short(title, 14), fontsize=8, pad=2, weight="bold" if bold else "normal", **style)


def _short(name: str, length: int) -> str:
    """A name in a few characters that matplotlib can draw, without what it would take for a formula."""
    name = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name).replace("$", "\\$")
    return name if len(name) <= length else name[: length - 1] + "…"
