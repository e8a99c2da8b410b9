"""All-reduces in the text of a compiled program, for which XLA has no API; written for jax 0.10 to 0.12."""

import re

import jax

ALONE = re.compile(r"replica_groups=(\{\{0\},\{1\}\}|\[2,1\]<=\[2\]|mesh\['data'=1,'tower'=2\] \{'data'\})")
"""The replica groups of an all-reduce in which each of two devices is alone."""


def sums(compiled: jax.stages.Compiled, shape: tuple[int, ...] = ()) -> list[str]:
    """The program's all-reduces; with a shape, only those of arrays whose shape starts with it."""
    array = f"[{','.join(map(str, shape))}," if shape else ""
    return [line for line in compiled.as_text().splitlines() if " all-reduce(" in line and array in line]


def sends_nothing(line: str) -> bool:
    """Whether the all-reduce leaves each of two devices alone, because both have the same images."""
    return ALONE.search(line) is not None
