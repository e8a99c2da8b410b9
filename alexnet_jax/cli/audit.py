"""`python -m alexnet_jax audit RUN`: proof that a run used every image once an epoch, in the order of its seed."""

import argparse
from pathlib import Path

from alexnet_jax.errors import AuditFailedError, UserError
from alexnet_jax.run import audit
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.system import console


def main(argv: list[str]) -> None:
    """Prints a line for each stretch between evaluations. Raises AuditFailedError if one is wrong."""
    parser = argparse.ArgumentParser(prog="python -m alexnet_jax audit", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run")
    run = parser.parse_args(argv).run
    records = read_metrics(run)
    stretches = list(audit.check(records))
    if not stretches:
        raise UserError(f"{run}: no evaluation is recorded yet, so there is nothing to audit")
    for stretch in stretches:
        verdict = "as they should be" if stretch.is_right else "NOT those that stand there"
        images = f"{stretch.end - stretch.begin:,} images from {stretch.begin:,} on"
        console.show(f"epoch {stretch.epoch:6.2f}  {images}: {verdict}")
    wrong = [stretch for stretch in stretches if not stretch.is_right]
    if wrong:
        first = f"the first from position {wrong[0].begin:,} to {wrong[0].end:,}"
        raise AuditFailedError(f"{run}: {len(wrong)} of {len(stretches)} stretches used other images, {first}")
    epochs, start = int(stretches[-1].epoch), records[0]
    each = f"each used each of {start['train_examples']:,} images exactly once, in the order of seed {start['seed']}"
    console.show(f"{epochs} whole epochs: {each}")
