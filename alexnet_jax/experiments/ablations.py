"""Ablation tables: networks that differ from a baseline in one idea each; ablations.toml holds the rows."""

import dataclasses
import importlib.resources
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.experiments.results import Spread
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.models.summary import summarize
from alexnet_jax.run.metrics_log import read_metrics, read_timing
from alexnet_jax.run.record_kinds import check_timing


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A row of an ablation table.

    Attributes:
      name: the name of the row and of its run folders.
      what: what is changed, as a heading.
      choice: a choice of configs/alexnet.py to add, like a preset.
      changes: config values to change, by key.
      learning_rate_factor: multiplies the learning rate, as the best one differs between networks.
      views: evaluate the baseline's runs with this number of test views; None: train runs of its own.
      paper, source: the results of the paper and of its source code, as text.
      where: where these results are published.
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


_TOML = tomllib.loads(importlib.resources.files(__package__).joinpath("ablations.toml").read_text())
_RECIPES, _LADDER = _TOML.pop("recipes"), _TOML.pop("ladder")
_TOML |= {
    name: [{**row, "changes": {**recipe, **row.get("changes", {})}} for row in _LADDER]
    for name, recipe in _RECIPES.items()
}
TABLES = {table: tuple(_row(**row) for row in rows) for table, rows in _TOML.items()}
"""The rows of each table by its name; the first row is the baseline."""

COST_HEADER = ("parameters", "MACs", "images/s", "minutes")
"""The columns of `Cost.texts`."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a network and its training cost.

    Attributes:
      parameters: its parameters.
      macs: its multiply-accumulates for one image, forward.
      images: training images that a run has seen.
      images_per_second: in the interval of a run in which training was fastest, as other programs slow the others.
    """

    parameters: int
    macs: int
    images: int
    images_per_second: float

    @classmethod
    def of(cls, config: ConfigDict, workdir: Path, num_classes: int) -> "Cost":
        """The cost of a run, which has begun at least, from its config and folder."""
        layers = summarize(get_model(config.model, num_classes), config.data.crop)
        timing = read_timing(workdir)
        check_timing(workdir / "timing.jsonl", timing)
        speeds = [record["images_per_second"] for record in timing if "seconds" in record]
        images = max((record["examples_seen"] for record in read_metrics(workdir)), default=0)
        parameters, macs = (sum(getattr(layer, what) for layer in layers) for what in ("parameters", "macs"))
        return cls(parameters, macs, images, max(speeds, default=0.0))

    def texts(self) -> list[str]:
        """Parameters, multiply-accumulates, images/s and minutes of a run, for a table."""
        minutes = self.images / self.images_per_second / 60 if self.images_per_second else 0.0
        return [f"{self.parameters:,}", f"{self.macs:,}", f"{self.images_per_second:,.0f}", f"{minutes:.1f}"]


@dataclasses.dataclass(frozen=True)
class RowResult:
    """The measurements of a row.

    Attributes:
      errors: top-1 test errors in [0, 1], one per seed that did not fail.
      top5_errors: top-5 test errors; empty for data of five classes or fewer.
      failure: the message of a seed that failed; None if none did.
      cost: that of the seed that was trained fastest; None if all failed, or if the row only tests.
    """

    errors: tuple[float, ...] = ()
    top5_errors: tuple[float, ...] = ()
    failure: str | None = None
    cost: Cost | None = None

    def with_seed(self, test: Mapping[str, Any] | None, failure: str | None, cost: Cost | None = None) -> "RowResult":
        """Returns the result with one more seed added.

        Args:
          test: the record of its test in metrics.jsonl; None if the run failed.
          failure: why it failed.
          cost: of its run.
        """
        if test is None:
            return dataclasses.replace(self, failure=failure)
        top1, top5 = test["top1_error"], test["top5_error"]
        top5_errors = self.top5_errors if top5 is None else (*self.top5_errors, top5)
        costs = [each for each in (self.cost, cost) if each is not None]
        fastest = max(costs, key=lambda each: each.images_per_second, default=None)
        return RowResult((*self.errors, top1), top5_errors, self.failure, fastest)

    def text(self) -> str:
        """The top-1 error as mean ± standard deviation over seeds, and the failure if there was one."""
        if not self.errors:
            return f"failed: {self.failure}"
        return Spread.of(self.errors).text(".2%") + (f" (one failed: {self.failure})" if self.failure else "")

    def difference(self, first: "RowResult") -> str:
        """The mean top-1 error minus that of the first row, in percentage points."""
        if self is first or not self.errors or not first.errors:
            return "-"
        return f"{100 * (Spread.of(self.errors).mean - Spread.of(first.errors).mean):+.2f}"
