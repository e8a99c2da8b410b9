"""Tables of networks that differ in one idea each, and what it is worth; the rows are in ablations.toml."""

import dataclasses
import importlib.resources
import tomllib
from collections.abc import Mapping
from typing import Any

from alexnet_jax.experiments.results import Spread


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A row of a table.

    Attributes:
      name: of its folder.
      what: is changed, in words.
      choice: added to those of the config file.
      changes: key of the config -> value.
      learning_rate_factor: the learning rate is multiplied by it: not all networks learn at the same.
      views: of a test image: the baseline's runs are evaluated again with so many; None: runs of its own are trained.
      paper, source: what they found.
      where: that can be read.
    """

    name: str
    what: str
    choice: str = ""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    learning_rate_factor: float = 1.0
    views: int | None = None
    paper: str = "-"
    source: str = "-"
    where: str = ""


def _row(changes: Mapping[str, Any] | None = None, **row: Any) -> Ablation:
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in (changes or {}).items()}
    return Ablation(changes=plain, **row)


_TOML = importlib.resources.files(__package__).joinpath("ablations.toml").read_text()
TABLES = {table: tuple(_row(**row) for row in rows) for table, rows in tomllib.loads(_TOML).items()}
"""By name; the first row is what the others are compared with."""


@dataclasses.dataclass(frozen=True)
class RowResult:
    """What was measured for a row.

    Attributes:
      errors: of the test, top-1, in [0, 1], by seed; without those that failed.
      top5_errors: the same; empty where top-5 says nothing.
      failure: of one of the seeds, in one line.
    """

    errors: tuple[float, ...] = ()
    top5_errors: tuple[float, ...] = ()
    failure: str | None = None

    def with_seed(self, test: Mapping[str, Any] | None, failure: str | None) -> "RowResult":
        """These and those of one more seed: the record of its test, or why there is none."""
        if test is None:
            return dataclasses.replace(self, failure=failure)
        top1, top5 = test["top1_error"], test["top5_error"]
        of_top5 = self.top5_errors if top5 is None else (*self.top5_errors, top5)
        return RowResult((*self.errors, top1), of_top5, self.failure)

    def text(self) -> str:
        """Mean ± standard deviation over seeds, and what failed."""
        if not self.errors:
            return f"failed: {self.failure}"
        return Spread.of(self.errors).text(".2%") + (f" (one failed: {self.failure})" if self.failure else "")

    def difference(self, first: "RowResult") -> str:
        """How much worse than the first row, in points of percent."""
        if self is first or not self.errors or not first.errors:
            return "-"
        return f"{100 * (Spread.of(self.errors).mean - Spread.of(first.errors).mean):+.2f}"
