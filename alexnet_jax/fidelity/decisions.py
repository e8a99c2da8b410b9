"""The decisions in which the paper, its source, Caffe and a run may differ, and the effect of each on the error.

The decisions are data in decisions.toml, which documents its own format.
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
UNKNOWN, UNMEASURED = "not stated", "not measured"


@dataclasses.dataclass(frozen=True)
class Decision:
    """A design decision, and the choices of the references.

    Attributes:
      name: its name, the first column of tables.
      keys: the config keys that it depends on, besides the preset.
      describe: returns the choice of a run.
      references: the known choices of REFERENCES, worded as `describe` words the same choice.
      where: where they are documented; "" if none is known.
      cost: the measured effect of the choice on the error.
    """

    name: str
    keys: tuple[str, ...]
    describe: Describe
    references: dict[str, Choice]
    where: str = ""
    cost: str = UNMEASURED

    def text(self, reference: str) -> str:
        """The choice of "paper", "source" or "caffe" with its note."""
        return str(self.references.get(reference, UNKNOWN))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A decision and the choice of a run."""

    decision: Decision
    this_run: Choice

    def agrees(self, reference: str) -> bool | None:
        """Whether the run chose the same as "paper", "source" or "caffe"; None if that is unknown."""
        theirs = self.decision.references.get(reference)
        return None if theirs is None else theirs.value == self.this_run.value

    @property
    def is_disputed(self) -> bool:
        """Whether the run differs from at least one reference."""
        return any(self.agrees(reference) is False for reference in REFERENCES)


def read_decisions(text: str) -> tuple[Decision, ...]:
    """Parses the decisions of a TOML file. Raises ValueError for an entry with a wrong, missing or unknown key."""
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
    """Compares all decisions with the choices of a run; `model` is the network that its config describes."""
    return [Comparison(decision, decision.describe(config, model)) for decision in DECISIONS]


def bookkeeping(config: ConfigDict) -> list[str]:
    """The config values that do not affect a run's results, as "key=value"."""
    return [f"{key}={value!r}" for key, value in config_lib.free(config.to_dict()).items()]


DECISIONS = read_decisions(resources.files(__package__).joinpath("decisions.toml").read_text(encoding="utf-8"))
"""Ordered along the path of an image through the network, then along training."""
