"""Every decision in which the paper, its source, Caffe and a run may differ, and what it is expected to cost.

The decisions are data: decisions.toml, which says how it is read.
"""

import dataclasses
import tomllib
from importlib import resources
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.fidelity import descriptions
from alexnet_jax.fidelity.descriptions import Choice, Describe
from alexnet_jax.models.alexnet import AlexNet

REFERENCES = ("paper", "source", "caffe")
UNKNOWN, UNMEASURED = "not told", "not measured"


@dataclasses.dataclass(frozen=True)
class Decision:
    """Something that can be done in several ways.

    Attributes:
      name: what it is about.
      keys: of the config, on which it depends, beside the preset.
      describe: what a run chose.
      references: what those of REFERENCES chose of which it is told, in the words of `describe` for the same.
      where: that can be read; "" if nothing is told.
      cost: what the choice matters.
    """

    name: str
    keys: tuple[str, ...]
    describe: Describe
    references: dict[str, Choice]
    where: str = ""
    cost: str = UNMEASURED

    def text(self, reference: str) -> str:
        """What "paper", "source" or "caffe" chose, with details."""
        return str(self.references.get(reference, UNKNOWN))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A decision and what a run chose."""

    decision: Decision
    this_run: Choice

    def agrees(self, reference: str) -> bool | None:
        """Whether the run does what "paper", "source" or "caffe" did; None if that is not told."""
        theirs = self.decision.references.get(reference)
        return None if theirs is None else theirs.value == self.this_run.value

    @property
    def is_disputed(self) -> bool:
        """Whether not all are known to have done the same."""
        return any(self.agrees(reference) is False for reference in REFERENCES)


def read_decisions(text: str) -> tuple[Decision, ...]:
    """The decisions of a TOML file. Raises ValueError for an entry with a wrong, missing or superfluous key."""
    return tuple(_decision(entry) for entry in tomllib.loads(text)["decision"])


def _decision(entry: dict[str, Any]) -> Decision:
    fields = dict(entry)
    references = {
        name: Choice(fields.pop(name), fields.pop(f"{name}_note", "")) for name in REFERENCES if name in fields
    }
    try:
        keys = tuple(fields.pop("keys"))
        if "text" in fields:
            describe = descriptions.template(fields.pop("text"), keys[0] if keys else "", fields.pop("note", ""))
        else:
            describe = _function(fields.pop("describe"))
        return Decision(keys=keys, describe=describe, references=references, **fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"decisions.toml, {entry.get('name', 'a decision without name')}: {error}") from error


def _function(name: str) -> Describe:
    function: Any = getattr(descriptions, name, None)
    if getattr(function, "__module__", "") != descriptions.__name__:
        raise KeyError(f"descriptions.py has no function {name!r}")
    return function


def explain(config: ConfigDict, model: AlexNet) -> list[Comparison]:
    """All decisions of a run; `model` is the one that its config describes."""
    return [Comparison(decision, decision.describe(config, model)) for decision in DECISIONS]


def bookkeeping(config: ConfigDict) -> list[str]:
    """The settings of a run that change nothing but how it is done, as "key=value"."""
    return [f"{key}={value!r}" for key, value in config_lib.free(config.to_dict()).items()]


DECISIONS = read_decisions(resources.files(__package__).joinpath("decisions.toml").read_text(encoding="utf-8"))
"""In the order in which an image meets them, then in that of training."""
