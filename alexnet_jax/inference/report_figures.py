"""The figures of a report. Each function draws on a matplotlib figure, its first argument; `render` writes PNG."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RIGHT, WRONG, TRAIN, VALIDATION, MARK = "#2a9d5c", "#d1495b", "#4f8fd0", "#e08a2e", "#9a9a9a"
_THEMES = {"light": ("#ffffff", "#24292f", "#d8dde3"), "dark": ("#15181d", "#dfe3e8", "#3a414b")}
"""Colours of background, text and lines."""

ANNOTATED = 12
"""Most classes for which the cells of a confusion matrix show their counts."""


def render(draw: Callable[..., None], data: tuple[Any, ...], theme: str) -> bytes:
    """Draws a figure and returns the content of a PNG file.

    Args:
      draw: a function of this module.
      data: its arguments after the figure.
      theme: "light" or "dark".
    """
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
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), text),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # characters missing from the font are drawn as boxes
        figure, file = Figure(layout="constrained"), io.BytesIO()
        draw(figure, *data)
        figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def curves(
    figure: Any,
    epochs: Sequence[Mapping[str, Any]],
    losses: Sequence[tuple[float, float]],
    learning_rates: Sequence[tuple[float, float]],
    test_errors: Mapping[str, Any],
) -> None:
    """Draws errors and losses against epochs, with a vertical line at each learning-rate drop.

    Args:
      figure: the figure to draw on.
      epochs: the records of kind "epoch" in metrics.jsonl.
      losses: (epoch, loss) of single training steps.
      learning_rates: (epoch, new learning rate) of each drop.
      test_errors: top1_error and top5_error of the final test, in [0, 1]; empty without one.
    """
    figure.set_size_inches(8, 6)
    errors, loss = figure.subplots(2, 1, sharex=True)
    positions = [record["epoch"] for record in epochs]
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
            panel.plot(positions, unit * np.array(values), style, color=color, label=label, marker=".", markersize=4)
    for name, marker in (("top1", "*"), ("top5", "P")):
        value = test_errors.get(f"{name}_error")
        if value is not None and positions:
            label = f"test {name[:3]}-{name[3]}"
            errors.plot(positions[-1], 100 * value, marker, color=WRONG, markersize=9, label=label)
    for epoch, learning_rate in learning_rates:
        for panel in (errors, loss):
            panel.axvline(epoch, color=MARK, linewidth=0.9, linestyle="--")
        text, above = f"{learning_rate:.2g}", (epoch, 1.01)
        errors.annotate(text, above, xycoords=("data", "axes fraction"), ha="center", fontsize=8)
    errors.set(ylabel="error, %", ylim=(0, None))
    loss.set(ylabel="loss, nats", xlabel="epochs", ylim=(0, None))
    for panel in (errors, loss):
        panel.grid(linewidth=0.5)
        if panel.lines:
            panel.legend(frameon=False, fontsize=8)


def kernels(figure: Any, filters: np.ndarray) -> None:
    """Draws first-layer kernels, [rows, columns, 3, kernels], each scaled by its largest weight (paper Figure 3)."""
    count = filters.shape[-1]
    columns = min(16, count)
    rows = -(-count // columns)
    figure.set_size_inches(8, 0.52 * rows + 0.1)
    largest = np.abs(filters).max(axis=(0, 1, 2), keepdims=True)
    tiles = np.moveaxis(0.5 + filters / (2 * np.maximum(largest, 1e-12)), -1, 0)
    for number, panel in enumerate(np.ravel(figure.subplots(rows, columns, squeeze=False))):
        panel.axis("off")
        if number < count:
            panel.imshow(tiles[number], interpolation="nearest")


def training_images(figure: Any, images: np.ndarray, labels: Sequence[str]) -> None:
    """Draws augmented training images, uint8, [images, crop, crop, 3], with their labels."""
    columns = 8
    rows = -(-len(images) // columns)
    figure.set_size_inches(8, 1.2 * rows)
    for panel, image, label in zip(figure.subplots(rows, columns, squeeze=False).ravel(), images, labels, strict=True):
        _show(panel, image, label)


def predictions(
    figure: Any, images: np.ndarray, labels: Sequence[str], predicted: Sequence[Sequence[tuple[str, float]]]
) -> None:
    """Draws images with bars for their most probable classes, the label in green (paper Figure 4, left).

    Args:
      figure: the figure to draw on.
      images: uint8, [images, size, size, 3].
      labels: the class name of each.
      predicted: (class name, probability) pairs of each, the most probable first.
    """
    columns = 4
    rows = -(-len(images) // columns)
    figure.set_size_inches(8, 2.9 * rows)
    panels = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 2] * rows)
    for panel in panels.ravel():
        panel.axis("off")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(number, columns)
        _show(panels[2 * row, column], image, label)
        colors = [RIGHT if name == label else WRONG for name, _ in predicted[number]]
        _bars(panels[2 * row + 1, column], predicted[number], colors, longest=17)


def explanation(
    figure: Any,
    image: np.ndarray,
    predicted: Sequence[tuple[str, float]],
    drops: np.ndarray,
    covered: tuple[np.ndarray, Sequence[str]],
    saliency: np.ndarray,
) -> None:
    """Draws an image, its most probable classes, and below, where a grey square or a pixel changes the prediction.

    Args:
      figure: the figure to draw on.
      image: uint8, [crop, crop, 3].
      predicted: (class name, probability) pairs, the most probable first.
      drops: how far the square lowers the probability of the first class, in [-1, 1], [places, places].
      covered: the prediction with the square at each place, as index into names, int, [places, places]; the names.
      saliency: the size of the gradient at each pixel, [crop, crop].
    """
    figure.set_size_inches(8, 5.5)
    grid = figure.add_gridspec(3, 3, height_ratios=[1, 1.35, 0.07])
    bars = figure.add_subplot(grid[0, 1:])
    _bars(bars, predicted, [TRAIN, *[MARK] * (len(predicted) - 1)], longest=40)
    whole, squares, classes, gradient, legend = (
        figure.add_subplot(grid[cell]) for cell in ((0, 0), (1, 0), (1, 1), (1, 2), (2, 1))
    )
    for panel, title in (
        (whole, "the image"),
        (bars, "the likeliest classes"),
        (squares, f"grey square: {_short(predicted[0][0], 12)} drops by"),
        (classes, "prediction with the square"),
        (gradient, "gradient"),
        (legend, ""),
    ):
        panel.axis("off")
        panel.set_title(title, fontsize=9)
    for panel in (squares, classes):
        panel.imshow(image.mean(axis=-1), "gray", vmin=0, vmax=255)
    whole.imshow(image)
    extent, largest = whole.images[0].get_extent(), max(float(np.abs(drops).max()), 1e-6)
    strength = 0.15 + 0.7 * np.abs(drops) / largest
    style = {"vmin": -largest, "vmax": largest, "interpolation": "bilinear", "extent": extent}
    heat = squares.imshow(drops, "RdBu_r", alpha=strength, **style)
    scale = figure.colorbar(heat, cax=figure.add_subplot(grid[2, 0]), orientation="horizontal", format="{x:.1%}")
    scale.set_ticks([-largest, 0, largest])
    scale.solids.set_alpha(1)
    scale.ax.tick_params(labelsize=8)
    numbers, names = covered
    classes.imshow(numbers, "tab10", vmin=0, vmax=9, alpha=0.6, interpolation="nearest", extent=extent)
    for number, name in enumerate(names):
        legend.plot([], [], "s", color=f"C{number}", label=_short(name, 12))
    legend.legend(loc="upper center", frameon=False, fontsize=8, ncols=3, handletextpad=0, columnspacing=1)
    gradient.imshow(saliency, "inferno", vmin=0, vmax=max(float(np.quantile(saliency, 0.99)), 1e-12))


def strongest_maps(figure: Any, layers: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draws the maps of each layer, [maps, height, width], with the numbers of their kernels, [maps], in a row."""
    columns = max(len(maps) for _, maps in layers.values())
    figure.set_size_inches(8, 1.15 * len(layers))
    rows = figure.subplots(len(layers), columns, squeeze=False)
    for panel in rows.ravel():
        panel.axis("off")
    for row, (name, (kernels, maps)) in zip(rows, layers.items(), strict=True):
        row[0].text(-0.1, 0.5, name, transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=9)
        for panel, kernel, values in zip(row, kernels, maps, strict=False):
            panel.imshow(values, "magma", vmin=0)
            panel.set_title(str(kernel), fontsize=8, pad=2)


