"""GoogLeNet: modules of four parallel branches (Szegedy et al. 2015, "Going deeper with convolutions")."""

from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_jax.models.branches import Lines


def layers(
    modules: Mapping[str, Sequence[int]],
    pooled_before: Mapping[str, Sequence[Any]],
    auxiliary_after: Mapping[str, str] | None = None,
    small_images: int = 0,
) -> list[dict[str, Any]]:
    """The lines of `layers` in presets.toml of a network of this kind, as in torchvision/models/googlenet.py.

    Its kernels of the third branch have 3x3 weights; the paper's have 5x5.

    Args:
      modules: by name, the features of #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5 and pool proj (the paper's table 1).
      pooled_before: pooling of the input of a module, by its name; see `pooled` of `Layer`.
      auxiliary_after: auxiliary classifiers by the module whose output they read.
      small_images: if not 0, a 3x3 convolution with so many features stands for the layers before the first module.
    """
    lines = Lines()
    if small_images:
        x = _conv(lines, small_images, 3, "conv1")
    else:
        _conv(lines, 64, 7, "conv1", "bn act pool", stride=2)
        _conv(lines, 64, 1, "conv2")
        x = _conv(lines, 192, 3, "conv3", "bn act pool")
    for name, widths in modules.items():
        x = _module(lines, x, f"inception{name}", widths, pooled_before.get(name))
        if classifier := (auxiliary_after or {}).get(name):
            _classifier(lines, x, classifier)
    lines[-1]["then"] += " mean dropout"
    return [*lines, {"fc": 0, "torchvision": ("fc", "")}]


def _module(lines: Lines, x: str, name: str, widths: Sequence[int], pooled: Sequence[Any] | None) -> str:
    """Adds the branches of a module that reads x, and returns the name of their concatenated output."""
    ones, reduced_threes, threes, reduced_fives, fives, projected = widths
    outputs = [_conv(lines, ones, 1, f"{name}.branch1", source=x, pooled=tuple(pooled) if pooled else None)]
    x = f"pooled{len(lines)}" if pooled else x
    for branch, reduced, features in ((2, reduced_threes, threes), (3, reduced_fives, fives)):
        _conv(lines, reduced, 1, f"{name}.branch{branch}.0", source=x)
        outputs.append(_conv(lines, features, 3, f"{name}.branch{branch}.1"))
    last: dict[str, Any] = {"source": x, "pooled": ("max", 3, 1, 1), "joined": tuple(outputs)}
    return _conv(lines, projected, 1, f"{name}.branch4.1", "bn act concat", **last)


def _classifier(lines: Lines, x: str, name: str) -> None:
    """Adds an auxiliary classifier, with a dropout rate of 0.7 (section 5 of the paper)."""
    _conv(lines, 128, 1, f"{name}.conv", source=x, pooled=("grid", 4, 0, 0), auxiliary=True)
    hidden = {"fc": 1024, "then": "act dropout", "dropout": 0.7}
    lines.append({**hidden, "auxiliary": True, "torchvision": (f"{name}.fc1", "")})
    lines.append({"fc": 0, "auxiliary": True, "torchvision": (f"{name}.fc2", "")})


def _conv(lines: Lines, features: int, kernel: int, module: str, then: str = "bn act", **line: Any) -> str:
    return lines.conv(features, kernel, then, torchvision=(f"{module}.conv", f"{module}.bn"), **line)
