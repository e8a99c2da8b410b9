"""What a person sees while a run goes on."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from alexnet_jax.models import LayerSummary

_console = Console(highlight=False, soft_wrap=False)


def show(text: str, style: str = "") -> None:
    """Prints a line, above the progress bar if there is one."""
    _console.print(text, style=style, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning line."""
    show(f"warning: {text}", style="yellow")


def show_facts(facts: Mapping[str, str]) -> None:
    """Prints name and value, a line each."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, value)
    _console.print(table)


def show_layers(rows: Sequence[LayerSummary]) -> None:
    """Prints the table of layers with its totals."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("layer", "total")
    table.add_column("output", justify="right")
    table.add_column("parameters", f"{sum(row.parameters for row in rows):,}", justify="right")
    table.add_column("MACs an image", f"{sum(row.macs for row in rows):,}", justify="right")
    for row in rows:
        parameters, macs = (f"{number:,}" if number else "" for number in (row.parameters, row.macs))
        table.add_row(row.name, " x ".join(map(str, row.shape)), parameters, macs)
    _console.print(table)


def percent(error: float | None) -> str:
    """An error in [0, 1] as people read it; None, for what has no meaning, as a dash."""
    return "-" if error is None else f"{error:.2%}"


class StepProgress:
    """The progress bar over the steps of a run."""

    def __init__(self, progress: Progress, total_steps: int, step: int):
        self._progress = progress
        self._task = progress.add_task("", total=total_steps, completed=step, epoch="", speed="")

    def update(self, step: int, epoch: str, images_per_second: float) -> None:
        """Moves the bar to a step."""
        speed = f"{images_per_second:,.0f} images/s" if images_per_second else ""
        self._progress.update(self._task, completed=step, epoch=epoch, speed=speed)


@contextlib.contextmanager
def step_progress(total_steps: int, step: int) -> Iterator[StepProgress]:
    """Shows a progress bar with the time left while the context lasts; nothing where there is no terminal."""
    columns: list[Any] = [
        TextColumn("{task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=_console, transient=True, disable=not _console.is_terminal) as progress:
        yield StepProgress(progress, total_steps, step)
