"""Every decision in which the paper, its source, Caffe and a run may differ, and what it is expected to cost.

"Source" is run 145 of the 2012 code (abbreviations: `layers.py`), "Caffe" its bvlc_alexnet. A text says first what
counts and then, in brackets, details that do not: two texts agree if they are the same up to the bracket. Costs are
top-1 / top-5 points of error on ImageNet, if nothing else is said. #N is a run of the source, CHM layer-params-N.cfg;
MIS is Mishkin et al. 2016, of CaffeNet on 128 pixels.
"""

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.fidelity import descriptions
from alexnet_jax.fidelity.descriptions import Describe
from alexnet_jax.models.alexnet import AlexNet

REFERENCES = ("paper", "source", "caffe")
UNKNOWN, UNMEASURED = "not told", "not measured"


@dataclasses.dataclass(frozen=True)
class Decision:
    """Something that can be done in several ways.

    Attributes:
      name: what it is about.
      keys: of the config, on which it depends, beside the preset.
      describe: what a run does.
      paper, source, caffe: what they did; the same words for the same thing.
      where: that can be read.
      cost: what the choice matters.
    """

    name: str
    keys: tuple[str, ...]
    describe: Describe
    paper: str
    source: str
    caffe: str
    where: str
    cost: str = UNMEASURED


@dataclasses.dataclass(frozen=True)
class Row:
    """A decision and what a run makes of it."""

    decision: Decision
    this_run: str

    def agrees(self, reference: str) -> bool | None:
        """Whether the run does what "paper", "source" or "caffe" did; None if that is not told."""
        theirs = _gist(getattr(self.decision, reference))
        return None if theirs == UNKNOWN else theirs == _gist(self.this_run)

    @property
    def is_disputed(self) -> bool:
        """Whether not all are known to have done the same."""
        return any(self.agrees(reference) is False for reference in REFERENCES)


def explain(config: ConfigDict, model: AlexNet) -> list[Row]:
    """All decisions of a run; `model` is the one that its config describes."""
    return [Row(decision, decision.describe(config, model)) for decision in DECISIONS]


def bookkeeping(config: ConfigDict) -> list[str]:
    """The settings of a run that change nothing but how it is done, as "key=value"."""
    return [f"{key}={value!r}" for key, value in config_lib.free(config.to_dict()).items()]


def _gist(text: str) -> str:
    return text.partition(" (")[0]


_OPTIMIZER = ("schedule", "factor", "patience", "threshold", "cooldown", "minimum_rate", "min_divisions", "step_epochs")

