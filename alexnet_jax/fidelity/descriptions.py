"""What a config decides, in words; `fidelity.py` compares them with those of the paper and other codes.

Each function takes a config and the network that it describes. Words in brackets are details.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.presets import Layer
from alexnet_jax.schedules import scaled_learning_rate

Describe = Callable[[ConfigDict, AlexNet], str]


def always(text: str) -> Describe:
    """What no setting changes."""
    return lambda *_: text


def image(config: ConfigDict, _: AlexNet) -> str:
    """How an original becomes a square."""
    data = config.data
    return f"shorter side {data.image_size}, central square (of at most {data.max_megapixels:g} megapixels)"


def stored(config: ConfigDict, _: AlexNet) -> str:
    """How squares are stored."""
    jpeg = f"jpeg of quality {config.data.jpeg_quality}"
    return {"jpeg": jpeg, "raw": "raw pixels", "auto": f"{jpeg}, raw up to 4 GB"}[config.data.storage]


def data(config: ConfigDict, _: AlexNet) -> str:
    """Which images."""
    data = config.data
    size = f", {data.synthetic_examples} images" if data.name == "synthetic" else ""
    held_out = f"{data.validation_fraction:g} for validation, {data.test_fraction:g} for testing"
    return f"{data.name}{size} (of training images, where they lack: {held_out})"


def crop(config: ConfigDict, _: AlexNet) -> str:
    """What part of a square is seen."""
    data = config.data
    if data.cropping == "resized":
        return f"a random part, scaled to {data.crop}"
    places = data.image_size - data.crop + 1
    count = f" ({places**2:,} places)" if data.cropping == "random" else ""
    return f"{data.cropping} windows of {data.crop}{count}"


def mirror(config: ConfigDict, _: AlexNet) -> str:
    """How many are reflected."""
    return "half of the images" if config.data.mirror else "none"


def color_noise(config: ConfigDict, _: AlexNet) -> str:
    """The noise on colours."""
    data = config.data
    if not data.color_noise:
        return "none"
    strength = f"{data.color_noise:g}"
    on = {"source": f"the standard deviations, image / {1 + data.color_noise:g}", "paper": "the eigenvalues"}
    until = f", until epoch {data.color_noise_until_epoch:g}" if data.color_noise_until_epoch else ""
    given = [f"{name} {value}" for name, value in (("std", data.pca_std), ("vectors", data.pca_vectors)) if value]
    components = f", components given: {', '.join(given)}" if given else ""
    return f"N(0, {strength}) on {on[data.color_noise_form]}{until}{components}"


def mean(config: ConfigDict, _: AlexNet) -> str:
    """What is subtracted."""
    form = {
        "channel": "one number a channel",
        "image_centre": "the centre of the mean image, from every crop",
        "image_crop": "the mean image where the crop lies",
    }[config.data.mean_form]
    return form if config.data.mean is None else f"{form} ({', '.join(f'{value:g}' for value in config.data.mean)})"


def scale(config: ConfigDict, _: AlexNet) -> str:
    """What the rest is divided by."""
    std = tuple(config.data.std)
    return "grey levels as they are" if set(std) == {1.0} else f"divided by {', '.join(f'{value:g}' for value in std)}"


def targets(config: ConfigDict, _: AlexNet) -> str:
    """What the network is to say."""
    parts = [f"labels smoothed by {config.label_smoothing:g}"] if config.label_smoothing else []
    parts += [f"images mixed by Beta({config.data.mixup:g})"] if config.data.mixup else []
    return ", ".join(parts) or "the labels"


def towers(_: ConfigDict, model: AlexNet) -> str:
    """How many towers, and where they meet."""
    if model.towers == 1:
        return "1"
    names = [f"{layer.kind}{index}" for index, layer in enumerate(model.layers, 1) if index > 1 and not layer.own_tower]
    return f"2, which meet in {', '.join(names)}"


def widths(config: ConfigDict, model: AlexNet) -> str:
    """Layers with weights, and their features."""
    widths = [f"{layer.kind} {layer.features or model.num_classes}" for layer in model.layers]
    left_out = f" (without {', '.join(config.model.without_layers)})" if config.model.without_layers else ""
    return "-".join(widths) + left_out


def windows(_: ConfigDict, model: AlexNet) -> str:
    """Sides and steps of the convolutions' windows."""
    layers = [layer for layer in model.layers if layer.kind != "fc"]
    steps = [f" every {layer.stride}" if layer.stride > 1 else "" for layer in layers]
    sizes = [f"{layer.kernel} x {layer.kernel}{step}" for layer, step in zip(layers, steps, strict=True)]
    return f"{', '.join(sizes)} (padding {', '.join(str(layer.pad) for layer in layers)})"


def activation(_: ConfigDict, model: AlexNet) -> str:
    """The nonlinearity."""
    return model.activation


def order(_: ConfigDict, model: AlexNet) -> str:
    """What follows the first two layers; normalisation that is switched off does not."""
    names = {"act": "activation", "lrn": "norm", "map_norm": "norm within maps", "bn": "batch norm"}

    def of(layer: Layer) -> str:
        kept = [name for name in layer.then if name not in ("lrn", "map_norm") or model.lrn is not None]
        return ", ".join(names.get(name, name) for name in kept)

    return "; ".join(map(of, model.layers[:2]))


def lrn(_: ConfigDict, model: AlexNet) -> str:
    """The normalisation across maps."""
    norm = model.lrn
    if norm is None or not any("lrn" in layer.then for layer in model.layers):
        return "none"
    reach = "each tower's channels" if norm.per_tower and model.towers > 1 else "all channels"
    return f"k {norm.k:g}, alpha {norm.alpha:g}, size {norm.size}, over {reach}"


