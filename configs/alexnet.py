"""AlexNet: `--config=configs/alexnet.py:CHOICES`, CHOICES a comma-separated list of a data set, a preset and "smoke".

Data sets: digits (the default; real scans, nothing to download); folder (your own images) and imagenet2012 (its two
tar files), both with --config.data.dir=DIR; cifar10, cifar100, mnist, fashion_mnist and imagenette, whose published
files are read with --config.data.dir=DIR, or which TFDS prepares; tfds:NAME for any other image classification set of
TFDS; and synthetic. Presets: see PRESETS below; `alexnet_jax/models/presets.toml` cites the source of each number of
their networks. "smoke" makes a run of a few seconds.

Every key, with its default, unit and bounds, is in `alexnet_jax/config_keys.py`. The defaults are those of paper
section 5: 90 epochs, batch size 128, momentum 0.9, weight decay 0.0005, learning rate 0.01, divided by 10 when the
validation error stops improving. Any key can be set on the command line: --config.optimizer.learning_rate=0.02

The ILSVRC-2012 runs, and the results of their authors (top-1 / top-5, 50,000 validation images):

  imagenet2012,source  Run 145, the paper's "1 CNN". Its learning rate was divided by 10 by hand at epochs 25, 51 and
    79, but stayed 0.02 for biases. At 67 the colour noise ended and the learning rate of conv1's kernels was divided by
    10 once more; from 72 on conv1 was frozen; the run was stopped at 91. Error with ten views: 40.66 / 18.21 % (CHM
    layers/layer-params-145.cfg). Here the plateau rule lowers the learning rate; for drops at the epochs of the
    notes give --config.optimizer.schedule=step --config.optimizer.step_epochs="(25.0,51.0,79.0)"
  imagenet2012,run170  The same network with a fixed schedule: the learning rate of kernels is divided by 250^(1/3) =
    6.3 after 22.5, 45 and 67.5 epochs, that of biases by 10 after 45; colour noise ends at 68, conv1 is frozen from 74
    on. Accuracy: 57.66 / 80.42 % with the central view, 59.47 / 81.95 % with ten (CHM layers/layer-params-170.cfg).

A network has started to learn once its loss is below ln(1000) = 6.91. The 2014 code of the same network without towers
(CC2) prints 7.16, 7.07, 7.00 at first and has an error of 93.9 / 82.0 % after about half an epoch (its wiki,
TrainingExample).

Cost: 724,406,816 multiply-accumulates (MACs) per image forward, 2.07 billion in training. 90 epochs are 115.3 million
images, 2.4e17 MACs in all. That took five to six days on two GTX 580 (paper section 1); the one-tower network of 2014
took 98 hours on one GPU ("One weird trick", table 1), tensorpack's AlexNet 21 hours for 100 epochs on two V100 (its
README). `python -m alexnet_jax benchmark` estimates the hours on your machine.
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.config import default_config


def get_config(choices: str = "") -> ConfigDict:
    """The config for CHOICES: a data set, a preset and "smoke", separated by commas, each optional."""
    data, preset, smoke = _parse(choices)
    config = default_config()
    config.model.preset = preset
    config.update(PRESETS[preset])
    config.update(DATASETS.get(data, {"data": {"name": data}}))
    small = preset.startswith(("cifar_", "lenet", "small")) or preset.endswith("_small")
    if preset in ("linear", "logistic", "mlp", "digit_cnn"):
        config.data.update({"image_size": 28, "crop": 28})  # MNIST's images as they are
    elif small:
        # The source's CIFAR-10 networks use 24x24 crops of 32x32 (CHM convdata_cifar.py), too narrow for images without
        # a margin.
        wide = data in ("digits", "mnist", "fashion_mnist") or not preset.startswith(("cifar_", "lenet"))
        config.data.update({"image_size": 32, "crop": 28 if wide else 24})
    elif data == "digits" and preset not in ("medium", "large", "googlenet"):
        config.model.hidden_width = 512
    if data == "imagenet2012":
        config.update(ON_IMAGENET.get(preset, {}))
    if smoke:
        config.update(SMOKE)
        if data not in ("digits", "folder"):
            config.data.name = "synthetic"
        if config.data.image_size > 72:
            config.data.update({"image_size": 72, "crop": 67})
        if not small and preset not in ("linear", "logistic"):
            config.model.hidden_width = 32
    return config


_SOURCE = {
    "data": {"crop": 224, "color_noise": 0.1, "mean_form": "image_centre"},
    "optimizer": {"bias_schedule": "constant"},
}
# CHM layers/layer-params-170.cfg: schedW=dexp[tgtFactor=250,numSteps=4], schedB=dexp[10,2].
_RUN_170 = {
    "data": _SOURCE["data"],
    "optimizer": {"bias_schedule": "halfway", "schedule": "dexp", "dexp_target": 250.0, "dexp_steps": 4},
}
# Caffe models/bvlc_alexnet/solver.prototxt: batch 256, learning rate / 10 each 100,000 steps, which are 20 epochs.
_CAFFE = {
    "batch_size": 256,
    "data": {"mean_form": "image_crop"},
    "optimizer": {"schedule": "step", "step_epochs": (20.0, 40.0, 60.0, 80.0)},
}
# Paper section 5 gives one update rule for all parameters.
_PAPER = {
    "data": {"color_noise": 0.1, "color_noise_form": "paper", "mean_form": "image_crop"},
    "optimizer": {"bias_learning_rate_multiplier": 1.0, "decay_biases": True},
}


# torchvision references/classification/train.py and its README.md: 8 GPUs x 32 images, decay 1e-4 for all parameters,
# learning rate / 10 each 30 epochs.
_TORCHVISION: dict[str, Any] = {
    "batch_size": 256,
    "data": {
        "crop": 224,
        "cropping": "resized",
        "mean": (123.675, 116.28, 103.53),
        "std": (58.395, 57.12, 57.375),
    },
    "optimizer": {
        "weight_decay": 1e-4,
        "decay_biases": True,
        "bias_learning_rate_multiplier": 1.0,
        "schedule": "step",
        "step_epochs": (30.0, 60.0),
    },
}
# Its learning rate of networks with batch normalisation; the README gives 0.01 for AlexNet and VGG.
_RESNET = {**_TORCHVISION, "optimizer": {**_TORCHVISION["optimizer"], "learning_rate": 0.1}}
# Simonyan and Zisserman 2015, section 3.1: batch 256, decay 5e-4, 74 epochs, the learning rate / 10 when the validation
# error stops improving.
_VGG = {"batch_size": 256, "epochs": 74.0, "data": _TORCHVISION["data"]}


# Methods later than 2012. Schedule, label smoothing and weight decay are close to those of FFCV's ResNet-18
# (rn18_configs: two epochs of warm-up, then down to 0; smoothing 0.1; decay 5e-5, none for biases and scales). Mixup
# with alpha 0.2 is from Zhang et al. 2018. With batch normalisation, dropout of 0.2 was better than none in a CaffeNet
# for 128 pixels (52.7 and 51.3 % top-1, Mishkin et al. 2016). The combination is untested in a full ImageNet run.
_MODERN: dict[str, Any] = {
    "label_smoothing": 0.1,
    "data": {"mixup": 0.2},
    "model": {"dropout_rate": 0.2},
    "optimizer": {
        "batch_scaling": "linear",
        "weight_decay": 5e-5,
        "bias_learning_rate_multiplier": 1.0,
        "schedule": "cosine",
        "warmup_epochs": 2.0,
        "ema_decay": 0.9999,
    },
}


# The recipe of `modern` with less regularisation, for a small network in a short run.
_SMALL_MODERN: dict[str, Any] = {
    **_MODERN,
    "model": {"dropout_rate": 0.0},
    "data": {"mixup": 0.1, "std": (64.0, 64.0, 64.0)},
    "optimizer": {
        **_MODERN["optimizer"],
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
        "warmup_epochs": 1.0,
        "ema_decay": 0.999,
    },
}


def _cifar(*weight_decay_overrides: tuple[str, float]) -> dict[str, Any]:
    """The recipe of CHM example-layers/layer-params-18pct.cfg and the files like it, with their weight decays."""
    return {
        "epochs": 140.0,
        "data": {"mean_form": "image_centre"},
        "optimizer": {
            "learning_rate": 0.001,
            "weight_decay": 0.004,
            "weight_decay_overrides": weight_decay_overrides,
            "schedule": "step",
            "step_epochs": (120.0, 130.0),
        },
    }


# NVCaffe models/alexnet_bn/solver_8K.prototxt at revision 448ad5b8, by an author of LARS: 100 epochs, 600 steps of
# warm-up. By the abstract of their paper (arXiv:1708.03888) a batch of 8K then costs AlexNet no accuracy. Differences:
# batch normalisation has scales and biases here; the warm-up starts from 0, not from a learning rate of 1, and the
# schedule `quadratic` at its end, not at the first step; LARS divides by another norm, see optimizer.py.
_LARGE_BATCH: dict[str, Any] = {
    "batch_size": 8192,
    "epochs": 100.0,
    "data": {"mean_form": "image_crop", "std": (256.0, 256.0, 256.0)},
    "optimizer": {
        "name": "lars",
        "learning_rate": 10.0,
        "decay_biases": True,
        "bias_learning_rate_multiplier": 1.0,
        "schedule": "quadratic",
        "warmup_epochs": 3.84,
    },
}

_UNIT_INPUTS = {"data": {"std": (64.0, 64.0, 64.0)}}


def _one_layer(learning_rate: float) -> dict[str, Any]:
    """A recipe for a network without hidden layers."""
    return {
        "data": {"std": (255.0, 255.0, 255.0), "mirror": False},
        "optimizer": {"learning_rate": learning_rate, "weight_decay": 0.0},
    }


# The recipe of `modern` for some thousand photographs and a CPU: small batches make many steps of few images.
_MEDIUM: dict[str, Any] = {
    **_MODERN,
    "batch_size": 64,
    "epochs": 60.0,
    "test_views": 2,
    "model": {"dropout_rate": 0.3},
    "data": {
        "image_size": 108,
        "crop": 96,
        "cropping": "resized",
        "resized_min_area": 0.4,
        "mixup": 0.1,
        "std": (64.0, 64.0, 64.0),
    },
    "optimizer": {
        **_MODERN["optimizer"],
        "learning_rate": 0.1,
        "weight_decay": 5e-4,
        "warmup_epochs": 3.0,
        "ema_decay": 0.99,
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "source": _SOURCE,
    "run170": _RUN_170,
    "paper": _PAPER,
    "caffe": _CAFFE,
    "caffenet": _CAFFE,
    "single_tower": _PAPER,
    "owt": _TORCHVISION,
    "bn": {},
    "modern": {
        **_MODERN,
        "batch_size": 256,
        "data": {**_MODERN["data"], **_TORCHVISION["data"], "crop": 227},
    },
    "large_batch": _LARGE_BATCH,
    "cifar_80sec": _cifar(("fc*/kernel", 0.03)),
    "cifar_19pct": _cifar(("fc4/kernel", 3.0)),
    "cifar_18pct": _cifar(("fc4/kernel", 1.0)),
    "cifar_13pct": _cifar(("conv*/kernel", 0.0)),
    "cifar_11pct": _cifar(("conv*/kernel", 0.0), ("fc5/kernel", 0.01)),
    # The recipe of `source`, on crops of 28 pixels.
    "small": {
        "data": {"color_noise": 0.1, "mean_form": "image_centre"},
        "optimizer": {"bias_schedule": "constant"},
    },
    "small_modern": _SMALL_MODERN,
    "medium": _MEDIUM,
    "large": {**_MEDIUM, "data": {**_MEDIUM["data"], "image_size": 144, "crop": 128}},
    # Its initialisation (He) expects inputs of about unit variance; those of the others are made for raw pixels.
    "lenet": {"data": {"std": (64.0, 64.0, 64.0)}, "optimizer": {"learning_rate": 0.002}},
    # Gradient descent on one layer. Above 2 / the largest eigenvalue of the pixels' second moments, the learning rate
    # would make the squared error grow.
    "linear": _one_layer(0.001),
    "logistic": _one_layer(0.01),
    "mlp": _UNIT_INPUTS,
    "digit_cnn": _UNIT_INPUTS,
    "vgg11": _VGG,
    "vgg16": _VGG,
    "vgg_small": {
        **_SMALL_MODERN,
        "model": {"dropout_rate": 0.5},
        "optimizer": {**_SMALL_MODERN["optimizer"], "learning_rate": 0.01},  # it has no batch normalisation
    },
    # Grey levels from -1 to 1, as torchvision/models/googlenet.py scales them. Boxes of 8 % to 100 % of the image are
    # the paper's own (Szegedy et al. 2015, section 6), which gives no learning rate.
    "googlenet": {**_RESNET, "data": {**_TORCHVISION["data"], "mean": (127.5,) * 3, "std": (127.5,) * 3}},
    "inception_small": {**_SMALL_MODERN, "model": {"dropout_rate": 0.2}},
    "resnet18": _RESNET,
    "resnet50": _RESNET,
    "resnet_small": _SMALL_MODERN,
}

DATASETS: dict[str, dict[str, Any]] = {
    "digits": {
        "batch_size": 64,
        "epochs": 30.0,
        "data": {
            "name": "digits",
            "image_size": 72,
            "crop": 67,
            "mirror": False,
            "mean": None,
            "color_noise": 0.0,
            "cropping": "random",
        },
    },
    "folder": {"data": {"name": "folder"}},
    "imagenet2012": {"test_views": 10, "data": {"name": "imagenet2012"}},
    "synthetic": {"data": {"name": "synthetic"}},
    "cifar10": {"data": {"name": "tfds:cifar10"}},
    "cifar100": {"data": {"name": "tfds:cifar100"}},
    "mnist": {"data": {"name": "tfds:mnist", "mirror": False}},
    "fashion_mnist": {"data": {"name": "tfds:fashion_mnist"}},
    "imagenette": {"data": {"name": "tfds:imagenette"}},
}

ON_IMAGENET: dict[str, dict[str, Any]] = {
    # Notes in CHM layers/layer-params-145.cfg: at epoch 67 the learning rate of conv1 is lowered and the colour noise
    # ends, at 72 conv1 is frozen.
    "source": {
        "data": {"color_noise_until_epoch": 67.0},
        "optimizer": {"learning_rate_multipliers": (("conv1/kernel", 67.0, 0.1), ("conv1/*", 72.0, 0.0))},
    },
    # Notes in CHM layers/layer-params-170.cfg.
    "run170": {
        "data": {"color_noise_until_epoch": 68.0},
        "optimizer": {"learning_rate_multipliers": (("conv1/*", 74.0, 0.0),)},
    },
    # 0.1 for a batch of 256, the learning rate of torchvision's VGG networks with batch normalisation. With few classes
    # it is too high for 4,096 normalised units: with ten, losses first rose to 12, while at 0.01 they fell at once.
    "modern": {"optimizer": {"learning_rate": 0.05}},
}
"""Settings of presets for ImageNet only, such as changes that were made by hand at given epochs."""

SMOKE = {
    "max_steps": 3,
    "batch_size": 16,
    "log_every_steps": 1,
    "data": {"synthetic_examples": 32},
}


def _parse(choices: str) -> tuple[str, str, bool]:
    """Splits CHOICES into (data set, preset, smoke). Raises ValueError for an unknown choice or two of a kind."""
    data, presets, smoke = [], [], False
    for choice in filter(None, choices.split(",")):
        if choice == "smoke":
            smoke = True
        elif choice in DATASETS or (choice.startswith("tfds:") and len(choice) > 5):
            data.append(choice)
        elif choice in PRESETS:
            presets.append(choice)
        else:
            raise ValueError(
                f"{choice!r} is neither a data set ({', '.join(DATASETS)}, tfds:NAME) nor a preset "
                f"({', '.join(PRESETS)}) nor smoke"
            )
    if len(data) > 1 or len(presets) > 1:
        raise ValueError(f"choose one data set and one preset, not {' and '.join(data if len(data) > 1 else presets)}")
    return (data or ["digits"])[0], (presets or ["source"])[0], smoke
