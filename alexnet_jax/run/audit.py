"""Checks that a run used the right images: each once an epoch, in the order that the seed gives.

Between two evaluations a run chains the ids of the examples that its devices really used into a hash, which is kept in
metrics.jsonl. It does not depend on restarts, batch size, devices or hosts.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data.loader import epoch_order
from alexnet_jax.errors import UserError
from alexnet_jax.run.record_kinds import Needed, check_metrics

_AUDITED: Needed = {"start": {"seed": int, "train_examples": int}, "epoch": {"epoch": (int, float)}}
"""What an audit reads of a record: less than a report, so that runs of every version can be audited."""


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
    size, seed, begin = start["train_examples"], start["seed"], 0
    for record in records:
        if record["kind"] == "epoch":
            end = record["examples_seen"]
            is_right = chain("", *presentations(size, seed, begin, end)) == record.get("ids_sha256")
            yield Stretch(record["epoch"], begin, end, is_right)
            begin = end


def presentations(size: int, seed: int, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and ids, [examples], at the positions `begin` to `end` - 1 of training; an epoch has `size` examples."""
    numbers = range(begin // size, -(-end // size))
    orders = [epoch_order(size, seed, number) for number in numbers]
    if not all(np.array_equal(np.sort(order), np.arange(size)) for order in orders):
        raise AssertionError("an epoch's order is no permutation")
    chosen = slice(begin - numbers.start * size, end - numbers.start * size)
    return np.repeat(numbers, size)[chosen], np.concatenate(orders)[chosen]
