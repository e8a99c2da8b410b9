"""`python -m alexnet_jax show_batch --config=FILE:CHOICES`: a picture of augmented training images with labels."""

from pathlib import Path

from alexnet_jax.cli import arguments
from alexnet_jax.cli.flags import config_from_flags
from alexnet_jax.experiment import make_preprocessing, open_dataset
from alexnet_jax.inference.training_batch import first_training_images
from alexnet_jax.system import console
from alexnet_jax.system.files import write_bytes


def main(argv: list[str]) -> None:
    """Writes the first 32 training images of a run as the network would see them to a PNG file."""
    usage = (arguments.CONFIG, "[--output=FILE.png]")
    parser = arguments.config_parser(arguments.program("show_batch"), __doc__, *usage)
    parser.add_argument("--output", type=Path, default=Path("batch.png"), help="the picture; by default batch.png")
    options, words = arguments.parse(parser, argv)
    config = config_from_flags("show_batch", words)
    dataset = open_dataset(config.data)
    shown = first_training_images(config, make_preprocessing(config.data, dataset.statistics), dataset)
    write_bytes(options.output, shown.png())
    console.show(f"{len(shown.images)} augmented training images lie in {options.output}")
