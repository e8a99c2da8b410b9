"""The files under results/: measurements with their data, seeds, versions and hardware."""

import argparse
import dataclasses
import datetime
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.system.files import write_json
from alexnet_jax.system.machine import available_cores, memory_bytes, processor_name
from alexnet_jax.system.versions import describe_environment


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for a single value) and number of values."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarises values. Raises statistics.StatisticsError if there are none."""
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def text(self, form: str = ".2f") -> str:
        """Mean ± standard deviation, each formatted by `form`, like ".2f" or ".2%"."""
        return format(self.mean, form) + ("" if self.std is None else f" ± {format(self.std, form)}")


def describe_data(config: ConfigDict, workdir: Path) -> str:
    """Names the data set of a finished run and the sizes of its splits.

    Args:
      config: the config of the run.
      workdir: its folder.
    """
    records = {record["kind"]: record for record in read_metrics(workdir)}
    sizes = {
        "training": records["start"]["train_examples"],
        "validation": records["epoch"]["validation_count"],
        "test": records["test"]["count"],
    }
    name = f"folder {Path(config.data.dir).name}" if config.data.name == "folder" else config.data.name
    return f"{name}: {', '.join(f'{count:,} {split}' for split, count in sizes.items())} images"


def results_command(
    command: str, options: argparse.Namespace, defaults: Mapping[str, Any], words: Sequence[str]
) -> list[str]:
    """The arguments of `python` that reproduce a result, without those that only concern this machine.

    Args:
      command: the subcommand of alexnet_jax.
      options: its parsed options.
      defaults: the options that affect the results; those equal to their default are left out.
      words: its arguments for the config.
    """
    flags = []
    for name, default in defaults.items():
        value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        if name == "seeds" and value != default:
            flags.append(f"{flag}={','.join(map(str, value))}")
        elif isinstance(value, list) and value != default:
            flags += [flag, *map(str, value)]
        elif value != default:
            flags.append(f"{flag}={value:g}" if isinstance(value, float) else f"{flag}={value}")
    local = ("--config.data.dir", "--config.data.prep", "--config.comp")  # folders of this machine
    return ["-m", "alexnet_jax", command, *(word for word in words if not word.startswith(local)), *flags]


def write_results(
    path: Path, command: Sequence[str], data: str, seeds: Sequence[int], results: Mapping[str, Any]
) -> None:
    """Writes a result file with today's date and this machine's hardware and versions.

    Args:
      path: the JSON file to write.
      command: the arguments of `python` that reproduce it.
      data: the data set, with the sizes of its splits.
      seeds: the seeds of the runs.
      results: the measurements, plain data that JSON can hold.
    """
    device = jax.devices()[0]
    hardware = {
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "processor": processor_name(),
        "cores": available_cores(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
    }
    about = {"measured": datetime.datetime.now(datetime.UTC).date().isoformat(), "data": data, "seeds": list(seeds)}
    environment = describe_environment(list(command))
    write_json(path, {**about, "hardware": hardware, **environment, "results": dict(results)})
