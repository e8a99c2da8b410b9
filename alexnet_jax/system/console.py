"""What a person sees while a run goes on."""

import contextlib
import itertools
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

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
    table = Table.grid("", Column(overflow="fold"), padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, Text(_printable(value)))
    _console.print(table)


def _printable(text: str) -> str:
    """File names need not be Unicode."""
    return text.encode(errors="backslashreplace").decode()


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str] = (), right: Collection[str] = ()
) -> None:
    """Prints a table of texts; what does not fit is folded. Columns named in `right` are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=bool(footer))
    for name, last in itertools.zip_longest(header, footer, fillvalue=""):
        table.add_column(name, last, overflow="fold", justify="right" if name in right else "left")
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


class ProgressBar:
    """The progress bar over the steps of a run, or over work of many images. Any thread may advance it."""

    def __init__(self, progress: Progress, task: Any):
        self._progress, self._task = progress, task
        self._began, self._images = time.monotonic(), 0

    def update(self, step: int, what: str, images_per_second: float) -> None:
        """Moves the bar to a step."""
        self._show(images_per_second, completed=step, description=what)

    def advance(self, work: int, images: int = 0) -> None:
        """Adds finished work and the images that it was."""
        self._images += images
        self._show(self._images / (time.monotonic() - self._began) if images else 0.0, advance=work)

    def _show(self, images_per_second: float, **changes: Any) -> None:
        speed = f"{images_per_second:,.0f} images/s" if images_per_second else ""
        self._progress.update(self._task, speed=speed, **changes)


def step_progress(total_steps: int, step: int) -> contextlib.AbstractContextManager[ProgressBar]:
    """`work_progress` over the steps of a run, which are counted."""
    return work_progress("compiling the step", total_steps, step, MofNCompleteColumn())


@contextlib.contextmanager
def work_progress(what: str, total: int, finished: int = 0, *columns: Any) -> Iterator[ProgressBar]:
    """Shows a progress bar with the time left while the context lasts; nothing where there is no terminal."""
    about = (TextColumn("{task.description}"), BarColumn(), *columns, TaskProgressColumn())
    speed = (TextColumn("{task.fields[speed]}"), TextColumn("left"), TimeRemainingColumn())
    is_off = _console.quiet or not _console.is_terminal
    with Progress(*about, *speed, console=_console, transient=True, disable=is_off) as progress:
        yield ProgressBar(progress, progress.add_task(what, total=total, completed=finished, speed=""))
