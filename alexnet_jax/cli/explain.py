"""`python -m alexnet_jax explain --config=...`: where paper, source, Caffe and a run differ, and what that costs."""

from collections.abc import Iterator

from alexnet_jax.cli.flags import config_from_flags
from alexnet_jax.experiment import check_names
from alexnet_jax.fidelity.decisions import REFERENCES, UNMEASURED, Row, bookkeeping, explain
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.system import console

NAMES = ("paper", "source", "Caffe")

CLASSES = 1000
"""Where the config does not say: ImageNet's."""


def main(argv: list[str]) -> None:
    """Prints the decisions that not all made alike, then those that they did, then what changes no result."""
    config = config_from_flags("explain", argv)
    check_names(config)
    rows = explain(config, get_model(config.model, config.model.num_classes or CLASSES))
    disputed = [row for row in rows if row.is_disputed]
    console.show_table(["decision", "who", "what"], [cells for row in disputed for cells in _cells(row)])
    for reference, name in zip(REFERENCES, NAMES, strict=True):
        told = [agrees for row in rows if (agrees := row.agrees(reference)) is not None]
        console.show(f"As {name:<7}{sum(told)} of {len(told)} decisions")
    agreed = [f"{row.decision.name}: {row.this_run}" for row in rows if not row.is_disputed]
    console.show(f"\nAs all of them: {'; '.join(agreed)}")
    console.show(f"\nChanges no result: {', '.join(bookkeeping(config))}")


def _cells(row: Row) -> Iterator[list[str]]:
    """A line for each way in which it was done, with all that did so, and what is known of it."""
    decision = row.decision
    alike = [name for reference, name in zip(REFERENCES, NAMES, strict=True) if row.agrees(reference)]
    ways: dict[str, list[str]] = {row.this_run: ["this run", *alike]}
    for reference, name in zip(REFERENCES, NAMES, strict=True):
        if not row.agrees(reference):
            ways.setdefault(getattr(decision, reference), []).append(name)
    for number, (way, who) in enumerate(ways.items()):
        yield [decision.name if number == 0 else "", ", ".join(who), way]
    if decision.cost != UNMEASURED:
        yield ["", "what it costs", decision.cost]
    yield ["", "read in", decision.where]
    yield ["", "", ""]
