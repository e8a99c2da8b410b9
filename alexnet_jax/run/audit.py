"""Checks that a run used the right images, in the order that the seed gives: each once an epoch.

With balanced sampling the order also depends on the labels, which the record of the run's start then holds.

Between two evaluations a run chains the ids of the examples that its devices really used into a hash, which is kept in
metrics.jsonl. It does not depend on restarts, batch size, devices or hosts.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.config_keys import is_row
from alexnet_jax.data.loader import TrainSource, epoch_examples
from alexnet_jax.errors import UserError
from alexnet_jax.run.record_kinds import Needed, check_metrics

_AUDITED: Needed = {"start": {"seed": int, "train_examples": int}, "epoch": {"epoch": (int, float)}}
"""What an audit reads of a record: less than a report, so that runs of every version can be audited."""


def start(seed: int, source: TrainSource) -> dict[str, Any]:
    """The record of a run's start: what determines the order of its images."""
    about = {"seed": seed, "train_examples": len(source.records.labels)}
    return about if source.balanced is None else {**about, "labels": source.balanced.tolist()}


def chain(digest: str, epochs: np.ndarray, ids: np.ndarray) -> str:
    """The hash after further examples: h <- SHA-256(h, epoch, id) for each, the numbers as little-endian 32-bit.

    Args:
      digest: the hash so far, in hexadecimal; "" in the beginning.
      epochs, ids: integers, [examples].

    Returns:
      The hash, in hexadecimal.
    """
    state, data = bytes.fromhex(digest), np.stack([epochs, ids], axis=1).astype("<i4").tobytes()
    for place in range(0, len(data), 8):
        state = hashlib.sha256(state + data[place : place + 8]).digest()
    return state.hex()


@dataclasses.dataclass(frozen=True)
class Stretch:
    """The examples between two evaluations.

    Attributes:
      epoch: its end, in epochs.
      begin, end: positions in the stream.
      is_right: whether the run used exactly the examples of these positions, in their order.
    """

    epoch: float
    begin: int
    end: int
    is_right: bool


def check(records: Sequence[Mapping[str, Any]]) -> Iterator[Stretch]:
    """Compares the hashes in the records of metrics.jsonl with those of the order that (seed, epoch) gives.

    Raises UserError if the record of the run's start is missing.
    """
    check_metrics(Path("metrics.jsonl"), records, _AUDITED)
    start = next((record for record in records if record["kind"] == "start"), None)
    if start is None or not start["train_examples"]:
        raise UserError("metrics.jsonl is missing, or has no record of the start of the run")
    size, seed, begin, balanced = start["train_examples"], start["seed"], 0, None
    if labels := start.get("labels"):
        if not is_row(labels, *[int] * size) or not all(0 <= label < 2**31 for label in labels):
            raise UserError("metrics.jsonl is damaged: labels is no list of so many numbers as train_examples says")
        balanced = np.array(labels, np.int32)
    for record in records:
        if record["kind"] == "epoch":
            end = record["examples_seen"]
            is_right = chain("", *presentations(size, seed, begin, end, balanced)) == record.get("ids_sha256")
            yield Stretch(record["epoch"], begin, end, is_right)
            begin = end


def presentations(
    size: int, seed: int, begin: int, end: int, balanced: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and ids, [examples], at the positions `begin` to `end` - 1 of training; see `epoch_examples`."""
    numbers = range(begin // size, -(-end // size))
    orders = [epoch_examples(size, seed, number, balanced)["id"] for number in numbers]
    if balanced is None and not all(np.array_equal(np.sort(order), np.arange(size)) for order in orders):
        raise AssertionError("an epoch's order is no permutation")
    chosen = slice(begin - numbers.start * size, end - numbers.start * size)
    return np.repeat(numbers, size)[chosen], np.concatenate(orders)[chosen]
