"""The presets: exact sizes, wiring and initialisation."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.presets import PRESETS
from alexnet_jax.models.summary import summarize
from tests.helpers.models import variables_of

CROPS = {"source": 224, "run170": 224, "owt": 224, "lenet": 28, "small": 28, "small_modern": 28}
CROPS |= dict.fromkeys(("linear", "logistic", "mlp", "digit_cnn", "vgg_small", "inception_small", "resnet_small"), 28)
CROPS |= dict.fromkeys(("vgg11", "vgg16", "googlenet", "resnet18", "resnet50"), 224)
CROPS |= {"medium": 96, "large": 128}

# preset: classes, parameters, multiply-accumulates (None where facts of no primary source exist)
SIZES = {
    "source": (1000, 60_965_224, 724_406_816),
    "run170": (1000, 60_965_224, 724_406_816),
    "paper": (1000, 60_965_224, 724_406_816),
    "caffe": (1000, 60_965_224, 724_406_816),
    "caffenet": (1000, 60_965_224, 724_406_816),
    "single_tower": (1000, 62_378_344, 1_135_256_096),
    "owt": (1000, 61_100_840, 714_188_480),
    # single_tower and a scale and a bias for each of 96 + 256 + 384 + 384 + 256 + 2 * 4096 normalised channels
    "bn": (1000, 62_378_344 + 2 * 9568, 1_135_256_096),
    "modern": (1000, 62_378_344 + 2 * 9568, 1_135_256_096),
    # scales and biases of 96 + 256 + 384 + 384 channels
    "large_batch": (1000, 60_965_224 + 2 * 1120, 724_406_816),
    # 3 * 25 * 32 + 32 + 32 * 25 * 32 + 32 + 32 * 25 * 64 + 64 = 79,328 in the convolutions; 24 pixels become 3x3x64
    "cifar_80sec": (10, 79_328 + 576 * 64 + 64 + 64 * 10 + 10, None),
    "cifar_19pct": (10, 79_328 + 576 * 10 + 10, None),
    "cifar_18pct": (10, 79_328 + 576 * 10 + 10, None),
    # local layers have a kernel and a bias at each of 6x6 places
    "cifar_13pct": (10, 4_864 + 102_464 + 36 * (576 * 32 + 32) + 36 * (288 * 32 + 32) + 1152 * 10 + 10, None),
    "cifar_11pct": (10, 4_864 + 102_464 + 36 * (576 * 64 + 64) + 36 * (576 * 32 + 32) + 1152 * 10 + 10, None),
    # 28 pixels: convolutions of 75, 200, 288, 216, 216 inputs, then 2x2x32 units
    "small": (10, 76 * 16 + 201 * 32 + 289 * 48 + 217 * 48 + 217 * 32 + 2 * 129 * 128 + 129 * 10, 1_248_512),
    # the same without halves, and a scale and a bias for each of 432 normalised channels
    "small_modern": (
        10,
        76 * 16 + 401 * 32 + 289 * 48 + 433 * 48 + 433 * 32 + 2 * 129 * 128 + 129 * 10 + 2 * 432,
        75 * 16 * 256 + 400 * 32 * 64 + 288 * 48 * 16 + 432 * 48 * 16 + 432 * 32 * 16 + 2 * 128 * 128 + 128 * 10,
    ),
    # 96 pixels: maps of 24x24, 12x12 and 6x6; 128 pixels: of 32x32, 16x16 and 8x8
    "medium": (
        10,
        193 * 48 + 433 * 96 + 865 * 128 + 2 * 1153 * 128 + 4609 * 256 + 257 * 10 + 2 * (48 + 96 + 3 * 128 + 256),
        576 * (192 * 48 + 432 * 96) + 144 * 128 * (864 + 2 * 1152) + 4608 * 256 + 2560,
    ),
    "large": (
        10,
        (193 * 64 + 577 * 128 + 1153 * 192 + 1729 * (192 + 128) + 8193 * 512 + 513 * 10)
        + 2 * (64 + 128 + 2 * 192 + 128 + 512),
        1024 * (192 * 64 + 576 * 128) + 256 * (1152 * 192 + 1728 * (192 + 128)) + 8192 * 512 + 5120,
    ),
    # 28 pixels: 6 maps of 14x14, 16 of 5x5
    "lenet": (10, 456 + 2_416 + 400 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10, None),
    "linear": (10, 2352 * 10 + 10, 23_520),
    "logistic": (10, 2352 * 10 + 10, 23_520),
    "mlp": (10, 2352 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10, 636_160),
    # 28 pixels: 16 maps of 24x24, 32 of 8x8, 4x4x32 units
    "digit_cnn": (10, 76 * 16 + 401 * 32 + 512 * 128 + 128 + 129 * 10, 75 * 16 * 576 + 400 * 32 * 64 + 65_536 + 1280),
    # torchvision's meta data: num_params, and _ops where it counts no more than convolutions and products
    "vgg11": (1000, 132_863_336, 7_609_090_048),
    "vgg16": (1000, 138_357_544, 15_470_264_320),
    "googlenet": (1000, 6_624_904, 1_498_376_192),
    "resnet18": (1000, 11_689_512, 1_814_073_344),
    "resnet50": (1000, 25_557_032, 4_089_184_256),
    # 28 pixels: 28 to 14, 7 and 3
    "vgg_small": (10, 452_394, 29_743_872),
    "inception_small": (10, 133_454, 36_307_552),
    # 270,896 in 19 convolutions and 650 in the last layer, as usual; 640 + 2,176 in two shortcuts with normalisation
    "resnet_small": (10, 272_474, 31_247_744),
}

# Two auxiliary classifiers: a convolution to 128 maps, its normalisation, 2048 to 1024 units, and the classes.
AUXILIARY = {"googlenet": (512 + 528) * 128 + 2 * 256 + 2 * (2049 * 1024 + 1025 * 1000)}

TWO_TOWER_SHAPES = {
    "conv1": (55, 55, 96),
    "pool1": (27, 27, 96),
    "conv2": (27, 27, 256),
    "pool2": (13, 13, 256),
    "conv3": (13, 13, 384),
    "conv4": (13, 13, 384),
    "conv5": (13, 13, 256),
    "pool5": (6, 6, 256),
    "fc6": (4096,),
    "fc7": (4096,),
    "fc8": (1000,),
}
OWT_SHAPES = {
    **TWO_TOWER_SHAPES,
    "conv1": (55, 55, 64),
    "pool1": (27, 27, 64),
    "conv2": (27, 27, 192),
    "pool2": (13, 13, 192),
    "conv4": (13, 13, 256),
}


def crop_of(preset: str) -> int:
    return CROPS.get(preset, 24 if preset.startswith("cifar") else 227)


def test_every_preset_has_its_size_here() -> None:
    assert set(SIZES) == set(PRESETS)


@pytest.mark.parametrize("preset", SIZES)
def test_parameters_and_macs(preset: str) -> None:
    classes, parameters, macs = SIZES[preset]
    model = AlexNet(**{**PRESETS[preset], "num_classes": classes})
    rows, spare = [], []
    for row in summarize(model, crop_of(preset)):
        layer = model.layers[int(row.name.lstrip(string.ascii_letters + "_")) - 1]
        (spare if layer.auxiliary else rows).append(row)
    assert sum(row.parameters for row in rows) == parameters
    if macs is not None:
        assert sum(row.macs for row in rows) == macs
    assert sum(row.parameters for row in spare) == AUXILIARY.get(preset, 0)
    assert [row.shape for row in spare if row.name in model.auxiliary_logits] == [(classes,)] * (2 if spare else 0)


@pytest.mark.parametrize("preset", ["source", "paper", "caffe", "caffenet", "single_tower", "owt", "bn"])
def test_shape_of_every_layer(preset: str) -> None:
    shapes = {row.name: row.shape for row in summarize(AlexNet(**PRESETS[preset]), crop_of(preset))}
    expected = OWT_SHAPES if preset == "owt" else TWO_TOWER_SHAPES
    assert {name: shape for name, shape in shapes.items() if name in expected} == expected


def test_source_normalises_before_the_first_relu_and_twice_in_layer_2() -> None:
    model = AlexNet(**PRESETS["source"], num_classes=10)
    (_, activations), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    order = [name for layer in model.layers for name in layer.then]
    assert order[:3] == ["lrn", "pool", "act"]
    assert order[3:7] == ["act", "lrn", "map_norm", "pool"]
    assert "map_norm2" in activations


@pytest.mark.parametrize(
    ("preset", "layer", "std", "bias"),
    [
        ("source", "conv1", 0.01, 0.0),
        ("source", "conv2", 0.01, 1.0),
        ("source", "conv3", 0.03, 0.0),
        ("source", "conv4", 0.03, 1.0),
        ("source", "conv5", 0.03, 1.0),
        ("paper", "conv3", 0.01, 0.0),
        ("paper", "conv5", 0.01, 1.0),
        ("caffe", "conv4", 0.01, 0.1),
        ("caffenet", "conv4", 0.01, 1.0),
        ("bn", "conv4", (2 / (9 * 384)) ** 0.5, 0.0),
    ],
)
def test_initialisation(preset: str, layer: str, std: float, bias: float) -> None:
    params = variables_of(preset)["params"][layer]
    kernel = params["kernel"]
    # The standard error of a standard deviation is std / sqrt(2 n).
    assert abs(float(kernel.std()) - std) < 5 * std / (2 * kernel.size) ** 0.5
    np.testing.assert_array_equal(params["bias"], np.float32(bias))


def test_torch_initialisation_is_uniform_within_one_over_root_fan_in() -> None:
    params = variables_of("owt")["params"]["conv2"]
    bound = (64 * 25) ** -0.5
    for values in params.values():
        assert 0.95 * bound < float(jnp.abs(values).max()) <= bound


@pytest.mark.parametrize(
    ("name", "own_tower", "channels_seen"),
    [("conv2", True, 48), ("conv3", False, 256), ("conv4", True, 192), ("conv5", True, 192)],
)
def test_which_layers_see_the_other_tower(name: str, own_tower: bool, channels_seen: int) -> None:
    variables = jax.eval_shape(AlexNet(**PRESETS["paper"]).init, jax.random.key(0), jnp.zeros((1, 227, 227, 3)))
    kernels = {layer: arrays["kernel"].shape for layer, arrays in variables["params"].items()}
    channels = kernels[f"conv{int(name[-1]) - 1}"][3]
    assert kernels[name][2] == channels_seen == (channels // 2 if own_tower else channels)


@pytest.mark.parametrize(("preset", "maps"), [("resnet18", 512), ("resnet50", 2048)])
def test_each_block_adds_its_input_or_a_projection_of_it(preset: str, maps: int) -> None:
    model = AlexNet(**PRESETS[preset])
    shapes = {row.name: row.shape for row in summarize(model, 224)}
    added = [layer for layer in model.layers if "add" in layer.then]
    assert len(added) == {"resnet18": 8, "resnet50": 16}[preset]
    assert sum(layer.joined[0].startswith("bn") for layer in added) == {"resnet18": 3, "resnet50": 4}[preset]
    assert shapes["pool1"] == (56, 56, 64) and shapes[f"mean{len(model.layers) - 1}"] == (maps,)


@pytest.mark.parametrize(("preset", "crop", "smallest"), [("vgg_small", 7, 8), ("paper", 66, 67), ("digit_cnn", 9, 16)])
def test_a_crop_that_is_too_small(preset: str, crop: int, smallest: int) -> None:
    model = AlexNet(**PRESETS[preset])
    with pytest.raises(UserError, match=rf"config\.data\.crop={crop} .* {smallest} pixels"):
        summarize(model, crop)
    summarize(model, smallest)
