"""What the paper says matters, one idea at a time: what is changed, and what the paper and its source measured.

Errors are of ImageNet, top-1 / top-5 in points of percent, and changes of them: how much worse without the idea.
Sections and tables are the paper's; #N is a run of the source, CHM layers/layer-params-N.cfg.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A row of a table.

    Attributes:
      name: of its folder.
      what: is changed, in words.
      choice: added to those of the config file.
      changes: key of the config -> value.
      rate_factor: the learning rate is multiplied by it: not all networks learn at the same.
      views: of a test image: the baseline's runs are evaluated again with so many; None: runs of its own are trained.
      paper, source: what they found.
      where: that can be read.
    """

    name: str
    what: str
    choice: str = ""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate_factor: float = 1.0
    views: int | None = None
    paper: str = "-"
    source: str = "-"
    where: str = ""


def _without(layer: str) -> Ablation:
    return Ablation(
        f"without-{layer}",
        f"without {layer}",
        changes={"model.without_layers": (layer,)},
        paper="about +2, any middle layer" if layer.startswith("conv") else "-",
        where="section 7" if layer.startswith("conv") else "",
    )


PAPER = (
    Ablation(
        "baseline",
        "nothing",
        paper="40.7 / 18.2, ten views",
        source="40.66 / 18.21, ten views",
        where="table 2; #145",
    ),
    Ablation(
        "tanh",
        "tanh in place of ReLU",
        changes={"model.activation": "tanh"},
        paper="6 times as long to 25 % training error, CIFAR-10",
        where="figure 1",
    ),
    Ablation(
        "tanh-faster",
        "the same at ten times the rate",
        changes={"model.activation": "tanh"},
        rate_factor=10.0,
    ),
    Ablation(
        "no-lrn",
        "no response normalisation",
        changes={"model.lrn": "none"},
        paper="+1.4 / +1.2",
        source="+1.37 / +1.15",
        where="section 3.3; #148",
    ),
    Ablation(
        "plain-pooling",
        "pooling windows that do not overlap",
        changes={"model.pool_window": "plain"},
        paper="+0.4 / +0.3",
        source="+0.39 / +0.30",
        where="section 3.4; #147",
    ),
    Ablation(
        "no-dropout",
        "no dropout",
        changes={"model.dropout_rate": 0.0},
        paper="substantial overfitting; half as many iterations",
        where="section 4.2",
    ),
    Ablation(
        "no-crops",
        "central crops, not mirrored",
        changes={"data.cropping": "centre", "data.mirror": False},
        paper="substantial overfitting",
        where="section 4.1",
    ),
    Ablation(
        "no-colour-noise",
        "no colour noise",
        changes={"data.color_noise": 0.0},
        paper="over +1 top-1",
        where="section 4.1",
    ),
    Ablation(
        "one-tower",
        "one tower of the same width",
        changes={"model.towers": 1},
        paper="one of half the width: +1.7 / +1.2, 2010",
        source="half the width: +1.70 / +1.23, 2010",
        where="section 3.2; #145-half",
    ),
    Ablation(
        "ten-views",
        "ten views of a test image, not its centre alone",
        views=10,
        paper="-1.5 / -1.3, 2010",
        source="-1.81 / -1.53",
        where="section 6; #170",
    ),
    Ablation(
        "centre-view",
        "the centre of a test image alone, not ten views",
        views=1,
        paper="+1.5 / +1.3, 2010",
        source="+1.81 / +1.53",
        where="section 6; #170",
    ),
    Ablation(
        "no-decay",
        "no weight decay",
        changes={"optimizer.weight_decay": 0.0},
        paper="a higher training error",
        where="section 5",
    ),
    Ablation(
        "no-cross-tower",
        "towers that meet in fc6 first",
        changes={"model.cross_tower": False},
        source="+1.2 / +1.1",
        where="#150, conv2 wider",
    ),
    *map(_without, ("conv3", "conv4", "fc7")),
)

PRESETS = tuple(
    Ablation(preset, preset, choice=preset)
    for preset in ("source", "paper", "caffe", "caffenet", "single_tower", "owt", "bn")
)

MODERN = (
    Ablation(
        "2012",
        "nothing: the recipe of 2012 (small), its rate divided once",
        choice="small",
        changes={"optimizer.min_divisions": 1},
    ),
    Ablation("modern", "the modern recipe (small_modern)", choice="small_modern"),
)

TABLES = {"paper": PAPER, "presets": PRESETS, "modern": MODERN}
"""By name; the first row is what the others are compared with."""