def neighbours(
    figure: Any, images: np.ndarray, labels: Sequence[str], near: np.ndarray, near_labels: Sequence[Sequence[str]]
) -> None:
    """Draws images, each followed by its nearest training images, [images, near, size, size, 3] (Figure 4, right)."""
    figure.set_size_inches(8, 1.35 * len(images))
    panels = figure.subplots(len(images), near.shape[1] + 1, squeeze=False)
    for (first, *others), image, label, pictures, names in zip(panels, images, labels, near, near_labels, strict=True):
        _show(first, image, label, weight="bold")
        for panel, picture, name in zip(others, pictures, names, strict=True):
            _show(panel, picture, name, color=RIGHT if name == label else WRONG)


def confusion(figure: Any, counts: np.ndarray, names: Sequence[str]) -> None:
    """Draws a confusion matrix, label by prediction, as fractions of each row; with counts if there are few classes."""
    classes, short = len(names), [_short(name, 14) for name in names]
    side, fontsize = 3.6 + 0.14 * min(classes, 30), 8 if classes <= 20 else 6
    figure.set_size_inches(side + 0.8, side)
    panel = figure.subplots()
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = panel.imshow(fractions, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(picture, ax=panel, label="fraction of the class", shrink=0.8)
    panel.set_xticks(range(classes), short, rotation=90, fontsize=fontsize)
    panel.set_yticks(range(classes), short, fontsize=fontsize)
    panel.set(xlabel="prediction", ylabel="label")
    if classes <= ANNOTATED:
        for row, column in np.argwhere(counts):
            color = "black" if fractions[row, column] > 0.55 else "white"
            panel.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=color)


def _bars(panel: Any, predicted: Sequence[tuple[str, float]], colors: Sequence[str], longest: int) -> None:
    """Draws a bar for each (class name, probability) pair, with its name cut at `longest` characters."""
    lengths = [probability for _, probability in predicted]
    panel.barh(range(len(lengths)), lengths, color=colors, alpha=0.55, height=0.85)
    panel.set(xlim=(0, 1.2), ylim=(4.5, -0.5))
    for rank, (name, probability) in enumerate(predicted):
        panel.text(0.02, rank, _short(name, longest), va="center", fontsize=7.5)
        panel.text(1.2, rank, f"{probability:.0%}", va="center", ha="right", fontsize=7.5)


def _show(panel: Any, image: np.ndarray, title: str, **style: str) -> None:
    panel.axis("off")
    panel.imshow(image)
    panel.set_title(_short(title, 14), fontsize=8, pad=2, **style)


def _short(name: str, length: int) -> str:
    """Shortens a name to `length` characters and escapes what matplotlib cannot draw or would read as a formula."""
    name = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name).replace("$", "\\$")
    return name if len(name) <= length else name[: length - 1] + "…"
