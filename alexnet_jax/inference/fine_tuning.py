"""What a fine-tuning run starts from: the parameters of another run, or of another program's file of weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from alexnet_jax.config import decisive
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import make_preprocessing
from alexnet_jax.inference.imagenet import default_class_names
from alexnet_jax.inference.layouts import count_outputs, from_layout, guess_layout
from alexnet_jax.inference.loaded_run import TrainedRun, by_name, load_run
from alexnet_jax.inference.weight_files import compare, holds_run, read_arrays
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.system.files import expand_home

DECISIVE = ("data.image_size", "data.crop", "data.mean_form", "data.std", "data.mean")
"""Preprocessing keys that must agree for fine-tuning; `data.mean` only where both configs give one."""


def start_from(
    config: ConfigDict, class_names: Sequence[str], variables: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Loads the initial variables of a fine-tuning run from `config.init_from`.

    The last layer, and the logits of auxiliary classifiers, are copied only if the classes are the same; otherwise they
    stay as in `variables`.

    Args:
      config: the config of the new run.
      class_names: the classes of its data.
      variables: newly initialised variables, {"params", "batch_stats"}.

    Returns:
      The variables to start from, with the same structure, and the names of the layers that stayed as they were.

    Raises UserError that lists all differences in names, shapes and preprocessing, if there are any.
    """
    path = Path(expand_home(config.init_from))
    try:
        is_foreign = path.is_file() and not holds_run(path)
        run = _from_another_program(path, config) if is_foreign else load_run(path)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    theirs, ours = decisive(run.config.to_dict()), decisive(config.to_dict())
    differences = [
        f"config.{key}: {theirs[key]} there, {ours[key]} here"
        for key in DECISIVE
        if None not in (theirs[key], ours[key]) and theirs[key] != ours[key]
    ]
    if run.model.activation != (activation := get_model(config.model, 1).activation):
        differences.append(f"config.model.activation: {run.model.activation} there, {activation} here")
    old, fresh = by_name(run.variables), by_name(variables)
    fresh_layers = [] if run.class_names == tuple(class_names) else [*run.model.auxiliary_logits, run.layer_names[-1]]
    for layer in fresh_layers:
        old = {name: array for name, array in old.items() if not name.startswith(f"params/{layer}/")}
        old |= {name: array for name, array in fresh.items() if name.startswith(f"params/{layer}/")}
    differences += compare(old, fresh)
    if differences:
        raise UserError(f"config.init_from={config.init_from} does not fit this run: {'; '.join(differences)}")
    return traverse_util.unflatten_dict(old, sep="/"), fresh_layers


def _from_another_program(path: Path, config: ConfigDict) -> TrainedRun:
    """The network of a file of arrays. What arrays do not tell, preset and preprocessing, is that of the new run."""
    arrays = read_arrays(path)
    layout = guess_layout(arrays)
    network = ConfigDict({**config.model.to_dict(), "num_classes": None})  # the file has its own last layer
    try:
        outputs = count_outputs(layout, network, arrays)
        model = get_model(network, outputs)
        variables = from_layout(layout, model, config.data.crop, arrays)
    except UserError as error:
        raise UserError(f"{path} holds only arrays, in the layout of {layout}: {error}") from error
    return TrainedRun(
        path=path,
        config=config,
        class_names=tuple(default_class_names(outputs)),
        model=model,
        **variables,
        preprocessing=make_preprocessing(config.data, Statistics.unknown(config.data.image_size)),
        examples_seen=0,
        content="",
    )
