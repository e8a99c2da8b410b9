"""Describes the decisions of a config in words, to compare them with those of the paper and of other codes.

Each function that decisions.toml names takes a config and the network that it describes, and returns a `Choice`.
"""

import dataclasses
import operator
from collections.abc import Callable

from ml_collections import ConfigDict

from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.presets import Layer
from alexnet_jax.schedules import scaled_learning_rate


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a config does in one decision: `value` in words, which are compared, and `note`, which is only shown."""

    value: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.note})" if self.note else self.value


Describe = Callable[[ConfigDict, AlexNet], Choice]


def template(text: str | dict[str, str], key: str, note: str = "") -> Describe:
    """Returns a function that describes a decision by filling values into a text with `str.format`.

    Args:
      text: a text with fields like {config.KEY} and {model.ATTRIBUTE}, or one such text for each value of `key`.
      key: the config key that selects the text.
      note: the text of the note.
    """

    def describe(config: ConfigDict, model: AlexNet) -> Choice:
        chosen = text if isinstance(text, str) else text[str(operator.attrgetter(key)(config))]
        return Choice(chosen.format(config=config, model=model), note.format(config=config, model=model))

    return describe


def data_set(config: ConfigDict, _: AlexNet) -> Choice:
    """Name of the data set, and the fractions held out if it has no validation or test split."""
    data = config.data
    size = f", {data.synthetic_examples} images" if data.name == "synthetic" else ""
    held_out = f"{data.validation_fraction:g} for validation, {data.test_fraction:g} for testing"
    return Choice(f"{data.name}{size}", f"fractions of training images, if a split is missing: {held_out}")


def crops(config: ConfigDict, _: AlexNet) -> Choice:
    """Which crops of a resized image the network is trained on."""
    data = config.data
    if data.cropping == "resized":
        boxes = f"{data.resized_min_area:.0%} to 100 % of the image, aspect ratio up to {data.resized_max_aspect:.4g}"
        return Choice(f"a random area, resized to {data.crop}", boxes)
    positions = (data.image_size - data.crop + 1) ** 2
    note = f"{positions:,} positions" if data.cropping == "random" else ""
    return Choice(f"{data.cropping} windows of {data.crop}", note)


def distortions(config: ConfigDict, _: AlexNet) -> Choice:
    """Augmentation by methods that 2012 did not have."""
    data = config.data
    names = ("brightness", "contrast", "saturation")
    chosen = [f"rotation by up to {data.rotation:g} degrees"] if data.rotation else []
    chosen += [f"{name} changed by up to {data[name]:g}" for name in names if data[name]]
    chosen += ["TrivialAugment"] if data.trivial_augment else []
    chosen += [f"a box erased with probability {data.random_erasing:g}"] if data.random_erasing else []
    return Choice(", ".join(chosen) or "none")


def color_noise(config: ConfigDict, _: AlexNet) -> Choice:
    """The noise along the principal components of colours (paper section 4.1)."""
    data = config.data
    if not data.color_noise:
        return Choice("none")
    strength = f"{data.color_noise:g}"
    on = {"source": f"the standard deviations, image / {1 + data.color_noise:g}", "paper": "the eigenvalues"}
    until = f", until epoch {data.color_noise_until_epoch:g}" if data.color_noise_until_epoch else ""
    given = [f"{name} {value}" for name, value in (("std", data.pca_std), ("vectors", data.pca_vectors)) if value]
    components = f", components given: {', '.join(given)}" if given else ""
    return Choice(f"N(0, {strength}) on {on[data.color_noise_form]}{until}{components}")


def mean(config: ConfigDict, _: AlexNet) -> Choice:
    """Which mean is subtracted from pixels."""
    form = {
        "channel": "one number per channel",
        "image_centre": "the centre of the mean image, from every crop",
        "image_crop": "the mean image where the crop lies",
    }[config.data.mean_form]
    return Choice(form, _numbers(config.data.mean or ()))


def scale(config: ConfigDict, _: AlexNet) -> Choice:
    """What pixels are divided by after the mean is subtracted."""
    std = tuple(config.data.std)
    return Choice("grey levels as they are" if set(std) == {1.0} else f"divided by {_numbers(std)}")


def targets(config: ConfigDict, model: AlexNet) -> Choice:
    """Whether the targets are the labels, smoothed, mixed or weighted."""
    changes = [f"labels smoothed by {config.label_smoothing:g}"] if config.label_smoothing else []
    changes += [f"images mixed by Beta({config.data.mixup:g})"] if config.data.mixup else []
    changes += [f"boxes of images exchanged by Beta({config.data.cutmix:g})"] if config.data.cutmix else []
    weights = config.data.class_weights
    changes += [f"classes weighted: {weights}"] if weights != "none" else []
    loss = "" if model.loss == "cross_entropy" else model.loss.replace("_", " ")
    return Choice(", ".join(changes) or "the labels", loss)


def layers(config: ConfigDict, model: AlexNet) -> Choice:
    """The layers with weights and their numbers of features."""
    features = [f"{layer.kind} {layer.features or model.outputs}" for layer in model.layers]
    left_out = ", ".join(config.model.without_layers)
    branches = f"in branches, as those of {config.model.preset}" if any(layer.source for layer in model.layers) else ""
    return Choice("-".join(features), f"without {left_out}" if left_out else branches)


def windows(_: ConfigDict, model: AlexNet) -> Choice:
    """Window, stride and padding of each convolution."""
    layers = [layer for layer in model.layers if layer.kind != "fc"]
    strides = [f" every {layer.stride}" if layer.stride > 1 else "" for layer in layers]
    sizes = [f"{layer.kernel} x {layer.kernel}{stride}" for layer, stride in zip(layers, strides, strict=True)]
    return Choice(", ".join(sizes), f"padding {', '.join(str(layer.pad) for layer in layers)}")


def towers(_: ConfigDict, model: AlexNet) -> Choice:
    """The number of towers, and the layers in which each sees the other's channels."""
    meeting = [name for name, layer in _named(model)[1:] if not layer.own_tower]
    return Choice("1" if model.towers == 1 else f"2, which meet in {', '.join(meeting)}")


