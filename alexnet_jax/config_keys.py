"""Every key of a config: its default, meaning, unit and valid values, and whether a resumed run may change it.

`configs/alexnet.py` starts from these defaults; `config.check` refuses a value that breaks its rules.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A condition on a value: its test, the words after "config.KEY=VALUE" in the error, and choices for the docs."""

    holds: Callable[[Any], bool]
    text: str
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the config.

    Attributes:
      resume: whether a resumed run may have another value: "fixed" (no: it would be another experiment), "length" (yes:
        it decides how far, or how, the run goes on) or "free" (yes: it changes no result).
      default: value if none is given; None where the preset or the data decide.
      comment: meaning, with unit and choices.
      rules: conditions on the value.
      kind: type of the value where the default is None.
      is_shared: whether all processes of a run must have the same value. If not, it belongs to the machine, as a folder
        does: a run that is loaded has the default, whatever its config says.
    """

    resume: str
    default: Any
    comment: str
    rules: tuple[Rule, ...] = ()
    kind: type | None = None
    is_shared: bool = True


def _key(resume: str, default: Any, comment: str, *rules: Rule, **more: Any) -> Key:
    choices = [choice for rule in rules for choice in rule.choices]
    return Key(resume, default, f"{comment}: {', '.join(choices)}" if choices else comment, rules, **more)


fixed = functools.partial(_key, "fixed")
length = functools.partial(_key, "length")
free = functools.partial(_key, "free")


def one_of(*choices: str) -> Rule:
    """The value must be one of these, each written "value" or "value (its meaning)"."""
    values = [choice.split(" ")[0] for choice in choices]
    return Rule(lambda value: str(value) in values, f"is unknown; there are: {', '.join(values)}", choices)


def at_least(bound: int) -> Rule:
    """The number must not be below the bound."""
    return Rule(lambda value: value >= bound, f"must be at least {bound}")


def more_than(bound: int) -> Rule:
    """The number must be above the bound."""
    return Rule(lambda value: value > bound, f"must be more than {bound}")


def up_to(last: int) -> Rule:
    """The number must be from 1 to `last`."""
    return Rule(lambda value: 1 <= value <= last, f"must be from 1 to {last}")


def is_row(value: Any, *kinds: type) -> bool:
    """Whether a value is a sequence of items of these types, numbers finite; an int passes for a float."""
    if not isinstance(value, list | tuple) or len(value) != len(kinds):
        return False
    return all(
        isinstance(item, int | float) and math.isfinite(item) if kind is float else isinstance(item, kind)
        for item, kind in zip(value, kinds, strict=True)
    )


def row_of(kind: type, text: str) -> Rule:
    """The value must be a sequence, of any length, of items of one type."""
    return Rule(lambda value: is_row(value, *[kind] * len(value)), text)


def rows_of(*kinds: type, text: str) -> Rule:
    """The value must be a sequence of rows of these types, no last number negative."""
    return Rule(lambda value: all(is_row(row, *kinds) and row[-1] >= 0 for row in value), text)


POSITIVE = more_than(0)
NOT_NEGATIVE = Rule(lambda value: value >= 0, "must not be negative")
BELOW_1 = Rule(lambda value: 0 <= value < 1, "must be in [0, 1)")
FRACTION = Rule(lambda value: 0 < value < 1, "must be between 0 and 1")
PROBABILITY = Rule(lambda value: 0 <= value <= 1, "must be in [0, 1]")
TRIPLE = Rule(lambda value: is_row(value, float, float, float), "must be three numbers: R, G, B")
SCALES = Rule(lambda value: TRIPLE.holds(value) and min(value) > 0, "must be three numbers > 0: R, G, B")
LENGTHS = Rule(lambda value: TRIPLE.holds(value) and min(value) >= 0, "must be three numbers >= 0")
MATRIX = Rule(lambda value: len(value) == 3 and all(map(TRIPLE.holds, value)), "must be three rows of three numbers")
SEED = Rule(lambda value: value < 2**31, "must be less than 2^31")
ADDRESS = Rule(lambda value: re.fullmatch(r"(.+:\d+|auto)?", value) is not None, "must be HOST:PORT, auto or empty")
LOCAL = Rule(lambda value: "://" not in value, "must be a folder of this machine")
WEIGHTS = Rule(
    lambda value: re.fullmatch(r"none|balanced|([^,]+:\d+(\.\d+)?)(,[^,]+:\d+(\.\d+)?)*", value) is not None,
    "must be none, balanced, or weights by class: cat:2,dog:0.5",
)
DECAYS = rows_of(str, float, text="must be ((pattern, decay), ...), no decay negative")
WIDTHS = Rule(lambda value: is_row(value, *[int] * len(value)) and min(value, default=1) > 0, "must be numbers > 0")
FACTORS = rows_of(str, float, float, text="must be ((pattern, from epoch, factor), ...), no factor negative")

KEYS: dict[str, Key] = {
    "seed": fixed(0, "root of all randomness: initialisation, order, crops, dropout", NOT_NEGATIVE, SEED),
    "init_from": fixed("", 'trained run or weight file whose parameters this one starts from; "": drawn by the seed'),
    "batch_size": length(128, "images per step, over all devices", at_least(1)),
    "epochs": length(90.0, "passes over the training split", POSITIVE),
    "max_steps": length(0, "ends the run after so many steps; 0: only `epochs` counts", NOT_NEGATIVE),
    "stop_at_train_error": length(0.0, "ends the run at this training error of an epoch; 0: never", BELOW_1),
    "early_stopping_patience": length(
        0,
        "ends the run after so many evaluations without a lower validation error, to test the best; 0: never",
        NOT_NEGATIVE,
    ),
    "eval_every_epochs": fixed(1.0, "epochs between evaluations on the validation split", POSITIVE),
    "eval_batch_size": free(128, "images per evaluation step; changes no result", at_least(1)),
    "label_smoothing": fixed(0.0, "fraction of a training label spread evenly over all classes", BELOW_1),
    "test_views": fixed(1, "views a test prediction averages", one_of("1 (centre)", "2 (and mirror)", "10 (paper)")),
    "log_every_steps": free(50, "steps between loss lines in metrics.jsonl", at_least(1)),
    "log_images": free(False, "start TensorBoard's record with a picture of augmented training images"),
    "stuck_after_steps": free(5000, "ends a run still at chance level after so many steps; 0: never", NOT_NEGATIVE),
    "compilation_cache_dir": free("data/compiled", 'folder of compiled programs; "": none', is_shared=False),
    "profile_steps": free(0, "steps to trace after the first three, into profile/ of the run; 0: none", NOT_NEGATIVE),
    # The images.
    "data.name": fixed("digits", "digits, folder, imagenet2012, synthetic or tfds:NAME; arrays: from Python"),
    "data.dir": free("", "folder of photographs, of ImageNet's tar files, or of a set's own files", is_shared=False),
    "data.labels": free("", "table of file and label; for folders in folders: outer or inner", is_shared=False),
    "data.prepared_dir": free("data", "folder of prepared data sets", LOCAL, is_shared=False),
    "data.storage": fixed("auto", "prepared images", one_of("auto (raw up to 4 GB)", "jpeg", "raw (pixels)")),
    "data.jpeg_quality": fixed(90, "quality of prepared images, 1 to 100; the 2014 source used 95", up_to(100)),
    "data.validation_fraction": fixed(0.1, "fraction to hold out if there is no validation split", FRACTION),
    "data.test_fraction": fixed(0.1, "the same for testing, if a folder has neither val/ nor test/", BELOW_1),
    "data.sampling": fixed(
        "uniform", "images of an epoch", one_of("uniform (each once)", "balanced (each class equally often)")
    ),
    "data.class_weights": fixed("none", "weights of training losses: none, balanced, or cat:2,dog:0.5", WEIGHTS),
    "data.max_quarantined": free(0.01, "fraction of unreadable images above which preparing stops", BELOW_1),
    "data.max_megapixels": fixed(100.0, "an image of more pixels counts as unreadable", POSITIVE),
    "data.cache": free("auto", "where training images are cached", one_of("auto", "device", "host", "disk")),
    "data.synthetic_examples": fixed(1024, "training images of the synthetic data set", at_least(1)),
    "data.image_size": fixed(256, "side of the resized images, in pixels (paper section 2)", up_to(4096)),
    "data.crop": fixed(227, "side of the network's input, in pixels", at_least(1)),
    # Their augmentation.
    "data.cropping": fixed(
        "random", "crops of training images", one_of("random (paper)", "resized (random box, scaled)", "centre")
    ),
    "data.mirror": fixed(True, "mirror half of the training images"),
    "data.resized_min_area": fixed(0.08, "for resized: smallest box, as a fraction of the image's area", FRACTION),
    "data.resized_max_aspect": fixed(4 / 3, "for resized: highest aspect ratio of a box, or 1 / lowest", at_least(1)),
    "data.rotation": fixed(0.0, "largest angle, in degrees, by which images are rotated; 0: none", NOT_NEGATIVE),
    "data.brightness": fixed(0.0, "s: brightness is multiplied by a factor in 1 - s to 1 + s; 0: not", NOT_NEGATIVE),
    "data.contrast": fixed(0.0, "s: contrast is multiplied by a factor in 1 - s to 1 + s; 0: not", NOT_NEGATIVE),
    "data.saturation": fixed(0.0, "s: saturation is multiplied by a factor in 1 - s to 1 + s; 0: not", NOT_NEGATIVE),
    "data.trivial_augment": fixed(False, "one of 14 operations of random strength on each image (TrivialAugment)"),
    "data.random_erasing": fixed(0.0, "probability that a random box of an image is erased", PROBABILITY),
    "data.mixup": fixed(0.0, "parameter of the Beta distribution of mixup weights; 0: none", NOT_NEGATIVE),
    "data.cutmix": fixed(0.0, "parameter of the Beta distribution of CutMix's areas; 0: none", NOT_NEGATIVE),
    "data.color_noise": fixed(0.0, "standard deviation of the colour noise's factors; 0: none", NOT_NEGATIVE),
    "data.color_noise_form": fixed(
        "source", "what its factors scale", one_of("source (standard deviations, then /1.1)", "paper (eigenvalues)")
    ),
    "data.color_noise_until_epoch": fixed(0.0, "epoch at which the colour noise ends; 0: never", NOT_NEGATIVE),
    "data.pca_std": fixed(None, "std along the colours' components, grey levels; None: measured", LENGTHS, kind=tuple),
    "data.pca_vectors": fixed(None, "components as columns, rows R, G, B; None: measured", MATRIX, kind=tuple),
    "data.mean_form": fixed(
        "channel", "mean to subtract", one_of("channel", "image_centre (source)", "image_crop (Caffe)")
    ),
    "data.mean": fixed(None, "for channel: mean R, G, B in grey levels; None: measured", TRIPLE, kind=tuple),
    "data.std": fixed((1.0, 1.0, 1.0), "divisors of R, G, B, in grey levels; the source: 1", SCALES),
    "data.num_threads": free(0, "threads that read images; 0: one per core", NOT_NEGATIVE, is_shared=False),
    # The network.
    "model.preset": fixed("source", "which AlexNet; the keys below replace parts of it, None: as the preset says"),
    "model.activation": fixed(
        None, "nonlinearity", one_of("relu", "tanh", "scaled_tanh", "sigmoid", "leaky_relu", "prelu"), kind=str
    ),
    "model.lrn": fixed(
        None, "convention of response normalisation", one_of("source", "paper", "caffe", "none"), kind=str
    ),
    "model.pool_window": fixed(
        None, "window of pooling, every 2 pixels", one_of("overlapping (3x3)", "plain (2x2)"), kind=str
    ),
    "model.pool_kind": fixed(None, "pooling", one_of("max", "avg"), kind=str),
    "model.dropout_rate": fixed(None, "probability of dropping a unit", BELOW_1, kind=float),
    "model.dropout_convention": fixed(
        None, "when outputs are scaled", one_of("2012 (test: x0.5)", "inverted (train: x2)"), kind=str
    ),
    "model.towers": fixed(None, "columns of the network that meet in few layers", one_of("1", "2"), kind=int),
    "model.cross_tower": fixed(True, "whether conv3 sees both towers; False: they first meet in fc6"),
    "model.without_layers": fixed(
        (), "layers to leave out; their pooling stays", row_of(str, "must be names of layers: ('conv3',)")
    ),
    "model.hidden_width": fixed(None, "units in each hidden fully connected layer", at_least(1), kind=int),
    "model.hidden_widths": fixed((), "units of its hidden fully connected layers in turn; (): the preset's", WIDTHS),
    "model.num_classes": fixed(None, "units of the last layer; None: the data's classes", at_least(1), kind=int),
    "model.compute_dtype": fixed("float32", "type of activations and products", one_of("float32", "bfloat16")),
    "model.matmul_precision": fixed(
        "default",
        "rounding of float32 products",
        one_of("default (GPU: TF32, TPU: bfloat16)", "high (GPU: TF32, TPU: three bfloat16)", "highest (float32)"),
    ),
    # Learning.
    "optimizer.learning_rate": fixed(0.01, "learning rate of kernels, at the start", POSITIVE),
    "optimizer.batch_scaling": fixed(
        "none", "scales the learning rate by batch_size / base_batch_size", one_of("none", "linear", "sqrt")
    ),
    "optimizer.base_batch_size": fixed(128, "images per step that `learning_rate` is meant for", at_least(1)),
    "optimizer.name": fixed("momentum", "update rule", one_of("momentum (paper)", "adamw", "lars", "lamb")),
    "optimizer.momentum": fixed(0.9, "fraction of the velocity that a step keeps", BELOW_1),
    "optimizer.beta1": fixed(0.9, "for adamw and lamb: decay of the moving average of gradients", BELOW_1),
    "optimizer.beta2": fixed(0.999, "for adamw and lamb: decay of the average of squared gradients", BELOW_1),
    "optimizer.epsilon": fixed(1e-8, "for adamw and lamb: added to the root of that average", POSITIVE),
    "optimizer.trust_coefficient": fixed(
        0.001, "for lars: norm of a step over that of its array, at learning rate 1", POSITIVE
    ),
    "optimizer.clip_norm": fixed(0.0, "gradients are scaled down to this global norm; 0: never", NOT_NEGATIVE),
    "optimizer.weight_decay": fixed(
        0.0005, "weight decay of kernels, in the gradient (L2); for adamw and lamb decoupled", NOT_NEGATIVE
    ),
    "optimizer.weight_decay_overrides": fixed((), "((pattern, decay), ...) over names like conv1/kernel", DECAYS),
    "optimizer.decay_biases": fixed(False, "apply weight_decay to the other parameters too"),
    "optimizer.bias_learning_rate_multiplier": fixed(2.0, "learning rate of biases over that of kernels", POSITIVE),
    "optimizer.bias_schedule": fixed(
        "same", "of biases", one_of("same (as kernels)", "constant (first learning rate)", "halfway (/10 at half-time)")
    ),
    "optimizer.learning_rate_multipliers": fixed((), "((pattern, from epoch, factor), ...); factor 0 freezes", FACTORS),
    "optimizer.schedule": fixed(
        "plateau",
        "learning rate over time",
        one_of("plateau", "constant", "step", "dexp", "cosine (to 0 at the end)", "linear (to 0)", "quadratic (to 0)"),
    ),
    "optimizer.factor": fixed(0.1, "for plateau and step: each drop multiplies the learning rate by this", FRACTION),
    "optimizer.patience": fixed(5, "for plateau: evaluations without improvement before a drop", at_least(1)),
    "optimizer.threshold": fixed(0.001, "for plateau: relative improvement that counts", BELOW_1),
    "optimizer.cooldown": fixed(0, "for plateau: evaluations after a drop that do not count", NOT_NEGATIVE),
    "optimizer.minimum_learning_rate": fixed(1e-5, "for plateau: lowest learning rate", NOT_NEGATIVE),
    "optimizer.min_drops": fixed(0, "for plateau: minimum number of drops in a run", NOT_NEGATIVE),
    "optimizer.step_epochs": fixed(
        (30.0, 60.0, 80.0), "for step: epochs of the drops", row_of(float, "must be numbers of epochs")
    ),
    "optimizer.dexp_target": fixed(250.0, "for dexp: first learning rate over the last", more_than(1)),
    "optimizer.dexp_steps": fixed(4, "for dexp: equal intervals of the run, each with one learning rate", at_least(2)),
    "optimizer.restart_epochs": length(
        (), "epochs at which the schedule starts anew", row_of(float, "must be numbers of epochs: (30.0,)")
    ),
    "optimizer.warmup_epochs": fixed(0.0, "warm-up, in which every learning rate grows from 0; 0: none", NOT_NEGATIVE),
    "optimizer.ema_decay": fixed(0.0, "decay of the moving average of parameters to evaluate with; 0: none", BELOW_1),
    # Devices and hosts.
    "parallel.mode": free("pmap", "parallelism", one_of("pmap (data parallel)", "mesh (data and tensor parallel)")),
    "parallel.num_devices": free(0, "devices to use in each process; 0: all", NOT_NEGATIVE),
    "parallel.micro_batches": free(
        1, "micro-batches that a device computes in turn in each step, to save memory", at_least(1)
    ),
    "parallel.towers": free(1, "for mesh: tensor parallel devices, which share the features of a network", at_least(1)),
    "parallel.deterministic": free(False, "bitwise reproducible on GPUs too, but slower; a CPU always is"),
    "parallel.coordinator": free("", 'HOST:PORT of process 0; auto: from the cluster; "": one process', ADDRESS),
    "parallel.num_processes": free(None, "processes on all hosts; None: from the cluster", at_least(1), kind=int),
    "parallel.process_id": free(
        None, "number of this process, from 0; None: from the cluster", NOT_NEGATIVE, kind=int, is_shared=False
    ),
    "parallel.timeout_seconds": free(600, "seconds without progress after which a process gives up", at_least(1)),
    # Checkpoints.
    "checkpoint.keep": free(2, "newest checkpoints kept in addition to the best one", at_least(1)),
    "checkpoint.every_steps": free(
        0, "steps between checkpoints, in addition to those of evaluations; 0: no more", NOT_NEGATIVE
    ),
    "checkpoint.on_failure": free(
        "stop", "what follows a failed save; the last of a run must succeed", one_of("stop", "continue")
    ),
}

RENAMED = {
    "data.residence": "data.cache",
    "optimizer.bias_rate_multiplier": "optimizer.bias_learning_rate_multiplier",
    "optimizer.min_divisions": "optimizer.min_drops",
    "optimizer.minimum_rate": "optimizer.minimum_learning_rate",
    "optimizer.rate_multipliers": "optimizer.learning_rate_multipliers",
}
"""Keys by the names that they had in earlier versions; stored configs may still have these."""
