"""Every key of a config: default, unit, meaning, what its value must be, and whether it may change when a run goes on.

`configs/alexnet.py` starts from these defaults; `config.check` refuses a value that breaks its rules.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a value must be: a test of it, and the words that follow "config.KEY=VALUE" where it fails."""

    holds: Callable[[Any], bool]
    text: str


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the config.

    Attributes:
      default: its value if nothing else is said; None where the preset or the data decide.
      comment: what it means, with its unit and its choices.
      rules: what its value must be.
      kind: the type of its value where the default is None.
      resume: whether a run may go on with another value: "fixed" (no: it would be another experiment), "length" (yes,
        and the run gets shorter or longer by it) or "free" (yes: it changes no result).
      is_shared: whether all processes of a run must have the same value.
    """

    default: Any
    comment: str
    rules: tuple[Rule, ...] = ()
    kind: type | None = None
    resume: str = "fixed"
    is_shared: bool = True


def key(default: Any, comment: str, *rules: Rule, **more: Any) -> Key:
    """A key whose value must fulfil all of the rules."""
    return Key(default, comment, rules, **more)


def choice(*known: Any) -> Rule:
    """One of the given values."""
    words = [str(value) if value != "" else "empty" for value in known]
    return Rule(lambda value: value in known, f"must be {', '.join(words[:-1])} or {words[-1]}")


def one_of(*names: Any) -> Rule:
    """A name that some module knows; the words are those of `errors.check_choice`."""
    return Rule(lambda value: value in names, f"is unknown; there are: {', '.join(map(str, names))}")


def at_least(bound: int) -> Rule:
    """A number that is not below the bound."""
    return Rule(lambda value: value >= bound, f"must be at least {bound}")


def is_row(value: Any, *kinds: type) -> bool:
    """Whether a value is a sequence of the given kinds, numbers finite; an int will do for a float."""
    if not isinstance(value, list | tuple) or len(value) != len(kinds):
        return False
    return all(
        isinstance(item, int | float) and math.isfinite(item) if kind is float else isinstance(item, kind)
        for item, kind in zip(value, kinds, strict=True)
    )


POSITIVE = Rule(lambda value: value > 0, "must be more than 0")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "must not be negative")
BELOW_1 = Rule(lambda value: 0 <= value < 1, "must be in [0, 1)")
FRACTION = Rule(lambda value: 0 < value < 1, "must be between 0 and 1")
PER_CHANNEL = Rule(lambda value: is_row(value, float, float, float), "must be three numbers: R, G, B")

KEYS: dict[str, Any] = {
    "seed": key(
        0,
        "root of all randomness: initialisation, order, crops, dropout",
        NOT_NEGATIVE,
        Rule(lambda value: value < 2**31, "must be less than 2^31"),
    ),
    "init_from": key("", 'trained run, or file of it, whose parameters this one starts from; "": drawn by the seed'),
    "batch_size": key(128, "images a step, over all devices", at_least(1), resume="length"),
    "epochs": key(90.0, "passes over the training split", POSITIVE, resume="length"),
    "max_steps": key(0, "ends the run after so many steps; 0: only `epochs` counts", NOT_NEGATIVE, resume="length"),
    "stop_at_train_error": key(
        0.0, "ends the run once so few training images of an epoch were wrong; 0: never", BELOW_1, resume="length"
    ),
    "eval_every_epochs": key(1.0, "epochs between evaluations on the validation split", POSITIVE),
    "eval_batch_size": key(128, "images a step of evaluation; changes no result", at_least(1), resume="free"),
    "label_smoothing": key(0.0, "fraction of a training label that all classes divide evenly", BELOW_1),
    "test_views": key(
        1, "views that a test prediction is averaged over: 1 (centre), 2 (and mirror), 10 (paper)", choice(1, 2, 10)
    ),
    "log_every_steps": key(50, "steps between loss lines in metrics.jsonl", at_least(1), resume="free"),
    "stuck_after_steps": key(
        5000,
        "a run that still guesses after so many steps ends with a diagnosis; 0: never",
        NOT_NEGATIVE,
        resume="free",
    ),
    "compilation_cache_dir": key(
        "data/compiled", 'folder of compiled programs, which start faster; "": none', resume="free", is_shared=False
    ),
    "profile_steps": key(
        0, "steps to trace after the first three, into profile/ of the run; 0: none", NOT_NEGATIVE, resume="free"
    ),
    "data": {
        "name": key("digits", "digits, folder, imagenet2012, synthetic or tfds:NAME"),
        "dir": key("", "folder of photographs, or of ImageNet's tar files", resume="free", is_shared=False),
        "prepared_dir": key("data", "folder of prepared data sets", resume="free", is_shared=False),
        "storage": key(
            "auto", "how images are prepared: jpeg, raw (pixels), auto (raw up to 4 GB)", one_of("auto", "jpeg", "raw")
        ),
        "jpeg_quality": key(
            90,
            "of prepared images, 1 to 100; the 2014 source took 95",
            Rule(lambda value: 1 <= value <= 100, "must be from 1 to 100"),
        ),
        "validation_fraction": key(
            0.1, "fraction of train held out where a data set has no validation split", FRACTION
        ),
        "test_fraction": key(0.1, "the same of a folder that has neither val/ nor test/", BELOW_1),
        "max_quarantined": key(0.01, "fraction of unreadable images at which preparing stops", BELOW_1, resume="free"),
        "max_megapixels": key(100.0, "an image of more pixels counts as unreadable", POSITIVE),
        "residence": key(
            "auto",
            "of training images: disk, host (its memory), device (its memory), auto",
            one_of("auto", "device", "host", "disk"),
            resume="free",
        ),
        "synthetic_examples": key(1024, "training images of the synthetic data set", at_least(1)),
        "image_size": key(
            256,
            "pixels; shorter side to this, then the central square (paper section 2)",
            Rule(lambda value: 1 <= value <= 4096, "must be from 1 to 4096"),
        ),
        "crop": key(227, "pixels; side of the window that the network sees", at_least(1)),
        "cropping": key(
            "random",
            "random (paper), resized (a random part of random shape, scaled), centre",
            one_of("random", "resized", "centre"),
        ),
        "mirror": key(True, "reflect half of the training images"),
        "mixup": key(
            0.0, "parameter of the Beta distribution by which pairs of images are mixed; 0: none are", NOT_NEGATIVE
        ),
        "color_noise": key(
            0.0, "standard deviation of the factors on the colours' principal components; 0: none", NOT_NEGATIVE
        ),
        "color_noise_form": key(
            "source", "source (on standard deviations, then /1.1), paper (on eigenvalues)", one_of("source", "paper")
        ),
        "color_noise_until_epoch": key(0.0, "epoch that ends the noise; 0: none does", NOT_NEGATIVE),
        "pca_std": key(
            None,
            "grey levels along the colours' components; None: as the images have",
            Rule(lambda value: is_row(value, float, float, float) and min(value) >= 0, "must be three numbers >= 0"),
            kind=tuple,
        ),
        "pca_vectors": key(
            None,
            "the components as columns, rows R, G, B; None: as the images have",
            Rule(
                lambda value: len(value) == 3 and all(is_row(row, float, float, float) for row in value),
                "must be three rows of three numbers",
            ),
            kind=tuple,
        ),
        "mean_form": key(
            "channel",
            "what is subtracted: channel, image_centre (source), image_crop (Caffe)",
            one_of("channel", "image_centre", "image_crop"),
        ),
        "mean": key(
            None, "of channel: grey levels of R, G, B; None: those of the training images", PER_CHANNEL, kind=tuple
        ),
        "std": key(
            (1.0, 1.0, 1.0),
            "grey levels of R, G, B to divide by; the 2012 source does not divide",
            PER_CHANNEL,
            Rule(lambda value: all(std > 0 for std in value), "must be more than 0"),
        ),
        "num_threads": key(0, "reading threads; 0: one a core", NOT_NEGATIVE, resume="free", is_shared=False),
    },
    "model": {
        "preset": key("source", "which AlexNet; the keys below replace parts of it, None: as the preset says"),
        "activation": key(
            None,
            "relu, tanh, scaled_tanh, sigmoid, leaky_relu, prelu",
            one_of("relu", "tanh", "scaled_tanh", "sigmoid", "leaky_relu", "prelu"),
            kind=str,
        ),
        "lrn": key(
            None,
            "convention of response normalisation: source, paper, caffe, none",
            one_of("source", "paper", "caffe", "none"),
            kind=str,
        ),
        "pool_window": key(
            None,
            "overlapping (3x3 every 2 pixels), plain (2x2 every 2 pixels)",
            one_of("overlapping", "plain"),
            kind=str,
        ),
        "pool_kind": key(None, "max, avg", one_of("max", "avg"), kind=str),
        "dropout_rate": key(None, "probability of dropping a unit, in [0, 1)", BELOW_1, kind=float),
        "dropout_convention": key(
            None, "2012 (test: x0.5), inverted (train: x2)", one_of("2012", "inverted"), kind=str
        ),
        "towers": key(None, "1, 2", one_of(1, 2), kind=int),
        "cross_tower": key(True, "False: conv3 too sees its own tower alone; the towers first meet in fc6"),
        "without_layers": key(
            (),
            'names of layers to leave out, like ("conv3",); their pooling stays',
            Rule(lambda value: is_row(value, *[str] * len(value)), "must be names of layers: ('conv3',)"),
        ),
        "hidden_width": key(None, "units in each hidden fully connected layer", at_least(1), kind=int),
        "num_classes": key(
            None, "units of the last layer; None: as many as the data have classes", at_least(1), kind=int
        ),
        "compute_dtype": key(
            "float32",
            "of activations and products: float32, bfloat16; all else is float32",
            choice("float32", "bfloat16"),
        ),
    },
    "optimizer": {
        "learning_rate": key(0.01, "of kernels, at the start", POSITIVE),
        "batch_scaling": key(
            "none",
            "of the learning rate, with batch_size / base_batch_size: none, linear, sqrt",
            choice("none", "linear", "sqrt"),
        ),
        "base_batch_size": key(128, "images a step that `learning_rate` is meant for", at_least(1)),
        "momentum": key(0.9, "fraction of the velocity that a step keeps", BELOW_1),
        "weight_decay": key(0.0005, "of kernels, inside the gradient (L2)", NOT_NEGATIVE),
        "weight_decay_overrides": key(
            (),
            "((pattern, decay), ...) over names like conv1/kernel",
            Rule(
                lambda value: all(is_row(row, str, float) and row[1] >= 0 for row in value),
                "must be ((pattern, decay), ...), no decay negative",
            ),
        ),
        "decay_biases": key(False, "decay the other parameters as well"),
        "bias_rate_multiplier": key(2.0, "biases learn so many times as fast as kernels", POSITIVE),
        "bias_schedule": key(
            "same",
            "same (as kernels), constant (first learning rate), halfway (/10 at half-time)",
            choice("same", "constant", "halfway"),
        ),
        "rate_multipliers": key(
            (),
            "((pattern, from epoch, factor), ...); 0 freezes",
            Rule(
                lambda value: all(is_row(row, str, float, float) and row[2] >= 0 for row in value),
                "must be ((pattern, from epoch, factor), ...), no factor negative",
            ),
        ),
        "schedule": key(
            "plateau",
            "plateau, constant, step, dexp, cosine (to 0 at the end), linear (so too)",
            one_of("plateau", "constant", "step", "dexp", "cosine", "linear"),
        ),
        "factor": key(0.1, "of plateau and step: the learning rate is multiplied by this", FRACTION),
        "patience": key(5, "of plateau: evaluations without improvement before a drop", at_least(1)),
        "threshold": key(
            0.001,
            "of plateau: relative improvement that counts",
            NOT_NEGATIVE,
            Rule(lambda value: value < 1, "must be less than 1"),
        ),
        "cooldown": key(0, "of plateau: evaluations after a drop that do not count", NOT_NEGATIVE),
        "minimum_rate": key(1e-5, "of plateau: never lower", NOT_NEGATIVE),
        "min_divisions": key(
            3, "of plateau: at least so many drops, spread evenly over the run if need be", NOT_NEGATIVE
        ),
        "step_epochs": key(
            (30.0, 60.0, 80.0),
            "of step: epochs of the drops",
            Rule(lambda value: is_row(value, *[float] * len(value)), "must be numbers of epochs"),
        ),
        "dexp_target": key(
            250.0,
            "of dexp: the learning rate ends divided by this",
            Rule(lambda value: value > 1, "must be more than 1"),
        ),
        "dexp_steps": key(4, "of dexp: number of equal parts with a learning rate of their own", at_least(2)),
        "warmup_epochs": key(0.0, "in which every learning rate grows from 0; 0: none", NOT_NEGATIVE),
        "ema_decay": key(0.0, "of the moving average of parameters that tests use; 0: no average", BELOW_1),
    },
    "parallel": {
        "mode": key(
            "pmap",
            "pmap (each device trains on its shard of the images), mesh (networks over devices)",
            choice("pmap", "mesh"),
            resume="free",
        ),
        "num_devices": key(0, "devices to use, of each process; 0: all", NOT_NEGATIVE, resume="free"),
        "micro_batches": key(
            1, "equal parts of a batch that a device computes in turn: takes less memory", at_least(1), resume="free"
        ),
        "towers": key(
            1, "of mesh: devices that hold one network, with 1/n of the features each", at_least(1), resume="free"
        ),
        "deterministic": key(
            False, "on GPUs too the same bits each time, at a cost; a CPU always gives the same", resume="free"
        ),
        "coordinator": key(
            "",
            'HOST:PORT of process 0 of many; auto: as the cluster says; "": one process',
            Rule(
                lambda value: value in ("", "auto") or re.fullmatch(r".+:\d+", value) is not None,
                "must be HOST:PORT, auto or empty",
            ),
            resume="free",
        ),
        "num_processes": key(
            None, "of all hosts together; None: as the cluster says", at_least(1), kind=int, resume="free"
        ),
        "process_id": key(
            None,
            "this process's number, from 0; None: as the cluster says",
            NOT_NEGATIVE,
            kind=int,
            resume="free",
            is_shared=False,
        ),
        "timeout_seconds": key(
            600,
            "without progress, after which a process that waits for another gives up",
            at_least(1),
            resume="free",
        ),
    },
    "checkpoint": {
        "keep": key(2, "latest checkpoints kept beside the best one", at_least(1), resume="free"),
        "every_steps": key(
            0,
            "steps between further checkpoints, left out where training would wait; 0: none",
            NOT_NEGATIVE,
            resume="free",
        ),
        "on_failure": key(
            "stop",
            "if one cannot be written: stop, continue (the last must succeed in any case)",
            choice("stop", "continue"),
            resume="free",
        ),
    },
}