def after_first_layers(_: ConfigDict, model: AlexNet) -> Choice:
    """The operations after each of the first two layers, without normalisation that is switched off."""
    names = {"act": "activation", "lrn": "norm", "map_norm": "norm within maps", "bn": "batch norm"}
    off = ("lrn", "map_norm") if model.lrn is None else ()
    kept = [[names.get(name, name) for name in layer.then if name not in off] for layer in model.layers[:2]]
    return Choice("; ".join(map(", ".join, kept)))


def normalisation(_: ConfigDict, model: AlexNet) -> Choice:
    """The local response normalisation across channels."""
    norm = model.lrn
    if norm is None or not any("lrn" in layer.then for layer in model.layers):
        return Choice("none")
    reach = "each tower's channels" if norm.per_tower and model.towers > 1 else "all channels"
    return Choice(f"k {norm.k:g}, alpha {norm.alpha:g}, size {norm.size}, over {reach}")


def pooling(_: ConfigDict, model: AlexNet) -> Choice:
    """Kind, window and stride of pooling."""
    kinds = sorted({layer.pool for layer in model.layers if "pool" in layer.then})
    return Choice(f"{' and '.join(kinds)} of {model.pool_size} x {model.pool_size}, every 2")


def edges(_: ConfigDict, model: AlexNet) -> Choice:
    """Whether the last window may overhang the edge of a map."""
    hang = [name for name, ceil in (("convolution", model.conv_ceil), ("pooling", model.pool_ceil)) if ceil]
    return Choice(f"the last window of {' and '.join(hang)} may hang over" if hang else "only whole windows")


def dropout(_: ConfigDict, model: AlexNet) -> Choice:
    """Dropout rate, the layers it follows, and its convention."""
    rates = {name: layer.dropout for name, layer in _named(model) if "dropout" in layer.then}
    after = [name for name, rate in rates.items() if rate is None and model.dropout_rate]
    own = [f"{rate:g} after {name}" for name, rate in rates.items() if rate]
    if not after and not own:
        return Choice("none")
    scaled = {"2012": "outputs scaled in testing", "inverted": "outputs scaled in training"}[model.dropout_convention]
    shared = [f"{model.dropout_rate:g} after {', '.join(after)}"] if after else []
    return Choice(f"{', '.join(shared + own)}; {scaled}")


def initial_weights(config: ConfigDict, model: AlexNet) -> Choice:
    """The initial distribution of kernels, by layer."""
    return _initial(config, model, lambda layer: f"{layer.init}")


def initial_biases(config: ConfigDict, model: AlexNet) -> Choice:
    """The initial value of biases, by layer."""
    return _initial(config, model, _bias)


def _bias(layer: Layer) -> str:
    if layer.bias is None:
        return "none"
    return "torch" if layer.init == "torch" else f"{layer.bias:g}"


