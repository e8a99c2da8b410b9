"""`python -m alexnet_jax prepare --config=FILE:CHOICES`: prepares images to be read fast, reports what is in them."""

from alexnet_jax.cli.arguments import parse_config
from alexnet_jax.experiment import open_dataset
from alexnet_jax.system import console


def main(argv: list[str]) -> None:
    """Prepares the data set unless that is done already, and prints where it lies and the sizes of its splits."""
    dataset = open_dataset(parse_config("prepare", __doc__, argv).data)
    sizes = ", ".join(f"{len(records.labels):,} {split}" for split, records in dataset.splits.items())
    console.show(f"ready in {dataset.directory}: {sizes}; {dataset.num_classes} classes")
