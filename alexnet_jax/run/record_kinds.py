"""What the records of metrics.jsonl and timing.jsonl must hold to be shown: damage is noticed before they are used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexnet_jax.errors import check_keys

_NUMBER = (int, float)

Needed = Mapping[str, Mapping[str, Any]]
"""The types of the values that a record must hold, by its kind and their names."""

SHOWN: Needed = {
    "start": {"seed": int, "train_examples": int},
    "step": {"loss": _NUMBER, "learning_rate": _NUMBER},
    "division": {"learning_rate": _NUMBER, "reason": str},
    "epoch": {
        "epoch": _NUMBER,
        "train_loss": _NUMBER,
        "train_top1_error": _NUMBER,
        "validation_loss": _NUMBER,
        "validation_top1_error": _NUMBER,
        "validation_top5_error": (*_NUMBER, type(None)),
    },
    "test": {"split": str, "top1_error": _NUMBER, "top5_error": (*_NUMBER, type(None)), "count": int},
}
"""What a report shows of a record of metrics.jsonl."""

_SPEED = ("seconds", "images_per_second", "input_share")
"""What a record of timing.jsonl has together."""


def check_metrics(path: Path, records: Sequence[Mapping[str, Any]], needed: Needed = SHOWN) -> None:
    """Raises UserError that names the line if a record of metrics.jsonl lacks something or has it in a wrong type."""
    for number, record in enumerate(records, start=1):
        check_keys(f"{path}, line {number}", record, needed.get(record["kind"], {}))


def check_timing(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError that names the line if a record of timing.jsonl lacks something or has what is no number."""
    for number, record in enumerate(records, start=1):
        needed = (*record, *_SPEED) if "seconds" in record else record
        check_keys(f"{path}, line {number}", record, dict.fromkeys(needed, _NUMBER))
