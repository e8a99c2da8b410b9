"""Every key of a config: default, unit, meaning, what its value must be, and whether it may change when a run goes on.

`configs/alexnet.py` starts from these defaults; `config.check` refuses a value that breaks its rules.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a value must be: a test of it, the words that follow "config.KEY=VALUE" where it fails, and the choices."""

    holds: Callable[[Any], bool]
    text: str
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the config.

    Attributes:
      resume: whether a run may go on with another value: "fixed" (no: it would be another experiment), "length" (yes,
        and the run gets shorter or longer by it) or "free" (yes: it changes no result).
      default: its value if nothing else is said; None where the preset or the data decide.
      comment: what it means, with its unit and its choices.
      rules: what its value must be.
      kind: the type of its value where the default is None.
      is_shared: whether all processes of a run must have the same value.
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
    """One of some values, each given as "value" or as "value (what it means)"."""
    values = [choice.split(" ")[0] for choice in choices]
    return Rule(lambda value: str(value) in values, f"is unknown; there are: {', '.join(values)}", choices)


def at_least(bound: int) -> Rule:
    """A number that is not below the bound."""
    return Rule(lambda value: value >= bound, f"must be at least {bound}")


def more_than(bound: int) -> Rule:
    """A number above the bound."""
    return Rule(lambda value: value > bound, f"must be more than {bound}")


def up_to(last: int) -> Rule:
    """A number from 1 to the last."""
    return Rule(lambda value: 1 <= value <= last, f"must be from 1 to {last}")


def is_row(value: Any, *kinds: type) -> bool:
    """Whether a value is a sequence of the given kinds, numbers finite; an int will do for a float."""
    if not isinstance(value, list | tuple) or len(value) != len(kinds):
        return False
    return all(
        isinstance(item, int | float) and math.isfinite(item) if kind is float else isinstance(item, kind)
        for item, kind in zip(value, kinds, strict=True)
    )


def row_of(kind: type, text: str) -> Rule:
    """A sequence, of any length, of one kind."""
    return Rule(lambda value: is_row(value, *[kind] * len(value)), text)


def rows_of(*kinds: type, text: str) -> Rule:
    """Rows of the given kinds whose last number is not negative."""
    return Rule(lambda value: all(is_row(row, *kinds) and row[-1] >= 0 for row in value), text)


POSITIVE = more_than(0)
NOT_NEGATIVE = Rule(lambda value: value >= 0, "must not be negative")
BELOW_1 = Rule(lambda value: 0 <= value < 1, "must be in [0, 1)")
FRACTION = Rule(lambda value: 0 < value < 1, "must be between 0 and 1")
TRIPLE = Rule(lambda value: is_row(value, float, float, float), "must be three numbers: R, G, B")
SCALES = Rule(lambda value: TRIPLE.holds(value) and min(value) > 0, "must be three numbers > 0: R, G, B")
LENGTHS = Rule(lambda value: TRIPLE.holds(value) and min(value) >= 0, "must be three numbers >= 0")
MATRIX = Rule(lambda value: len(value) == 3 and all(map(TRIPLE.holds, value)), "must be three rows of three numbers")
SEED = Rule(lambda value: value < 2**31, "must be less than 2^31")
ADDRESS = Rule(lambda value: re.fullmatch(r"(.+:\d+|auto)?", value) is not None, "must be HOST:PORT, auto or empty")
DECAYS = rows_of(str, float, text="must be ((pattern, decay), ...), no decay negative")
FACTORS = rows_of(str, float, float, text="must be ((pattern, from epoch, factor), ...), no factor negative")

