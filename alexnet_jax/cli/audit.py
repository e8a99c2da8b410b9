"""`python -m alexnet_jax audit RUN`: checks that a run used every image once an epoch, in the order of its seed."""

from alexnet_jax.checkpoint import newest_metadata
from alexnet_jax.cli.arguments import run_parser
from alexnet_jax.errors import AuditFailedError, UserError
from alexnet_jax.run import audit
from alexnet_jax.run.metrics_log import find_fault, read_metrics
from alexnet_jax.system import console


def main(argv: list[str]) -> None:
    """Prints a line for each stretch between two evaluations.

    Raises AuditFailedError if one used other images, or if the records are not as the run wrote them.
    """
    run = run_parser("audit", __doc__, "the folder of a run", checkpoint=False).parse_args(argv).run
    records = read_metrics(run)
    stretches = list(audit.check(records))
    if not stretches:
        raise UserError(f"{run}: no evaluation is recorded yet, so there is nothing to audit")
    for stretch in stretches:
        verdict = "in the expected order" if stretch.is_right else "MISMATCH with the expected order"
        images = f"{stretch.end - stretch.begin:,} images from {stretch.begin:,} on"
        console.show(f"epoch {stretch.epoch:6.2f}  {images}: {verdict}")
    wrong = [stretch for stretch in stretches if not stretch.is_right]
    if wrong:
        first = f"the first from position {wrong[0].begin:,} to {wrong[0].end:,}"
        raise AuditFailedError(f"{run}: {len(wrong)} of {len(stretches)} stretches used other images, {first}")
    if fault := find_fault(run, newest_metadata(run / "checkpoints").get("records", "")):
        raise AuditFailedError(fault)
    epochs, start = int(stretches[-1].epoch), records[0]
    how = "drew {:,} images, each class equally often" if "labels" in start else "used each of {:,} images exactly once"
    each = f"each {how.format(start['train_examples'])}, in the order of seed {start['seed']}"
    console.show(f"{epochs} whole epochs: {each}")
