"""What the folder of a run holds, and whether a config may continue it."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import terminal
from alexnet_jax.checkpoint import restore_latest
from alexnet_jax.datasets import Dataset
from alexnet_jax.errors import UserError
from alexnet_jax.metric_writer import read_metrics


def find(workdir: Path, config: ConfigDict, dataset: Dataset) -> tuple[Any, dict[str, Any]]:
    """The arrays of the newest checkpoint, None if there is none; its "metadata"; and the records of "tests".

    Raises UserError if it is of another experiment.
    """
    restored, warnings = restore_latest(workdir / "checkpoints")
    for warning in warnings:
        terminal.warn(f"{warning}; the one before is used")
    tests = [record for record in read_metrics(workdir) if record["kind"] == "test"]
    if restored is None:
        return None, {"tests": tests}
    changes = config_lib.differences(restored.metadata["config"], config.to_dict())
    class_names = restored.metadata["class_names"]
    if list(class_names) != list(dataset.class_names):
        changes.append(f"classes: {len(class_names)} -> {len(dataset.class_names)}, or other names")
    elif restored.metadata.get("data") != dataset.content:
        changes.append(f"the images of {config.data.name} have changed since")
    if changes:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changes)}); for a new run give another --workdir"
        )
    return restored.tree, {"tests": tests, "metadata": restored.metadata}
