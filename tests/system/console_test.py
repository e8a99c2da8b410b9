"""What people read: on a terminal, and in the file that a job without one writes."""

import io
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from alexnet_jax.system import console
from tests.conftest import REPOSITORY

ODD_NAME = ":cat: [red]x[/red] \x1b[31m\r\t.jpg"
SHOWN = r":cat: [red]x[/red] \x1b[31m\r\t.jpg"


class Terminal(io.StringIO):
    """Text written to a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A stand-in for the module time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5.21, "5.2 s"),
        (3540.0, "59 min"),
        (3599.9, "1 h"),
        (3700.0, "1 h 2 min"),
        (90_061.0, "1 d 1 h"),
        (1e8, "1,157 d 9 h"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (ODD_NAME, SHOWN),
        ("a\nb\x7f\x9b\u202e\udce9", r"a\nb\x7f\x9b\u202e\udce9"),
        ("Zürich 95\u00a0% ± 1 “猫”", "Zürich 95\u00a0% ± 1 “猫”"),
    ],
)
def test_what_is_no_printable_character_is_escaped(text: str, shown: str) -> None:
    assert console.printable(text) == shown


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a picture in place of :cat:, nor colours by markup, nor control characters."""
    console.show(f"first\n{ODD_NAME}")
    console.show_facts({"[b]name": ODD_NAME, ODD_NAME: ""})
    console.show_table(["[b]heading", ODD_NAME], [[ODD_NAME, ""]], footer=["", ODD_NAME])
    output = capsys.readouterr().out
    assert output.count(SHOWN) == 6 and "\x1b" not in output
    assert f"first\n{SHOWN}\n" in output
    assert "[b]name" in output and "[b]heading" in output


def test_no_color_leaves_out_colours() -> None:
    code = "from alexnet_jax.system import console; console.warn('text')"
    plain, coloured = (
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm", **more},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for more in ({"NO_COLOR": "1"}, {"NO_COLOR": ""})
    )
    assert plain == "warning: text\n"
    assert coloured == "\x1b[33mwarning: text\x1b[0m\n"


def test_without_a_terminal_steps_are_a_line_each_30_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.step_progress(30_060, 0) as bar:
        for step in range(1, 301):
            clock.now += 0.5
            bar.update(step, "epoch 0.12/30  loss 6.908", 506.0)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "step 60/30,060  epoch 0.12/30  loss 6.908  506 images/s  4 h 10 min left"
    assert [line.split()[1] for line in others] == [f"{step}/30,060" for step in (120, 180, 240, 300)]


def test_the_time_left_does_not_count_the_compilation(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.step_progress(900_900, 123_000) as bar:
        clock.now += 1000.0
        bar.update(123_001, "epoch 12.30/90  loss 6.908", 12_345.0)
        clock.now += 30.0
        bar.describe("evaluating validation")
        clock.now += 30.0
        bar.update(123_301, "epoch 12.34/90  loss 6.908", 12_345.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 123,001/900,900  epoch 12.30/90  loss 6.908  12,345 images/s",
        "step 123,001/900,900  evaluating validation",
        "step 123,301/900,900  epoch 12.34/90  loss 6.908  12,345 images/s  1 d 19 h left",
    ]
    assert max(map(len, lines)) <= 80


def test_without_a_terminal_other_work_shows_its_percentage(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.work_progress("preparing", total=1000, finished=100) as bar:
        for _ in range(4):
            clock.now += 10.0
            bar.advance(100, 50)
    assert capsys.readouterr().out == "preparing  40%  5 images/s  1 min left\n"


def test_who_is_muted_prints_no_progress(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.muted(), console.work_progress("preparing", total=10) as bar:
        clock.now += 100.0
        bar.advance(1)
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    options: dict[str, Any] = {"file": terminal, "force_terminal": True, "width": 80, "markup": False}
    monkeypatch.setattr(console, "_console", Console(_environ={"TERM": "xterm"}, **options))
    assert console.draws_bars()
    with console.step_progress(30_000, 0) as bar:
        bar.update(1, "epoch 12.12/30  loss 6.908", 506.0)
        bar.update(2, "epoch 12.12/30  loss 6.908", 506.0)
        bar._progress.refresh()
    frames = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.getvalue()))
    assert any(frame.startswith("compiling the training step ") and frame.rstrip().endswith("0 s") for frame in frames)
    assert any("loss 6.908" in frame and "506 images/s" in frame and " left" in frame for frame in frames)
    assert max(map(len, frames)) <= 80


def test_seconds_are_counted_until_there_is_a_speed() -> None:
    clock = Clock()
    progress = Progress(get_time=clock.monotonic)
    progress.add_task("compiling", rest="")
    clock.now = 17.3
    (task,) = progress.tasks
    assert str(console._Rest().render(task)) == "17 s"
    task.fields["rest"] = "506 images/s"
    assert str(console._Rest().render(task)) == "506 images/s"


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_console", Console(file=Terminal(), _environ={"TERM": "dumb"}))
    assert not console.draws_bars()
