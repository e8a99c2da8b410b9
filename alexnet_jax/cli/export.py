"""`python -m alexnet_jax export RUN --format=FORMAT`: the network of a run as one file for other programs."""

from alexnet_jax.cli.arguments import run_parser
from alexnet_jax.inference.export import FORMATS, export_run
from alexnet_jax.inference.loaded_run import load_run
from alexnet_jax.system import console
from alexnet_jax.system.files import local_path

SHOWN = 5
"""Class names that are printed; the file has all."""


def main(argv: list[str]) -> None:
    """Writes the file once its outputs are found to equal those of the network, and prints what is in it."""
    parser = run_parser("export", __doc__)
    parser.add_argument("--format", required=True, choices=FORMATS, help="what will read it; see docs/export.md")
    parser.add_argument("--output", type=local_path, help="the file; by default RUN/model and the suffix of the format")
    options = parser.parse_args(argv)
    kind, run = FORMATS[options.format], load_run(options.run, options.checkpoint)
    path = options.output or run.folder / f"model{kind.suffix}"
    difference = export_run(run, kind, path)
    more = len(run.class_names) > SHOWN
    size, views = run.config.data.image_size, run.config.test_views
    facts = {
        "file": f"{path}, {path.stat().st_size / 1e6:,.1f} MB",
        "network": f"{run.config.model.preset}, checkpoint {run.examples_seen:,}",
        "input": f"uint8, [batch, {size}, {size}, 3], RGB; the batch of any size",
        "output": f"probabilities, float32, [batch, {len(run.outputs)}], the mean of {views} view{'s' * (views > 1)}",
        "classes": f"{len(run.class_names)}: {', '.join(run.class_names[:SHOWN])}{', ...' * more}",
        "check": f"differs from the network by at most {difference:.2g} (limit {kind.limit:g})",
    }
    console.show_facts(facts)
