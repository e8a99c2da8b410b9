"""`python -m alexnet_jax prepare --config=FILE:CHOICES`: makes images ready to be read fast, says what is in them."""

from alexnet_jax.cli.flags import config_from_flags
from alexnet_jax.experiment import open_dataset
from alexnet_jax.system import console


def main(argv: list[str]) -> None:
    """Prepares what is not prepared yet."""
    dataset = open_dataset(config_from_flags("prepare", argv).data)
    sizes = ", ".join(f"{len(records.labels):,} {split}" for split, records in dataset.splits.items())
    console.show(f"ready in {dataset.directory}: {sizes}; {dataset.num_classes} classes")