DECISIONS: Sequence[Decision] = (
    Decision(
        "data set",
        ("data.name", "data.synthetic_examples", "data.validation_fraction", "data.test_fraction"),
        descriptions.data,
        *("imagenet2012 (and 2010, 2009)", "imagenet2012 (and 2010)", "imagenet2012"),
        where="paper section 2",
        cost="2010 has labelled test images: 37.5 / 17.0 there, 40.7 / 18.2 on 2012",
    ),
    Decision(
        "image",
        ("data.image_size", "data.max_megapixels"),
        descriptions.image,
        *("shorter side 256, central square", "shorter side 256, central square", "warped to 256 x 256"),
        where="paper section 2; CC2 make-data; Caffe examples/imagenet/readme.md",
    ),
    Decision(
        "stored as",
        ("data.storage", "data.jpeg_quality"),
        descriptions.stored,
        *(UNKNOWN, "jpeg of quality 95 (the 2014 code)", UNKNOWN),
        where="CC2 make-data/make-data.py",
    ),
    Decision(
        "crops",
        ("data.crop", "data.cropping", "data.image_size"),
        descriptions.crop,
        *("random windows of 224 (2,048 with mirror images)", "random windows of 224", "random windows of 227"),
        where="paper section 4.1; CHM convdata_jpeg.py; Caffe train_val.prototxt",
        cost="224 without the overhang of the source gives 54 x 54 outputs in conv1, not the 55 x 55 of the paper",
    ),
    Decision(
        "crops shared by",
        (),
        descriptions.always("1 image"),
        *(UNKNOWN, "32 images in a row", "1 image"),
        where="CHM convdata_jpeg.py crop_chunk",
    ),
    Decision(
        "mirrored",
        ("data.mirror",),
        descriptions.mirror,
        *("half of the images",) * 3,
        where="paper section 4.1",
        cost="without crops and mirror images substantial overfitting",
    ),
    Decision(
        "colour noise",
        (
            "data.color_noise",
            "data.color_noise_form",
            "data.color_noise_until_epoch",
            "data.pca_std",
            "data.pca_vectors",
        ),
        descriptions.color_noise,
        *(
            "N(0, 0.1) on the eigenvalues",
            "N(0, 0.1) on the standard deviations, image / 1.1, until epoch 67",
            "none",
        ),
        where="paper section 4.1; CHM convdata_jpeg.py and layer-params-145.cfg",
        cost="none at all: over +1 top-1, by the paper; eigenvalues of 255 grey levels are far stronger noise",
    ),
    Decision(
        "mean",
        ("data.mean_form", "data.mean"),
        descriptions.mean,
        *(
            "the mean image where the crop lies",
            "the centre of the mean image, from every crop",
            "the mean image where the crop lies",
        ),
        where="paper section 2; CHM convdata_jpeg.py data_mean_crop; Caffe data_transformer.cpp",
        cost="one number for all: no better (#136)",
    ),
    Decision(
        "scale",
        ("data.std",),
        descriptions.scale,
        *("grey levels as they are",) * 3,
        where="paper section 2",
        cost="initialisation and rate are made for grey levels",
    ),
    Decision(
        "order of images",
        (),
        descriptions.always("new each epoch"),
        *(UNKNOWN, "the same each epoch", "shuffled once"),
        where="CC2 python_util/data.py; Caffe examples/imagenet/create_imagenet.sh",
    ),
    Decision(
        "targets",
        ("label_smoothing", "data.mixup"),
        descriptions.targets,
        *("the labels",) * 3,
        where="paper section 3.5",
    ),
    Decision(
        "layers",
        ("model.hidden_width", "model.num_classes", "model.without_layers"),
        descriptions.widths,
        *("conv 96-conv 256-conv 384-conv 384-conv 256-fc 4096-fc 4096-fc 1000",) * 3,
        where="paper section 3.5",
        cost="without a middle layer about +2 top-1 (paper section 7); half the hidden units: +2.6 top-1 (MIS)",
    ),
    Decision(
        "windows",
        (),
        descriptions.windows,
        *("11 x 11 every 4, 5 x 5, 3 x 3, 3 x 3, 3 x 3",) * 3,
        where="paper section 3.5",
    ),
    Decision(
        "towers",
        ("model.towers", "model.cross_tower"),
        descriptions.towers,
        *("2, which meet in conv3, fc6, fc7, fc8",) * 3,
        where="paper section 3.2; Caffe group: 2",
        cost="towers that meet in fc6 first: +1.2 / +1.1 (#150); one of half the width: +1.7 / +1.2 (#145-half)",
    ),
    Decision(
        "activation",
        ("model.activation",),
        descriptions.activation,
        *("relu",) * 3,
        where="paper section 3.1",
        cost="tanh: +7.0 top-1, PReLU: -1.4 (MIS); tanh takes six times the epochs on CIFAR-10 (figure 1)",
    ),
    Decision(
        "layers 1 and 2: then",
        ("model.lrn",),
        descriptions.order,
        *(
            "activation, norm, pool; activation, norm, pool",
            "norm, pool, activation; activation, norm, norm within maps, pool",
            "activation, norm, pool; activation, norm, pool",
        ),
        where="paper section 3.5; CHM layers-145.cfg",
        cost="norm before pooling and ReLU: 0.1 better (#131 against #120); no norm in layer 2: 0.2 better (#167)",
    ),
    Decision(
        "normalisation",
        ("model.lrn", "model.towers"),
        descriptions.lrn,
        *(
            "k 2, alpha 0.0001, size 5, over all channels",
            "k 2, alpha 2e-05, size 5, over each tower's channels",
            "k 1, alpha 2e-05, size 5, over all channels",
        ),
        where="paper section 3.3; CHM layer.py:1183; Caffe lrn_layer.cpp",
        cost="none: +1.4 / +1.2 (#148)",
    ),
    Decision(
        "pooling",
        ("model.pool_window", "model.pool_kind"),
        descriptions.pooling,
        *("max of 3 x 3, every 2",) * 3,
        where="paper section 3.4",
        cost="2 x 2: +0.4 / +0.3 (#147); average: +3.6 top-1 (MIS)",
    ),
    Decision(
        "edges",
        (),
        descriptions.edges,
        *(
            UNKNOWN,
            "the last window of convolution and pooling may hang over",
            "the last window of pooling may hang over",
        ),
        where="CHM layer.py:1003; Caffe pooling_layer.cpp",
        cost="none: with its own size of crops each has 55 x 55 outputs in conv1",
    ),
    Decision(
        "dropout",
        ("model.dropout_rate", "model.dropout_convention"),
        descriptions.dropout,
        *(
            "0.5 after fc6, fc7; outputs scaled in testing",
            "0.5 after fc6, fc7; outputs scaled in testing",
            "0.5 after fc6, fc7; outputs scaled in training",
        ),
        where="paper section 4.2; CHM layer.cu HiddenSexLayer; Caffe dropout_layer.cpp",
        cost="none at all: substantial overfitting (section 4.2); 0.3: -2.6 top-1 (MIS)",
    ),
    Decision(
        "kernels start from",
        ("init_from",),
        descriptions.initial_weights,
        *(
            "0.01: conv1 conv2 conv3 conv4 conv5 fc6 fc7 fc8",
            "0.01: conv1 conv2 fc6 fc7 fc8; 0.03: conv3 conv4 conv5",
            "0.01: conv1 conv2 conv3 conv4 conv5 fc8; 0.005: fc6 fc7",
        ),
        where="paper section 5; CHM layers-145.cfg; Caffe train_val.prototxt",
        cost="0.01 in conv3 to conv5 shrinks signals to a third a layer: it may not start for long",
    ),
    Decision(
        "biases start from",
        ("init_from",),
        descriptions.initial_biases,
        *(
            "0: conv1 conv3 fc8; 1: conv2 conv4 conv5 fc6 fc7",
            "0: conv1 conv3 fc8; 1: conv2 conv4 conv5 fc6 fc7",
            "0: conv1 conv3 fc8; 0.1: conv2 conv4 conv5 fc6 fc7",
        ),
        where="paper section 5; CHM layers-145.cfg; Caffe models/bvlc_alexnet/readme.md",
        cost='in Caffe 1 "gave flat loss"',
    ),
    Decision(
        "batch",
        ("batch_size",),
        lambda config, _: f"{config.batch_size} images",
        *("128 images", "128 images", "256 images"),
        where="paper section 5; CHM convnet.py; Caffe train_val.prototxt",
        cost="256 at twice the rate: the same (centre 42.27 / 19.66 against 42.34 / 19.58, #170)",
    ),
    Decision(
        "first rate",
        ("optimizer.learning_rate", "optimizer.batch_scaling", "optimizer.base_batch_size"),
        descriptions.first_rate,
        *("0.01",) * 3,
        where="paper section 5",
    ),
    Decision(
        "momentum",
        ("optimizer.momentum",),
        descriptions.momentum,
        *("0.9, the rate inside the velocity",) * 3,
        where="section 5",
    ),
    Decision(
        "weight decay",
        ("optimizer.weight_decay", "optimizer.weight_decay_overrides", "optimizer.decay_biases"),
        descriptions.decay,
        *("0.0005, of all parameters", "0.0005, of kernels", "0.0005, of kernels"),
        where="paper section 5; CHM layer.cu:565; Caffe decay_mult: 0",
        cost="none at all: a higher training error (section 5); 0.0001: +2.1 top-1 (MIS)",
    ),
    Decision(
        "rate of biases",
        ("optimizer.bias_rate_multiplier", "optimizer.bias_schedule"),
        descriptions.bias_rate,
        *(
            "1 times that of kernels, divided with it",
            "2 times that of kernels, never divided",
            "2 times that of kernels, divided with it",
        ),
        where="paper section 5; CHM layer-params-145.cfg; Caffe lr_mult: 2",
    ),
    Decision(
        "rate by layer",
        ("optimizer.rate_multipliers",),
        descriptions.layer_rates,
        *("all the same", "conv1/kernel x 0.1 from epoch 67; conv1/* x 0 from epoch 72", "all the same"),
        where="paper section 5; CHM layer-params-145.cfg",
    ),
    Decision(
        "schedule",
        (
            *(f"optimizer.{name}" for name in _OPTIMIZER),
            *("optimizer.dexp_target", "optimizer.dexp_steps", "optimizer.warmup_epochs", "eval_every_epochs"),
        ),
        descriptions.schedule,
        *(
            "x 0.1 when the validation error stops improving (three times)",
            "x 0.1 after 25, 51, 79 epochs (by hand)",
            "x 0.1 after 20, 40, 60, 80 epochs",
        ),
        where="paper section 5; CHM layer-params-145.cfg; Caffe solver.prototxt",
        cost="by a formula: 40.53 / 18.05 (#170) against 40.66 / 18.21, ten views; linear: -2.2 top-1 (MIS)",
    ),
    Decision(
        "length",
        ("epochs", "max_steps", "stop_at_train_error", "eval_every_epochs"),
        descriptions.length,
        *("90 epochs (roughly)", "90 epochs (91)", "90 epochs (450,000 steps)"),
        where="paper section 5; CHM layer-params-145.cfg; Caffe solver.prototxt",
        cost="44 more at higher rates: 40.25 / 17.99 with ten views (#145 continued)",
    ),
    Decision(
        "parameters tested",
        ("optimizer.ema_decay",),
        descriptions.tested,
        *("the last parameters",) * 3,
        where="paper section 5",
    ),
    Decision(
        "views of a test image",
        ("test_views",),
        descriptions.views,
        *("ten, probabilities averaged", "ten, probabilities averaged", "the centre"),
        where="paper section 4.1; CHM convdata_jpeg.py; Caffe train_val.prototxt",
        cost="the centre alone: +1.5 / +1.3 (2010), +1.81 / +1.53 (#170)",
    ),
    Decision(
        "precision",
        ("model.compute_dtype",),
        lambda config, _: config.model.compute_dtype,
        *("float32 (not told)", "float32", "float32"),
        where="CHM src",
    ),
    Decision("seed", ("seed",), lambda config, _: f"{config.seed}", *(UNKNOWN,) * 3, where="-"),
)
"""In the order in which an image meets them, then in that of training."""
