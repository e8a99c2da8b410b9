"""The network of TensorFlow's tutorial on image classification, with its augmentation, in PyTorch.

tensorflow.org/tutorials/images/classification: pixels divided by 255; three 3x3 convolutions of 16, 32 and 64 maps,
each with ReLU and 2x2 max pooling; dropout of 0.2; 128 units with ReLU; Adam on batches of 32. Training images are
mirrored, rotated by up to 36 degrees and zoomed by up to 10 %; what is outside them is filled with their mirror image.
"""

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 32
ROTATION, ZOOM = 0.1, 0.1
"""Largest rotation, as a fraction of a full turn, and largest zoom."""

Images = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Images, uint8, [images, size, size, 3], and their labels, by split."""


def train(images: Images, num_classes: int, learning_rate: float, seed: int, epochs: int) -> dict[str, float]:
    """Trains the network and returns its errors.

    Both errors are those of the epoch with the lowest validation error, which favours this network a little.
    """
    torch.manual_seed(seed)
    splits = {name: _tensors(*arrays) for name, arrays in images.items()}
    pictures, labels = splits["train"]
    network = make_network(pictures.shape[-1], num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    best, kept = math.inf, copy.deepcopy(network.state_dict())
    for _ in range(epochs):
        network.train()
        for chosen in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(augmented(pictures[chosen])), labels[chosen]).backward()
            optimizer.step()
        error = _error(network, *splits["validation"])
        if error < best:
            best, kept = error, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    return {"validation_error": best, "test_error": _error(network, *splits["test"])}


def make_network(size: int, num_classes: int) -> nn.Sequential:
    """The network for size x size images."""
    layers: list[nn.Module] = []
    for channels, features in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    units = 64 * (size // 8) ** 2
    return nn.Sequential(
        *layers, nn.Dropout(0.2), nn.Flatten(), nn.Linear(units, 128), nn.ReLU(), nn.Linear(128, num_classes)
    )


def augmented(pictures: Tensor) -> Tensor:
    """Mirrors, rotates and zooms each picture at random."""
    count = len(pictures)
    angle = (2 * torch.rand(count) - 1) * ROTATION * 2 * math.pi
    zoom = 1 + (2 * torch.rand(count) - 1) * ZOOM
    side = torch.randint(0, 2, (count,)) * 2.0 - 1
    cosine, sine, nothing = zoom * torch.cos(angle), zoom * torch.sin(angle), torch.zeros(count)
    rows = torch.stack([side * cosine, -sine, nothing]), torch.stack([side * sine, cosine, nothing])
    grid = F.affine_grid(torch.stack(rows).permute(2, 0, 1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def _tensors(pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels).long()


def _error(network: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """The fraction of pictures that are classified wrongly."""
    network.eval()
    with torch.no_grad():
        predicted = torch.cat([network(part).argmax(1) for part in pictures.split(256)])
    return (predicted != labels).float().mean().item()
