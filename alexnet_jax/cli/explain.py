"""`python -m alexnet_jax explain --config=...`: where paper, source, Caffe and a run differ, and the cost in error."""

from collections.abc import Iterator

from alexnet_jax.cli.arguments import parse_config
from alexnet_jax.experiment import check_names
from alexnet_jax.fidelity.decisions import REFERENCES, UNMEASURED, Comparison, bookkeeping, explain
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.system import console

NAMES = dict(zip(REFERENCES, ("paper", "source", "Caffe"), strict=True))

CLASSES = 1000
"""Classes where the config does not say: those of ImageNet."""


def main(argv: list[str]) -> None:
    """Prints the decisions that differ, then those that are the same everywhere, and the keys that change no result."""
    config = parse_config("explain", __doc__, argv)
    check_names(config)
    comparisons = explain(config, get_model(config.model, config.model.num_classes or CLASSES))
    disputed = [row for comparison in comparisons if comparison.is_disputed for row in _rows(comparison)]
    console.show_table(["decision", "who", "what"], disputed)
    for reference, name in NAMES.items():
        told = [agrees for comparison in comparisons if (agrees := comparison.agrees(reference)) is not None]
        console.show(f"As {name:<7}{sum(told)} of {len(told)} decisions")
    agreed = [f"{row.decision.name}: {row.this_run}" for row in comparisons if not row.is_disputed]
    console.show(f"\nAs all of them: {'; '.join(agreed)}")
    console.show(f"\nChanges no result: {', '.join(bookkeeping(config))}")


def _rows(comparison: Comparison) -> Iterator[list[str]]:
    """The rows of a decision: each choice with those that made it, its measured cost, and where that can be read."""
    decision, this_run = comparison.decision, str(comparison.this_run)
    choices = {this_run: ["this run"]}
    for reference, name in NAMES.items():
        choice = this_run if comparison.agrees(reference) else decision.text(reference)
        choices.setdefault(choice, []).append(name)
    for number, (choice, who) in enumerate(choices.items()):
        yield [decision.name if number == 0 else "", ", ".join(who), choice]
    if decision.cost != UNMEASURED:
        yield ["", "what it costs", decision.cost]
    yield ["", "read in", decision.where]
    yield ["", "", ""]
