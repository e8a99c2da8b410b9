"""Converted weights compute what PyTorch computes, and PyTorch reads what is written."""

import copy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.inference.layouts import from_layout, to_layout
from alexnet_jax.inference.weight_files import read_arrays, write_arrays
from tests.inference.layouts_test import network, random_params

torch = pytest.importorskip("torch")
nn = torch.nn

from safetensors.torch import load_file  # noqa: E402

pytestmark = pytest.mark.slow

CROP = 95
TOLERANCE = 1e-4


class TorchvisionAlexNet(nn.Module):
    """torchvision/models/alexnet.py with narrower fully connected layers and without its adaptive pooling."""

    def __init__(self, width: int = 16, num_classes: int = 7, dropout: float = 0.0):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout),
            nn.Linear(256 * 2 * 2, width),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, num_classes),
        )

    def forward(self, images: Any) -> Any:
        return self.classifier(torch.flatten(self.features(images), 1))


class CaffeAlexNet(nn.Module):
    """bvlc_alexnet/deploy.prototxt with its names of layers; inputs are B, G, R. Both divide alpha by the size."""

    def __init__(self, width: int = 16, num_classes: int = 7):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(256 * 2 * 2, width)
        self.fc7 = nn.Linear(width, width)
        self.fc8 = nn.Linear(width, num_classes)

    def forward(self, images: Any) -> Any:
        lrn = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
        pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        x = pool(lrn(self.conv1(images).relu()))
        x = pool(lrn(self.conv2(x).relu()))
        x = self.conv4(self.conv3(x).relu()).relu()
        x = pool(self.conv5(x).relu())
        return self.fc8(self.fc7(self.fc6(x.flatten(1)).relu()).relu())


LAYOUTS = {"torchvision": ("owt", TorchvisionAlexNet), "caffe": ("caffe", CaffeAlexNet)}


def arrays_of(layout: str, peer: Any, of_gradients: bool = False) -> dict[str, np.ndarray]:
    """The parameters by the names that files use."""
    found = {name: (p.grad if of_gradients else p).detach().numpy() for name, p in peer.named_parameters()}
    if layout == "caffe":
        suffixes = {"weight": "0", "bias": "1"}
        found = {f"{name.split('.')[0]}.{suffixes[name.split('.')[1]]}": array for name, array in found.items()}
    return found


def difference(actual: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(actual) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_and_gradients(layout: str, record_property: Any) -> None:
    preset, make_peer = LAYOUTS[layout]
    model = network(preset, dropout_rate=0.0)
    peer, random = make_peer(), to_layout(layout, model, CROP, {"params": random_params(model, CROP)})
    with torch.no_grad():
        for array, parameter in zip(random.values(), peer.parameters(), strict=True):
            parameter.copy_(torch.tensor(array))
    images = np.random.default_rng(2).normal(scale=60, size=(3, CROP, CROP, 3)).astype(np.float32)
    labels = np.array([3, 1, 4])
    seen = torch.from_numpy(np.ascontiguousarray(images[..., ::-1] if layout == "caffe" else images))
    logits = peer(seen.permute(0, 3, 1, 2))
    nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()

    params = from_layout(layout, model, CROP, arrays_of(layout, peer))["params"]

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        ours, _ = model.apply({"params": params}, jnp.asarray(images))
        return optax.softmax_cross_entropy_with_integer_labels(ours, labels).mean(), ours

    (_, ours), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(jax.tree.map(jnp.asarray, params))
    of_logits = difference(ours, logits.detach().numpy())
    expected = arrays_of(layout, peer, of_gradients=True)
    assert all(np.abs(gradient).max() > 0 for gradient in expected.values())
    of_gradients = {
        name: difference(gradient, expected[name])
        for name, gradient in to_layout(layout, model, CROP, {"params": gradients}).items()
    }
    print(f"{layout}: logits {of_logits:.1e}, gradients {max(of_gradients.values()):.1e}")
    assert of_logits <= TOLERANCE
    assert max(of_gradients.values()) <= TOLERANCE, of_gradients


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_is_read_and_what_is_written_torch_reads(legacy: bool, tmp_path: Path) -> None:
    peer = TorchvisionAlexNet()
    torch.save(peer.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    arrays = read_arrays(tmp_path / "a.pth")
    model = network("owt")
    variables = from_layout("torchvision", model, CROP, arrays)
    write_arrays(tmp_path / "b.safetensors", to_layout("torchvision", model, CROP, variables))
    again = copy.deepcopy(peer)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(load_file(tmp_path / "b.safetensors"), strict=True)
    for before, after in zip(peer.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_scripts_checkpoint(legacy: bool, tmp_path: Path) -> None:
    peer = nn.DataParallel(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).half())
    optimizer = {
        "state": {0: {"momentum_buffer": torch.ones(2, 3)}, 1: {"momentum_buffer": None}},
        "param_groups": [{"lr": 0.1, "nesterov": False, "params": [0, 1]}],
    }
    whole = {
        "epoch": 3,
        "best": torch.tensor(0.5),
        "optimizer": optimizer,
        "state_dict": peer.state_dict(),
    }
    torch.save(whole, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    arrays = read_arrays(tmp_path / "a.pt")
    expected = peer.module.state_dict()
    assert arrays.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(arrays[name], tensor.float().numpy(), strict=True)