KEYS: dict[str, Key] = {
    "seed": fixed(0, "root of all randomness: initialisation, order, crops, dropout", NOT_NEGATIVE, SEED),
    "init_from": fixed("", 'trained run or weight file whose parameters this one starts from; "": drawn by the seed'),
    "batch_size": length(128, "images a step, over all devices", at_least(1)),
    "epochs": length(90.0, "passes over the training split", POSITIVE),
    "max_steps": length(0, "ends the run after so many steps; 0: only `epochs` counts", NOT_NEGATIVE),
    "stop_at_train_error": length(0.0, "ends the run at this training error of an epoch; 0: never", BELOW_1),
    "eval_every_epochs": fixed(1.0, "epochs between evaluations on the validation split", POSITIVE),
    "eval_batch_size": free(128, "images a step of evaluation; changes no result", at_least(1)),
    "label_smoothing": fixed(0.0, "fraction of a training label that all classes divide evenly", BELOW_1),
    "test_views": fixed(1, "views a test prediction averages", one_of("1 (centre)", "2 (and mirror)", "10 (paper)")),
    "log_every_steps": free(50, "steps between loss lines in metrics.jsonl", at_least(1)),
    "stuck_after_steps": free(5000, "ends a run that still guesses after so many steps; 0: never", NOT_NEGATIVE),
    "compilation_cache_dir": free("data/compiled", 'folder of compiled programs; "": none', is_shared=False),
    "profile_steps": free(0, "steps to trace after the first three, into profile/ of the run; 0: none", NOT_NEGATIVE),
    # The images.
    "data.name": fixed("digits", "digits, folder, imagenet2012, synthetic or tfds:NAME"),
    "data.dir": free("", "folder of photographs, or of ImageNet's tar files", is_shared=False),
    "data.prepared_dir": free("data", "folder of prepared data sets", is_shared=False),
    "data.storage": fixed("auto", "prepared images", one_of("auto (raw up to 4 GB)", "jpeg", "raw (pixels)")),
    "data.jpeg_quality": fixed(90, "of prepared images, 1 to 100; the 2014 source took 95", up_to(100)),
    "data.validation_fraction": fixed(0.1, "of train, held out where a data set has no validation split", FRACTION),
    "data.test_fraction": fixed(0.1, "the same of a folder that has neither val/ nor test/", BELOW_1),
    "data.max_quarantined": free(0.01, "fraction of unreadable images at which preparing stops", BELOW_1),
    "data.max_megapixels": fixed(100.0, "an image of more pixels counts as unreadable", POSITIVE),
    "data.residence": free("auto", "where training images are cached", one_of("auto", "device", "host", "disk")),
    "data.synthetic_examples": fixed(1024, "training images of the synthetic data set", at_least(1)),
    "data.image_size": fixed(256, "pixels; shorter side to this, then central square (paper section 2)", up_to(4096)),
    "data.crop": fixed(227, "pixels; side of the window that the network sees", at_least(1)),
    # Their augmentation.
    "data.cropping": fixed(
        "random",
        "part of an image to train on",
        one_of("random (paper)", "resized (a random part of random shape, scaled)", "centre"),
    ),
    "data.mirror": fixed(True, "reflect half of the training images"),
    "data.mixup": fixed(0.0, "parameter of the Beta distribution of mixup weights; 0: none", NOT_NEGATIVE),
    "data.color_noise": fixed(0.0, "standard deviation of the colour noise's factors; 0: none", NOT_NEGATIVE),
    "data.color_noise_form": fixed(
        "source", "what its factors scale", one_of("source (standard deviations, then /1.1)", "paper (eigenvalues)")
    ),
    "data.color_noise_until_epoch": fixed(0.0, "epoch that ends the noise; 0: none does", NOT_NEGATIVE),
    "data.pca_std": fixed(None, "grey levels along the colours' components; None: as measured", LENGTHS, kind=tuple),
    "data.pca_vectors": fixed(None, "components as columns, rows R, G, B; None: as measured", MATRIX, kind=tuple),
    "data.mean_form": fixed(
        "channel", "mean to subtract", one_of("channel", "image_centre (source)", "image_crop (Caffe)")
    ),
    "data.mean": fixed(None, "of channel: grey levels R, G, B; None: the training images'", TRIPLE, kind=tuple),
    "data.std": fixed((1.0, 1.0, 1.0), "grey levels R, G, B to divide by; the source: 1", SCALES),
    "data.num_threads": free(0, "reading threads; 0: one a core", NOT_NEGATIVE, is_shared=False),
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
    "model.towers": fixed(None, "parts of the network that meet in few layers", one_of("1", "2"), kind=int),
    "model.cross_tower": fixed(True, "False: conv3 too sees its own tower alone; the towers first meet in fc6"),
    "model.without_layers": fixed(
        (), "layers to leave out; their pooling stays", row_of(str, "must be names of layers: ('conv3',)")
    ),
    "model.hidden_width": fixed(None, "units in each hidden fully connected layer", at_least(1), kind=int),
    "model.num_classes": fixed(None, "units of the last layer; None: the data's classes", at_least(1), kind=int),
    "model.compute_dtype": fixed("float32", "of activations and products alone", one_of("float32", "bfloat16")),
    # Learning.
    "optimizer.learning_rate": fixed(0.01, "of kernels, at the start", POSITIVE),
    "optimizer.batch_scaling": fixed(
        "none", "of the learning rate, with batch_size / base_batch_size", one_of("none", "linear", "sqrt")
    ),
    "optimizer.base_batch_size": fixed(128, "images a step that `learning_rate` is meant for", at_least(1)),
    "optimizer.momentum": fixed(0.9, "fraction of the velocity that a step keeps", BELOW_1),
    "optimizer.weight_decay": fixed(0.0005, "of kernels, inside the gradient (L2)", NOT_NEGATIVE),
    "optimizer.weight_decay_overrides": fixed((), "((pattern, decay), ...) over names like conv1/kernel", DECAYS),
    "optimizer.decay_biases": fixed(False, "decay the other parameters as well"),
    "optimizer.bias_rate_multiplier": fixed(2.0, "biases learn so many times as fast as kernels", POSITIVE),
    "optimizer.bias_schedule": fixed(
        "same", "of biases", one_of("same (as kernels)", "constant (first learning rate)", "halfway (/10 at half-time)")
    ),
    "optimizer.rate_multipliers": fixed((), "((pattern, from epoch, factor), ...); 0 freezes", FACTORS),
    "optimizer.schedule": fixed(
        "plateau",
        "learning rate over time",
        one_of("plateau", "constant", "step", "dexp", "cosine (to 0 at the end)", "linear (so too)"),
    ),
    "optimizer.factor": fixed(0.1, "of plateau and step: the learning rate is multiplied by this", FRACTION),
    "optimizer.patience": fixed(5, "of plateau: evaluations without improvement before a drop", at_least(1)),
    "optimizer.threshold": fixed(0.001, "of plateau: relative improvement that counts", BELOW_1),
    "optimizer.cooldown": fixed(0, "of plateau: evaluations after a drop that do not count", NOT_NEGATIVE),
    "optimizer.minimum_rate": fixed(1e-5, "of plateau: never lower", NOT_NEGATIVE),
    "optimizer.min_divisions": fixed(3, "of plateau: at least so many drops, spread over the run", NOT_NEGATIVE),
    "optimizer.step_epochs": fixed(
        (30.0, 60.0, 80.0), "of step: epochs of the drops", row_of(float, "must be numbers of epochs")
    ),
    "optimizer.dexp_target": fixed(250.0, "of dexp: the learning rate ends divided by this", more_than(1)),
    "optimizer.dexp_steps": fixed(4, "of dexp: number of equal parts with a learning rate of their own", at_least(2)),
    "optimizer.warmup_epochs": fixed(0.0, "in which every learning rate grows from 0; 0: none", NOT_NEGATIVE),
    "optimizer.ema_decay": fixed(0.0, "of the moving average of parameters that tests use; 0: none", BELOW_1),
    # Devices and hosts.
    "parallel.mode": free("pmap", "what devices share", one_of("pmap (the images)", "mesh (images and networks)")),
    "parallel.num_devices": free(0, "devices to use, of each process; 0: all", NOT_NEGATIVE),
    "parallel.micro_batches": free(
        1, "equal parts of a batch that a device computes in turn: less memory", at_least(1)
    ),
    "parallel.towers": free(1, "of mesh: devices that hold one network, with 1/n of the features each", at_least(1)),
    "parallel.deterministic": free(
        False, "on GPUs too the same bits each time, at a cost; a CPU always gives the same"
    ),
    "parallel.coordinator": free("", 'HOST:PORT of process 0; auto: as the cluster says; "": one process', ADDRESS),
    "parallel.num_processes": free(None, "of all hosts; None: as the cluster says", at_least(1), kind=int),
    "parallel.process_id": free(
        None, "this process's number, from 0; None: as the cluster says", NOT_NEGATIVE, kind=int, is_shared=False
    ),
    "parallel.timeout_seconds": free(600, "without progress, after which a waiting process gives up", at_least(1)),
    # Checkpoints.
    "checkpoint.keep": free(2, "latest checkpoints kept beside the best one", at_least(1)),
    "checkpoint.every_steps": free(
        0, "steps between further checkpoints, left out where training would wait; 0: none", NOT_NEGATIVE
    ),
    "checkpoint.on_failure": free(
        "stop", "if one cannot be written; the last must succeed", one_of("stop", "continue")
    ),
}
