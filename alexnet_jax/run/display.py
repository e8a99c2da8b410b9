"""What a person sees of a run: the experiment, its layers, a line an epoch, and its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexnet_jax.experiment import Experiment
from alexnet_jax.models.summary import LayerSummary
from alexnet_jax.parallel import hosts
from alexnet_jax.system import console


def show_header(experiment: Experiment, run: str, command: str, learning_rate: str) -> None:
    """Prints what is trained, on what and how long; `run` says where and from which epoch on."""
    config, dataset, layers, plan = experiment.config, experiment.dataset, experiment.layers, experiment.plan
    sizes = ", ".join(f"{len(records.labels):,} {split}" for split, records in dataset.splits.items())
    parameters, macs = (sum(getattr(row, field) for row in layers) for field in ("parameters", "macs"))
    devices, processes = experiment.devices.devices, hosts.count()
    place = {"disk": str(dataset.directory), "host": "memory", "device": "the device's memory"}[experiment.source.cache]
    facts = {
        "run": run,
        "command": command,
        "network": f"{config.model.preset}, {parameters:,} parameters, {macs:,} MACs an image",
        "data": f"{config.data.name}: {sizes}; {dataset.num_classes} classes",
        "images": f"{config.data.image_size} pixels, crops of {config.data.crop}, from {place}",
        "devices": f"{len(devices)} x {devices[0].device_kind}, {experiment.devices.layout}, "
        f"{processes} process{'es' if processes > 1 else ''}; batch {config.batch_size}",
        "learning rate": learning_rate,
        "length": f"{plan.epochs:g} epochs, {plan.total_steps:,} steps",
    }
    console.show_facts(facts)
    show_layers(layers)
    if dataset.num_classes <= 5:
        console.show("With 5 or fewer classes every top-5 prediction is right: top-5 error is left out.")


def show_layers(layers: Sequence[LayerSummary]) -> None:
    """Prints the table of layers with its totals."""
    header = ("layer", "output", "parameters", "MACs an image")
    rows = [
        [row.name, " x ".join(map(str, row.shape)), *(f"{n:,}" if n else "" for n in (row.parameters, row.macs))]
        for row in layers
    ]
    totals = ("total", "", f"{sum(row.parameters for row in layers):,}", f"{sum(row.macs for row in layers):,}")
    console.show_table(header, rows, totals, right=header[1:])


def show_epoch(record: Mapping[str, Any], patience: int, measured: Mapping[str, float]) -> None:
    """Prints the line of an epoch; `measured` is that of the `Throughput` before its evaluation."""
    top1, top5 = (console.percent(record[f"validation_top{k}_error"]) for k in (1, 5))
    speed = ""
    if measured["images_per_second"]:
        speed = f"  {measured['images_per_second']:,.0f} images/s, input {measured['input_share']:.0%}"
    quality = f"train loss {record['train_loss']:.4f}  validation top-1 {top1:>6} top-5 {top5:>6}"
    schedule = f"rate {record['learning_rate']:.3g}  plateau {record['plateau_count']}/{patience}"
    console.show(f"epoch {record['epoch']:6.2f}  {quality}  {schedule}{speed}")


def show_end(result: Mapping[str, Any], state: str, workdir: Path, commands: Mapping[str, str]) -> None:
    """Prints a run's last error, where it is and what can be done next."""
    top1, top5 = console.percent(result["top1_error"]), console.percent(result["top5_error"])
    console.show(f"\n{result['split']} error: top-1 {top1}, top-5 {top5} ({result['count']:,} images)", style="bold")
    console.show(f"The run {state} and lies in {workdir}")
    for name, command in commands.items():
        console.show(f"  {name}  {command}")
