"""VGG: blocks of 3x3 convolutions, each block pooled to half its size (Simonyan and Zisserman 2015, table 1)."""

from collections.abc import Sequence
from typing import Any


def layers(
    convolutions: Sequence[int], widths: Sequence[int] = (64, 128, 256, 512, 512), hidden: int = 4096
) -> list[dict[str, Any]]:
    """The lines of `layers` in presets.toml of a network of this kind.

    Two hidden fully connected layers with dropout follow the last block. Kernels start as in torchvision/models/vgg.py.

    Args:
      convolutions: the number of convolutions in each block.
      widths: the features of each convolution of a block.
      hidden: the units of the hidden layers.
    """
    rows: list[dict[str, Any]] = []
    for count, width in zip(convolutions, widths, strict=True):
        block = [{"conv": width, "kernel": 3, "pad": 1, "init": "he_out", "then": "act"} for _ in range(count)]
        rows += [*block[:-1], {**block[-1], "then": "act pool"}]
    return [*rows, {"fc": hidden, "then": "act dropout"}, {"fc": hidden, "then": "act dropout"}, {"fc": 0}]
