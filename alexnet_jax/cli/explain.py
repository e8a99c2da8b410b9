"""`python -m alexnet_jax explain --config=...`: where paper, source, Caffe and a run differ, and what that costs."""

from collections.abc import Iterator

from alexnet_jax.cli.flags import config_from_flags
from alexnet_jax.experiment import check_names
from alexnet_jax.fidelity.decisions import REFERENCES, UNMEASURED, Comparison, bookkeeping, explain
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.system import console

NAMES = dict(zip(REFERENCES, ("paper", "source", "Caffe"), strict=True))

CLASSES = 1000
"""Where the config does not say: ImageNet's."""


def main(argv: list[str]) -> None:
    """Prints the decisions that not all made alike, then those that they did, then what changes no result."""
    config = config_from_flags("explain", argv)
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
    """A row for each choice, with all that made it, and what is known of the decision."""
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