def learning_rate(config: ConfigDict, _: AlexNet) -> Choice:
    """The initial learning rate of kernels."""
    o = config.optimizer
    scaling = "" if o.batch_scaling == "none" else f"{o.batch_scaling}: {o.learning_rate:g} for {o.base_batch_size}"
    return Choice(f"{scaled_learning_rate(o, config.batch_size):g}", scaling)


def update_rule(config: ConfigDict, _: AlexNet) -> Choice:
    """How an update is made of gradients."""
    o = config.optimizer
    rule = f"momentum {o.momentum:g}, learning rate inside the velocity"
    if o.name in ("adamw", "lamb"):
        name = {"adamw": "AdamW", "lamb": "LAMB"}[o.name]
        rule = f"{name} of betas {o.beta1:g} and {o.beta2:g}, epsilon {o.epsilon:g}, weight decay decoupled"
    if o.name == "lars":
        rule = f"LARS of coefficient {o.trust_coefficient:g}, {rule}"
    return Choice(rule + (f", gradients of norm {o.clip_norm:g} at most" if o.clip_norm else ""))


def weight_decay(config: ConfigDict, _: AlexNet) -> Choice:
    """Weight decay, and the parameters it applies to."""
    o = config.optimizer
    own = "".join(f", {decay:g} of {pattern}" for pattern, decay in o.weight_decay_overrides)
    return Choice(f"{o.weight_decay:g}{own}, of {'all parameters' if o.decay_biases else 'kernels'}")


def layer_learning_rates(config: ConfigDict, _: AlexNet) -> Choice:
    """Layers with a learning rate of their own."""
    rules = config.optimizer.learning_rate_multipliers
    texts = [f"{pattern} x {factor:g} from epoch {epoch:g}" for pattern, epoch, factor in rules]
    return Choice("; ".join(texts) or "all the same")


def schedule(config: ConfigDict, _: AlexNet) -> Choice:
    """The learning-rate schedule."""
    o = config.optimizer
    text, note = f"{o.schedule} down to 0", ""
    match o.schedule:
        case "plateau":
            text = f"x {o.factor:g} when the validation error stops improving"
            patience = f"patience {o.patience} evaluations, one every {config.eval_every_epochs:g} epochs"
            least = f"improvement {o.threshold:g}, cooldown {o.cooldown}, not below {o.minimum_learning_rate:g}"
            note = f"{patience}; {least}" + (f"; at least {o.min_drops} drops" if o.min_drops else "")
        case "step":
            text = f"x {o.factor:g} after {', '.join(f'{epoch:g}' for epoch in o.step_epochs)} epochs"
        case "dexp":
            text = f"down to 1 / {o.dexp_target:g} in {o.dexp_steps} equal steps"
        case "constant":
            text = "constant"
    warmup = f"a warm-up of {o.warmup_epochs:g} epochs, then " if o.warmup_epochs else ""
    anew = f", anew from epoch {_numbers(o.restart_epochs)}" if o.restart_epochs else ""
    return Choice(warmup + text + anew, note)


def length(config: ConfigDict, _: AlexNet) -> Choice:
    """When training ends."""
    steps = f", at most {config.max_steps} steps" if config.max_steps else ""
    early = f", until {config.stop_at_train_error:.0%} training error" if config.stop_at_train_error else ""
    if patience := config.early_stopping_patience:
        early += f", until {patience} evaluations bring no lower validation error"
    return Choice(f"{config.epochs:g} epochs{steps}{early}", f"evaluated every {config.eval_every_epochs:g}")


def tested_parameters(config: ConfigDict, _: AlexNet) -> Choice:
    """Which parameters are tested."""
    decay, which = config.optimizer.ema_decay, "best" if config.early_stopping_patience else "last"
    return Choice(f"the {which} parameters" + (f", their moving average, decay {decay:g}" if decay else ""))


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _named(model: AlexNet) -> list[tuple[str, Layer]]:
    """The layers with their names, like "conv1"."""
    return [(f"{layer.kind}{index}", layer) for index, layer in enumerate(model.layers, start=1)]


def _initial(config: ConfigDict, model: AlexNet, value: Callable[[Layer], str]) -> Choice:
    """Lists each initial value with the layers that have it, or names the run that parameters are loaded from."""
    if config.init_from:
        return Choice(f"those of {config.init_from}")
    names: dict[str, list[str]] = {}
    for name, layer in _named(model):
        names.setdefault(value(layer), []).append(name)
    return Choice("; ".join(f"{text}: {' '.join(layers)}" for text, layers in names.items()))
