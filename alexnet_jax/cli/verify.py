"""`python -m alexnet_jax verify FOLDER`: compares every file of a prepared data set with its digest."""

from pathlib import Path

from alexnet_jax.cli.arguments import command_parser
from alexnet_jax.data.manifest import MANIFEST, damaged_error, read_manifest
from alexnet_jax.errors import UserError
from alexnet_jax.system import console

MOST_NAMED = 10
"""Damaged files that are named."""


def main(argv: list[str]) -> None:
    """Says that all files are as they were prepared. Raises UserError that names those which are not."""
    parser = command_parser("verify", __doc__)
    parser.add_argument("folder", type=Path, help="of a prepared data set; the command prepare says where it lies")
    folder: Path = parser.parse_args(argv).folder
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} has no {MANIFEST}: it is no prepared data set, or an earlier version prepared it")
    total = sum(map(manifest.size, manifest.files))
    with console.work_progress(f"reading {folder}", total) as progress:
        faults = manifest.faults(progress.advance)
    if faults:
        named = [f"{name} ({fault})" for name, fault in faults.items()][:MOST_NAMED]
        raise damaged_error(folder, f"{len(faults)} of {len(manifest.files)} files: {', '.join(named)}")
    console.show(f"{folder}: all {len(manifest.files)} files, {total / 1e6:,.1f} MB, are as they were prepared")
