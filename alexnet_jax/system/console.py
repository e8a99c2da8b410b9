"""What a person sees while a run goes on."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from alexnet_jax.models.alexnet import LayerSummary

_console = Console(highlight=False, soft_wrap=False)


def silence() -> None:
    """Shows nothing from now on: one process of many speaks for all."""
    _console.quiet = True


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Shows nothing while the context lasts: one run of many does not speak for itself."""
    quiet, _console.quiet = _console.quiet, True
    try:
        yield
    finally:
        _console.quiet = quiet


def show(text: str, style: str = "") -> None:
    """Prints a line, above the progress bar if there is one."""
    _console.print(_printable(text), style=style, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning line."""
    show(f"warning: {text}", style="yellow")


def show_facts(facts: Mapping[str, str]) -> None:
    """Prints name and value, a line each."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(_printable(value)))
    _console.print(table)


def _printable(text: str) -> str:
    """File names need not be Unicode."""
    return text.encode(errors="backslashreplace").decode()


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


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table of texts; what does not fit is folded."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    _console.print(table)


def percent(error: float | None) -> str:
    """An error in [0, 1] as people read it; None, for what has no meaning, as a dash."""
    return "-" if error is None else f"{error:.2%}"


def duration(seconds: float) -> str:
    """A time as people read it: "5.2 s", "12 min", "3 h 5 min", "2 d 4 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = ((days, "d"), (hours, "h"), (0 if days else minutes, "min"))
    return " ".join(f"{number:,} {unit}" for number, unit in parts if number)


def show_epoch(record: Mapping[str, Any], patience: int, images_per_second: float, input_share: float) -> None:
    """Prints the line of an epoch; `input_share` is the part of the time in which training waited for images."""
    top1, top5 = (percent(record[f"validation_top{k}_error"]) for k in (1, 5))
    show(
        f"epoch {record['epoch']:6.2f}  train loss {record['train_loss']:.4f}  "
        f"validation top-1 {top1:>6} top-5 {top5:>6}  "
        f"rate {record['learning_rate']:.3g}  plateau {record['plateau_count']}/{patience}"
        + (f"  {images_per_second:,.0f} images/s, input {input_share:.0%}" if images_per_second else "")
    )


def show_end(result: Mapping[str, Any], state: str, workdir: Path, commands: Mapping[str, str]) -> None:
    """Prints a run's last error, where it lies and what can be done next."""
    top1, top5 = percent(result["top1_error"]), percent(result["top5_error"])
    show(f"\n{result['split']} error: top-1 {top1}, top-5 {top5} ({result['count']:,} images)", style="bold")
    show(f"The run {state} and lies in {workdir}")
    for name, command in commands.items():
        show(f"  {name}  {command}")


class StepProgress:
    """The progress bar over the steps of a run."""

    def __init__(self, progress: Progress, total_steps: int, step: int):
        self._progress = progress
        self._task = progress.add_task("", total=total_steps, completed=step, epoch="compiling the step", speed="")

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
    ]
    with _progress(*columns) as progress:
        yield StepProgress(progress, total_steps, step)


class WorkProgress:
    """The progress bar over work of many images. Any thread may advance it."""

    def __init__(self, progress: Progress, task: Any):
        self._progress, self._task = progress, task
        self._began, self._images = time.monotonic(), 0

    def advance(self, work: int, images: int = 0) -> None:
        """Adds finished work and the images that it was."""
        self._images += images
        speed = f"{self._images / (time.monotonic() - self._began):,.0f} images/s" if images else ""
        self._progress.update(self._task, advance=work, speed=speed)


@contextlib.contextmanager
def work_progress(what: str, total: int, finished: int = 0) -> Iterator[WorkProgress]:
    """Shows a progress bar with the time left while the context lasts; nothing where there is no terminal."""
    columns = [TextColumn(what), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]}")]
    with _progress(*columns) as progress:
        yield WorkProgress(progress, progress.add_task("", total=total, completed=finished, speed=""))


def _progress(*columns: Any) -> Progress:
    time_left = (TextColumn("left"), TimeRemainingColumn())
    return Progress(
        *columns, *time_left, console=_console, transient=True, disable=_console.quiet or not _console.is_terminal
    )
