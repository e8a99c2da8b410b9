"""What a run prints: the experiment, the table of layers, a line an epoch, learning-rate drops, the result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.experiment import Experiment
from alexnet_jax.models.summary import LayerSummary
from alexnet_jax.parallel import hosts
from alexnet_jax.run.proposal import propose
from alexnet_jax.system import console

SLOW_INPUT = 0.1
"""Fraction of the time spent waiting for images from which on it is shown."""


def show_header(
    experiment: Experiment,
    workdir: Path,
    command: str,
    fresh_layers: Sequence[str] | None = None,
    continued_from: str = "",
) -> None:
    """Prints what is trained, on which devices, for how long, and what the line of an epoch holds.

    Args:
      experiment: the network, the data and the devices.
      workdir: the folder of the run.
      command: the command line.
      fresh_layers: the layers that start afresh where the others are loaded from `config.init_from`; None elsewhere.
      continued_from: the epoch from which the run is continued; "" for a new run.
    """
    config, dataset, layers, plan = experiment.config, experiment.dataset, experiment.layers, experiment.plan
    sizes = ", ".join(f"{len(records.labels):,} {split}" for split, records in dataset.splits.items())
    parameters, macs = (sum(getattr(row, field) for row in layers) for field in ("parameters", "macs"))
    devices, processes = experiment.devices.devices, hosts.count()
    place = {"disk": str(dataset.directory), "host": "memory", "device": "the device's memory"}[experiment.source.cache]
    counted = " (evaluations without improvement)" if config.optimizer.schedule == "plateau" else ""
    facts = {
        "run": f"{workdir}, continued from epoch {continued_from}" if continued_from else str(workdir),
        "command": command,
        "network": f"{config.model.preset}, {parameters:,} parameters, {macs:,} MACs an image",
        "data": f"{config.data.name}: {sizes}; {dataset.num_classes} classes",
        "images": f"{config.data.image_size} pixels, crops of {config.data.crop}, from {place}",
        "devices": f"{len(devices)} x {devices[0].device_kind}, {experiment.devices.layout}, "
        f"{processes} process{'es' if processes > 1 else ''}; batch {config.batch_size}",
        "learning rate": experiment.make_learning_rates().describe(),
        "length": f"{plan.epochs:g} epochs, {plan.total_steps:,} steps",
        "each epoch": f"training loss, top-1/top-5 error of validation, learning rate{counted}",
    }
    if fresh_layers is not None:
        afresh = f"{', '.join(fresh_layers)} starts afresh, as the classes differ; " if fresh_layers else ""
        facts["start"] = f"{afresh}parameters of {config.init_from}"
    console.show_facts(facts)
    show_layers(layers, None if fresh_layers is None else _starts(experiment, fresh_layers))
    if not continued_from and (line := propose(experiment)):
        console.show(line)
    if dataset.num_classes <= 5:
        console.show("With 5 or fewer classes every top-5 prediction is right: top-5 error is left out.")


def show_layers(layers: Sequence[LayerSummary], starts: Mapping[str, tuple[str, str]] | None = None) -> None:
    """Prints the table of layers: output shape, parameters and multiply-accumulates (MACs), with their totals.

    Args:
      layers: its rows.
      starts: where a fine-tuning run gets the parameters of each layer, and their learning rate.
    """
    header = ("layer", "output", "parameters", "MACs an image")
    rows = [
        [row.name, " x ".join(map(str, row.shape)), *(f"{n:,}" if n else "" for n in (row.parameters, row.macs))]
        for row in layers
    ]
    totals = ("total", "", f"{sum(row.parameters for row in layers):,}", f"{sum(row.macs for row in layers):,}")
    more = () if starts is None else ("start", "learning rate")
    if starts:
        rows = [[*cells, *starts.get(row.name, ("", ""))] for row, cells in zip(layers, rows, strict=True)]
    console.show_table((*header, *more), rows, totals, right=header[1:])


def _starts(experiment: Experiment, fresh_layers: Sequence[str]) -> dict[str, tuple[str, str]]:
    """How each layer with parameters starts in a fine-tuning run, and its learning rates once they are warmed up."""
    rates = experiment.make_learning_rates().at(experiment.config.optimizer.warmup_epochs).by_parameter
    origins = {layer: "afresh" if layer in fresh_layers else "loaded" for layer in rates}
    return {layer: (origins[layer], _learning_rates(of_layer)) for layer, of_layer in rates.items()}


def _learning_rates(of_layer: Mapping[str, float]) -> str:
    """The learning rates of a layer's parameters: "0.01", or "0.01/0.02" where that of the bias differs, or frozen."""
    if not any(of_layer.values()):
        return "frozen"
    kernel_first = sorted(of_layer, key="kernel".__ne__)
    return "/".join(dict.fromkeys(f"{of_layer[name]:g}" for name in kernel_first))


def show_epoch(record: Mapping[str, Any], optimizer: ConfigDict, images_per_second: float, input_share: float) -> None:
    """Prints the line of an epoch, at most 80 columns wide.

    Args:
      record: of the evaluation, as metrics.jsonl has it.
      optimizer: `config.optimizer`.
      images_per_second: of the last seconds of training; 0.0 if it is not known.
      input_share: fraction of the time spent waiting for images since the last pause.
    """
    top1, top5 = (record[f"validation_top{k}_error"] for k in (1, 5))
    error = f"{100 * top1:5.2f}" + ("" if top5 is None else f"/{100 * top5:.2f}")
    line = f"epoch {record['epoch']:5.2f}  loss {record['train_loss']:.4f}  error {error}%"
    line += f"  lr {record['learning_rate']:.3g}"
    if optimizer.schedule == "plateau":
        line += f" ({record['plateau_count']}/{optimizer.patience})"
    console.show(line + (f"  {images_per_second:,.0f} images/s" if images_per_second else ""))
    if input_share >= SLOW_INPUT:
        console.show(f"  waited for images {input_share:.0%} of the time")


def show_change(before: float, after: float, reason: str) -> None:
    """Prints that the learning rate has changed, and why: `reason` is that of the record in metrics.jsonl."""
    console.show(f"  learning rate {before:.3g} -> {after:.3g}: {reason}", style="bold")


def show_chance_level(loss: float, chance: float) -> None:
    """Prints that the plateau rule waits, because the loss is at chance level."""
    console.show(f"  no learning-rate drop yet: the loss {loss:.4f} is still at chance level, {chance:.4f}")


def show_fallen(learning_rate: float) -> None:
    """Prints what the restart in the command that continues a run is for."""
    console.show(
        f"More epochs train at the last learning rate, {learning_rate:.3g}, unless restart_epochs starts the schedule "
        "anew, as above; a new run of that length is often better still"
    )


def show_end(result: Mapping[str, Any], state: str, workdir: Path, commands: Mapping[str, str]) -> None:
    """Prints a run's test error, where it lies and the commands that use it next.

    Args:
      result: the test record of metrics.jsonl.
      state: such as "is finished".
      workdir: its folder.
      commands: by what they do; see `run_folder.next_commands`.
    """
    top1, top5 = console.percent(result["top1_error"]), console.percent(result["top5_error"])
    which = f" of the best checkpoint, {result['checkpoint']:,}" if "checkpoint" in result else ""
    counted = f"({result['count']:,} images)"
    console.show(f"\n{result['split']} error{which}: top-1 {top1}, top-5 {top5} {counted}", style="bold")
    console.show(f"The run {state} and lies in {workdir}")
    for name, command in commands.items():
        console.show(f"  {name}  {command}")
