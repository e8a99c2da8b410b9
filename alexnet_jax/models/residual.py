"""ResNet: blocks that add what they compute to what they are given (He et al. 2015, "Deep residual learning")."""

from collections.abc import Sequence
from typing import Any

from alexnet_jax.models.branches import Lines

EXPANSION = 4
"""Features of a bottleneck's output over those of its 3x3 convolution."""


def layers(
    blocks: Sequence[int],
    widths: Sequence[int] = (64, 128, 256, 512),
    bottleneck: bool = False,
    small_images: bool = False,
) -> list[dict[str, Any]]:
    """The lines of `layers` in presets.toml of a network of this kind, as in torchvision/models/resnet.py.

    Args:
      blocks: the number of blocks of each stage; the first block of each later stage halves the maps.
      widths: the features of the 3x3 convolutions of each stage.
      bottleneck: blocks are 1x1, 3x3 and 1x1 convolutions rather than two of 3x3.
      small_images: the first layer is a 3x3 convolution without pooling (section 4.2).
    """
    lines, outputs = Lines(), widths[0]
    if small_images:
        x = _conv(lines, outputs, 3, "bn act", ("conv1", "bn1"))
    else:
        x = _conv(lines, outputs, 7, "bn act pool", ("conv1", "bn1"), stride=2)
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
        for number in range(count):
            inputs, outputs = outputs, width * EXPANSION if bottleneck else width
            stride = 2 if stage > 1 and number == 0 else 1
            module = f"layer{stage}.{number}."
            shortcut = x
            if stride > 1 or inputs != outputs:
                names = f"{module}downsample.0", f"{module}downsample.1"
                shortcut = _conv(lines, outputs, 1, "bn", names, stride=stride, source=x)
            x = _block(lines, x, shortcut, [width, outputs], stride, module, bottleneck)
    lines[-1]["then"] += " mean"
    return [*lines, {"fc": 0, "init": "torch", "torchvision": ("fc", "")}]


def _block(
    lines: Lines, x: str, shortcut: str, widths: Sequence[int], stride: int, module: str, bottleneck: bool
) -> str:
    """Adds the convolutions of a block that reads x, and their sum with the shortcut; returns the block's output.

    The 3x3 convolution has the stride, in a bottleneck too: the form called "ResNet v1.5".
    """
    width, outputs = widths
    rows = [(width, 1, 1), (width, 3, stride), (outputs, 1, 1)] if bottleneck else [(width, 3, stride), (outputs, 3, 1)]
    for number, (features, kernel, step) in enumerate(rows, start=1):
        line: dict[str, Any] = {"stride": step, "source": x if number == 1 else ""}
        then = "bn act"
        if number == len(rows):
            then, line["joined"] = "bn add act", (shortcut,)
        out = _conv(lines, features, kernel, then, (f"{module}conv{number}", f"{module}bn{number}"), **line)
    return out


def _conv(lines: Lines, features: int, kernel: int, then: str, torchvision: tuple[str, str], **line: Any) -> str:
    return lines.conv(features, kernel, then, init="he_out", torchvision=torchvision, **line)
