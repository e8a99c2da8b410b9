"""What is printed for people: text, tables, and progress, as a bar on a terminal and as lines elsewhere."""

import contextlib
import itertools
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

_console = Console(highlight=False, soft_wrap=False, markup=False, emoji=False)  # rich itself obeys NO_COLOR

LINE_SECONDS = 30.0
"""Where there is no terminal: time between two lines of progress."""


def silence() -> None:
    """Prints nothing from now on: in all processes of a run but one."""
    _console.quiet = True


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Prints nothing while the context lasts: around a run that is one of many."""
    quiet, _console.quiet = _console.quiet, True
    try:
        yield
    finally:
        _console.quiet = quiet


def draws_bars() -> bool:
    """Whether progress is drawn as a bar: standard output is a terminal that can move its cursor."""
    return _console.file.isatty() and not _console.is_dumb_terminal


def end_bar() -> None:
    """Shows the cursor again, which a progress bar has hidden, where the process ends inside its context."""
    _console.show_cursor()


def show(text: str, style: str = "") -> None:
    """Prints text, above the progress bar if there is one; line breaks are kept, other control characters escaped."""
    _console.print(printable(text, keep="\n"), style=style, soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning line."""
    show(f"warning: {text}", style="yellow")


def show_facts(facts: Mapping[str, str]) -> None:
    """Prints names and values, one pair a line."""
    table = Table.grid("", Column(overflow="fold"), padding=(0, 2))
    for name, value in facts.items():
        table.add_row(printable(name), printable(value))
    _console.print(table)


def printable(text: str, keep: str = "") -> str:
    r"""Text with all but printable characters as escapes, such as \x1b: file and class names may hold anything.

    Args:
      text: may hold surrogates, as file names do that are not Unicode.
      keep: characters that stay as they are.
    """
    keep += "\xa0\u202f"  # spaces that do not break, which Unicode counts among separators
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], footer: Sequence[str] = (), right: Collection[str] = ()
) -> None:
    """Prints a table; cells that do not fit are folded. The columns named in `right` are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=bool(footer))
    for name, last in itertools.zip_longest(header, footer, fillvalue=""):
        table.add_column(
            printable(name), printable(last), overflow="fold", justify="right" if name in right else "left"
        )
    for row in rows:
        table.add_row(*map(printable, row))
    _console.print(table)


def percent(error: float | None) -> str:
    """An error in [0, 1] as a percentage with two decimals; a dash for None, an error that is not defined."""
    return "-" if error is None else f"{error:.2%}"


def duration(seconds: float) -> str:
    """A time in the units that suit it: "5.2 s", "12 min", "3 h 5 min", "2 d 4 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = ((days, "d"), (hours, "h"), (0 if days else minutes, "min"))
    return " ".join(f"{number:,} {unit}" for number, unit in parts if number)


class ProgressBar:
    """The progress of a run's steps, or of work on many images. Any thread may report it."""

    def __init__(self, progress: Progress, task: Any, is_counted: bool):
        """Shows the steps themselves if they are counted, else the percentage alone."""
        self._progress, self._task, self._is_counted, self._lock = progress, task, is_counted, threading.Lock()
        self._began = self._printed = time.monotonic()
        self._images, self._first, self._has_steps = 0, progress.tasks[0].completed, False

    def update(self, step: int, what: str, images_per_second: float) -> None:
        """Moves on to a step. The time left is estimated from the first call on: what was before was compilation."""
        if not self._has_steps:
            self._began, self._first, self._has_steps = time.monotonic(), step, True
        self._show(images_per_second, completed=step, description=what)

    def describe(self, what: str) -> None:
        """Says what is done now, between two steps."""
        self._show(0.0, description=what)

    def advance(self, work: int, images: int = 0) -> None:
        """Adds finished work, and the number of images in it."""
        with self._lock:
            self._images += images
        self._show(self._images / (time.monotonic() - self._began) if images else 0.0, advance=work)

    def _show(self, images_per_second: float, **changes: Any) -> None:
        """Draws the bar; where there is none, prints a line each LINE_SECONDS."""
        self._progress.update(self._task, **changes)
        now, task = time.monotonic(), self._progress.tasks[0]
        rest = [f"{images_per_second:,.0f} images/s"] if images_per_second else []
        if task.remaining is not None and task.completed > self._first:
            seconds = task.remaining * (now - self._began) / (task.completed - self._first)
            rest.append(f"{duration(seconds)} left")
        task.fields["rest"] = "  ".join(rest)
        with self._lock:
            if not self._progress.disable or now - self._printed < LINE_SECONDS:
                return
            self._printed = now
        counted = [f"step {task.completed:,.0f}/{task.total:,.0f}", task.description]
        show("  ".join([*(counted if self._is_counted else [task.description, f"{task.percentage:.0f}%"]), *rest]))


class _Rest(ProgressColumn):
    """Images/s and the time left; until they are known, the seconds so far."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["rest"] or f"{task.elapsed or 0:.0f} s")


def step_progress(total_steps: int, step: int) -> contextlib.AbstractContextManager[ProgressBar]:
    """`work_progress` over the steps of a run, which are counted."""
    return work_progress("compiling the training step", total_steps, step, is_counted=True)


@contextlib.contextmanager
def work_progress(what: str, total: int, finished: int = 0, is_counted: bool = False) -> Iterator[ProgressBar]:
    """Shows progress and the time left while the context lasts: as a bar, or as lines where there is no terminal."""
    count = MofNCompleteColumn() if is_counted else TaskProgressColumn()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(None), count, _Rest(Column(no_wrap=True)))
    is_off = _console.quiet or not draws_bars()
    with Progress(*columns, console=_console, transient=True, disable=is_off) as progress:
        yield ProgressBar(progress, progress.add_task(what, total=total, completed=finished, rest=""), is_counted)