def pooling(_: ConfigDict, model: AlexNet) -> str:
    """Kind, window and step."""
    kinds = sorted({layer.pool for layer in model.layers if "pool" in layer.then})
    return f"{' and '.join(kinds)} of {model.pool_size} x {model.pool_size}, every 2"


def edges(_: ConfigDict, model: AlexNet) -> str:
    """What happens where windows do not fit."""
    hang = [name for name, ceil in (("convolution", model.conv_ceil), ("pooling", model.pool_ceil)) if ceil]
    return f"the last window of {' and '.join(hang)} may hang over" if hang else "whole windows alone"


def dropout(_: ConfigDict, model: AlexNet) -> str:
    """Rate, place and convention."""
    after = [f"{layer.kind}{index}" for index, layer in enumerate(model.layers, 1) if "dropout" in layer.then]
    if not after or model.dropout_rate == 0:
        return "none"
    scaled = {"2012": "outputs scaled in testing", "inverted": "outputs scaled in training"}[model.dropout_convention]
    return f"{model.dropout_rate:g} after {', '.join(after)}; {scaled}"


def initial_weights(config: ConfigDict, model: AlexNet) -> str:
    """What kernels are drawn from, by layer."""
    if config.init_from:
        return f"those of {config.init_from}"
    return _by_layer(model, lambda layer: f"{layer.init}")


def initial_biases(config: ConfigDict, model: AlexNet) -> str:
    """What biases start from, by layer."""
    if config.init_from:
        return f"those of {config.init_from}"
    return _by_layer(model, lambda layer: "torch" if layer.init == "torch" else f"{layer.bias:g}")


def _by_layer(model: AlexNet, value: Callable[[Layer], str]) -> str:
    """A value and the layers that have it, for each."""
    names: dict[str, list[str]] = {}
    for index, layer in enumerate(model.layers, 1):
        names.setdefault(value(layer), []).append(f"{layer.kind}{index}")
    return "; ".join(f"{text}: {' '.join(layers)}" for text, layers in names.items())


def first_rate(config: ConfigDict, _: AlexNet) -> str:
    """The learning rate of kernels at the start."""
    o = config.optimizer
    rate = scaled_learning_rate(o, config.batch_size)
    scaling = "" if o.batch_scaling == "none" else f" ({o.batch_scaling}: {o.learning_rate:g} for {o.base_batch_size})"
    return f"{rate:g}{scaling}"


def momentum(config: ConfigDict, _: AlexNet) -> str:
    """The share of the velocity that stays."""
    return f"{config.optimizer.momentum:g}, the rate inside the velocity"


def decay(config: ConfigDict, _: AlexNet) -> str:
    """Which parameters decay, and how fast."""
    o = config.optimizer
    own = "".join(f", {decay:g} of {pattern}" for pattern, decay in o.weight_decay_overrides)
    return f"{o.weight_decay:g}{own}, of {'all parameters' if o.decay_biases else 'kernels'}"


def bias_rate(config: ConfigDict, _: AlexNet) -> str:
    """How fast biases learn."""
    o = config.optimizer
    schedule = {"same": "divided with it", "constant": "never divided", "halfway": "divided by 10 at half-time"}
    return f"{o.bias_rate_multiplier:g} times that of kernels, {schedule[o.bias_schedule]}"


def layer_rates(config: ConfigDict, _: AlexNet) -> str:
    """What is special about the rates of layers."""
    rules = config.optimizer.rate_multipliers
    return (
        "; ".join(f"{pattern} x {factor:g} from epoch {epoch:g}" for pattern, epoch, factor in rules) or "all the same"
    )


def schedule(config: ConfigDict, _: AlexNet) -> str:
    """How the rate changes."""
    o = config.optimizer
    warmup = f"a rise of {o.warmup_epochs:g} epochs, then " if o.warmup_epochs else ""
    match o.schedule:
        case "plateau":
            patience = f"{o.patience} evaluations, one each {config.eval_every_epochs:g} epochs"
            least = f"improvement {o.threshold:g}, cooldown {o.cooldown}, not below {o.minimum_rate:g}"
            detail = f"{patience}; {least}; at least {o.min_divisions} times"
            text = f"x {o.factor:g} when the validation error stops improving ({detail})"
        case "step":
            text = f"x {o.factor:g} after {', '.join(f'{epoch:g}' for epoch in o.step_epochs)} epochs"
        case "dexp":
            text = f"down to 1 / {o.dexp_target:g} in {o.dexp_steps} equal steps"
        case "constant":
            text = "constant"
        case other:
            text = f"{other} down to 0"
    return warmup + text


def tested(config: ConfigDict, _: AlexNet) -> str:
    """Which parameters are tested."""
    decay = config.optimizer.ema_decay
    return f"their moving average, decay {decay:g}" if decay else "the last parameters"


def views(config: ConfigDict, _: AlexNet) -> str:
    """What a prediction is averaged over."""
    return {1: "the centre", 2: "the centre and its mirror image", 10: "ten, probabilities averaged"}[config.test_views]


def length(config: ConfigDict, _: AlexNet) -> str:
    """How long."""
    steps = f", {config.max_steps} steps at most" if config.max_steps else ""
    early = f", until {config.stop_at_train_error:.0%} training error" if config.stop_at_train_error else ""
    return f"{config.epochs:g} epochs{steps}{early} (evaluated each {config.eval_every_epochs:g})"
