"""Networks of blocks compute what torchvision's compute from the same weights; here narrow, with its names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.inference.layouts import from_layout, last_bias, to_layout
from alexnet_jax.models.alexnet import AlexNet
from tests.helpers.narrow import NARROW

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
CROP, CLASSES = 64, 7


def vgg() -> Any:
    """torchvision/models/vgg.py without its adaptive pooling."""

    class Vgg(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers, channels = [], 3
            for width in (4, "pool", 8, "pool", 8, 8, "pool"):
                if width == "pool":
                    layers.append(nn.MaxPool2d(2, 2))
                else:
                    layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                    channels = width
            hidden = [
                nn.Linear(8 * 8 * 8, 16),
                nn.ReLU(),
                nn.Dropout(0.0),
                nn.Linear(16, 16),
                nn.ReLU(),
                nn.Dropout(0.0),
            ]
            self.features, self.classifier = nn.Sequential(*layers), nn.Sequential(*hidden, nn.Linear(16, CLASSES))

        def forward(self, x: Any) -> Any:
            return self.classifier(torch.flatten(self.features(x), 1))

    return Vgg()


class Block(nn.Module):  # type: ignore[misc]
    """BasicBlock or Bottleneck of torchvision/models/resnet.py."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = width * 4 if bottleneck else width
        rows = (
            [(1, width, 1), (3, width, stride), (1, outputs, 1)] if bottleneck else [(3, width, stride), (3, width, 1)]
        )
        inputs = channels
        for number, (kernel, features, step) in enumerate(rows, start=1):
            convolution = nn.Conv2d(inputs, features, kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{number}", convolution)
            setattr(self, f"bn{number}", nn.BatchNorm2d(features))
            inputs = features
        self.count, self.downsample = len(rows), nn.Sequential()
        if stride > 1 or channels != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Any) -> Any:
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            y = y.relu() if number < self.count else y
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):  # type: ignore[misc]
    """torchvision/models/resnet.py."""

    def __init__(self, bottleneck: bool = False):
        super().__init__()
        out = 4 if bottleneck else 1
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 4, 1, bottleneck))
        self.layer2 = nn.Sequential(Block(4 * out, 8, 2, bottleneck), Block(8 * out, 8, 1, bottleneck))
        self.fc = nn.Linear(8 * out, CLASSES)

    def forward(self, x: Any) -> Any:
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, stride=2, padding=1)
        return self.fc(self.layer2(self.layer1(x)).mean(dim=(2, 3)))


class BasicConv2d(nn.Module):  # type: ignore[misc]
    """BasicConv2d of torchvision/models/googlenet.py."""

    def __init__(self, channels: int, features: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(channels, features, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(features, eps=0.001)

    def forward(self, x: Any) -> Any:
        return self.bn(self.conv(x)).relu()


class Inception(nn.Module):  # type: ignore[misc]
    """Inception of torchvision/models/googlenet.py, with the widths of NARROW."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch1 = BasicConv2d(channels, 4, 1)
        self.branch2 = nn.Sequential(BasicConv2d(channels, 3, 1), BasicConv2d(3, 6, 3))
        self.branch3 = nn.Sequential(BasicConv2d(channels, 2, 1), BasicConv2d(2, 3, 3))
        pool = nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True)
        self.branch4 = nn.Sequential(pool, BasicConv2d(channels, 5, 1))

    def forward(self, x: Any) -> Any:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionAux(nn.Module):  # type: ignore[misc]
    """InceptionAux of torchvision/models/googlenet.py without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = BasicConv2d(18, 128, 1)
        self.fc1, self.fc2 = nn.Linear(2048, 1024), nn.Linear(1024, CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.conv(nn.functional.adaptive_avg_pool2d(x, (4, 4)))
        return self.fc2(self.fc1(torch.flatten(x, 1)).relu())


class GoogLeNet(nn.Module):  # type: ignore[misc]
    """torchvision/models/googlenet.py with few modules; in training it returns the auxiliary logits, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = BasicConv2d(3, 64, 7, 2), BasicConv2d(64, 64, 1), BasicConv2d(64, 192, 3)
        self.inception3a, self.inception4a, self.inception4b = Inception(192), Inception(18), Inception(18)
        self.aux1, self.fc = InceptionAux(), nn.Linear(18, CLASSES)

    def forward(self, x: Any) -> Any:
        pool = nn.functional.max_pool2d
        x = self.conv3(self.conv2(pool(self.conv1(x), 3, 2, ceil_mode=True)))
        x = self.inception4a(pool(self.inception3a(pool(x, 3, 2, ceil_mode=True)), 2, 2, ceil_mode=True))
        logits = self.fc(self.inception4b(x).mean(dim=(2, 3)))
        return (logits, self.aux1(x)) if self.training else logits


PEERS = {"vgg": vgg, "resnet": ResNet, "bottlenecks": lambda: ResNet(bottleneck=True), "googlenet": GoogLeNet}


def random_peer(name: str) -> Any:
    """The network of torchvision with random parameters and statistics, in evaluation."""
    torch.manual_seed(0)
    peer = PEERS[name]()
    with torch.no_grad():
        for key, values in peer.state_dict().items():
            if key.endswith("running_var"):
                values.uniform_(0.5, 1.5)
            elif values.ndim == 1:
                values.normal_(1.0 if key.endswith("bn.weight") else 0.0, 0.2)
    return peer.eval()


@pytest.mark.parametrize("name", PEERS)
def test_logits(name: str) -> None:
    peer, model = random_peer(name), AlexNet(**NARROW[name], num_classes=CLASSES)
    arrays = {key: values.numpy() for key, values in peer.state_dict().items()}
    variables = from_layout("torchvision", model, CROP, arrays)
    back = to_layout("torchvision", model, CROP, variables)
    assert last_bias("torchvision", model) == list(arrays)[-1]
    peer.load_state_dict({key: torch.tensor(array) for key, array in back.items()}, strict=name == "vgg")
    assert back.keys() == {key for key in arrays if "num_batches" not in key}
    assert all(np.array_equal(back[key], arrays[key]) for key in back)

    pixels = np.random.default_rng(2).normal(size=(3, CROP, CROP, 3)).astype(np.float32)
    seen = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = peer(seen).numpy()
    images = jnp.asarray(pixels)
    logits, _ = jax.jit(model.apply)(variables, images)
    assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()
    if name == "googlenet":
        layers = tuple(dataclasses.replace(layer, dropout=None) for layer in model.layers)
        training = jax.jit(
            lambda keys: model.clone(layers=layers).apply(variables, images, keys, mutable="batch_stats")
        )
        (_, activations), _ = training(jax.random.split(jax.random.key(0), 3))
        with torch.no_grad():
            _, expected = peer.train()(seen)
        (auxiliary,) = (activations[key] for key in model.auxiliary_logits)
        assert np.abs(auxiliary - expected.numpy()).max() <= TOLERANCE * np.abs(expected.numpy()).max()
