"""What a network saw in an image, as one HTML page and as one picture."""

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image

from alexnet_jax.inference import report_figures
from alexnet_jax.inference.explanation import Explanation, Neighbours
from alexnet_jax.inference.imagenet import title
from alexnet_jax.inference.loaded_run import TrainedRun
from alexnet_jax.inference.report import Figure, Part, Report

TOP = 5
"""Most classes whose probabilities are shown, and most predictions that the map of predictions tells apart."""


def explanation_report(run: TrainedRun, file: str, explanation: Explanation) -> Report:
    """The page on an explanation.

    Args:
      run: the trained network.
      file: the name of the image.
      explanation: what `explain_prediction` returned for it.
    """
    names = [title(name) for name in run.outputs]
    sections: dict[str, Sequence[Part]] = {"Prediction": [_prediction(explanation, names)]}
    if explanation.maps:
        sections["Strongest kernels"] = [_maps(explanation)]
    if explanation.neighbours:
        sections["Nearest training images"] = [_neighbours(explanation, names, explanation.neighbours)]
    size, name = len(explanation.image), names[explanation.label]
    probability = explanation.probabilities.max()
    summary = f"{run.config.model.preset} takes the central {size} pixels for {name}: probability {probability:.1%}."
    return Report(f"What {run.path.resolve().name} saw in {file}", summary, sections)


def picture(report: Report) -> bytes:
    """The figures of a report below each other, as the content of a PNG file."""
    figures = [np.asarray(PIL.Image.open(io.BytesIO(figure.png()))) for figure in report.figures()]
    file = io.BytesIO()
    PIL.Image.fromarray(np.concatenate(figures)).save(file, format="png", optimize=True)
    return file.getvalue()


def _prediction(explanation: Explanation, names: Sequence[str]) -> Figure:
    probabilities, drops, (labels, ranks) = explanation.probabilities, explanation.drops, explanation.frequent(TOP)
    then = [*(names[label] for label in labels), *(["others"] if ranks.max() == len(labels) else [])]
    predicted = [(names[k], float(probabilities[k])) for k in np.argsort(-probabilities, kind="stable")[:TOP]]
    name, lowest = names[explanation.label], float((probabilities.max() - drops).min())
    text = (
        f"Above, what the network saw of the image, and the likeliest classes. Below, a grey square of "
        f"{explanation.square} pixels lies at each place in turn: where it is red, the square lowers the probability "
        f"of {name}, down to {lowest:.1%}; where it is blue, it raises it; the prediction with the square there is "
        "beside it (Zeiler and Fergus 2014, section 4.2). Right, the pixels whose change would change the score of "
        f"{name} most, by its gradient (Simonyan et al. 2014, section 3)."
    )
    data = explanation.image, predicted, drops, (ranks, then), explanation.saliency
    return Figure("prediction", text, report_figures.explanation, data)


def _maps(explanation: Explanation) -> Figure:
    shapes = ", ".join(f"{name} {' x '.join(map(str, of.shape))}" for name, of in explanation.maps.items())
    text = (
        "The maps with the highest mean, of layers from the first to the last (height x width x maps: "
        f"{shapes}), with the numbers of their kernels; each from 0, black, to its highest value."
    )
    rows = {name: (of.kernels, of.maps) for name, of in explanation.maps.items()}
    return Figure("maps", text, report_figures.strongest_maps, (rows,))


def _neighbours(explanation: Explanation, names: Sequence[str], near: Neighbours) -> Figure:
    among = f"{near.searched:,} of {near.total:,}, drawn at random" if near.searched < near.total else f"{near.total:,}"
    text = (
        f"The image with its prediction and, among the training images ({among}), those whose features in "
        f"{near.layer}, the input of the last layer, have the most similar direction: cosine distances "
        f"{near.distances[0]:.3f} to {near.distances[-1]:.3f}. Labels that are not the prediction are red."
    )
    labels = [names[label] for label in near.labels]
    data = explanation.image[None], [names[explanation.label]], near.images[None], [labels]
    return Figure("neighbours", text, report_figures.neighbours, data)
