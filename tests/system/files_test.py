"""Tables that a spreadsheet only shows, and folders that are no links."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.cli import evaluate, report
from alexnet_jax.errors import UserError
from alexnet_jax.run.metrics_log import MetricWriter
from alexnet_jax.run.profiling import StepTrace
from alexnet_jax.system.files import make_folder, write_csv
from alexnet_jax.train_state import TrainState


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-1+1", "'-1+1"),
        ("-", "'-"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("a\r=1", "a\r=1"),
        ('a,b\n"=1"', 'a,b\n"=1"'),
        ("n02105855_1.JPEG", "n02105855_1.JPEG"),
        ("", ""),
        ("-1", "-1"),
        ("+0.5", "+0.5"),
        (-1.5, "-1.5"),
        (None, ""),
    ],
)
def test_text_that_a_spreadsheet_would_run_follows_an_apostrophe(cell: Any, written: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [["file", "label"], [cell, 3]])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["file", "label"], [written, "3"]]


def test_a_line_break_within_a_cell_is_quoted(tmp_path: Path) -> None:
    """Whichever: a spreadsheet would begin a row, and in it a formula."""
    write_csv(tmp_path / "a.csv", [["a\r=1", "b\n=1", "c"], ["d", "e", "f"]])
    assert (tmp_path / "a.csv").read_bytes() == b'"a\r=1","b\n=1",c\nd,e,f\n'


def test_a_folder_is_made_but_no_link_followed(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == make_folder(tmp_path / "a" / "b") and (tmp_path / "a/b").is_dir()
    for target in (tmp_path / "a", tmp_path / "nowhere"):
        link = tmp_path / f"to {target.name}"
        link.symlink_to(target)
        with pytest.raises(UserError, match=f"{link} is a symbolic link"):
            make_folder(link)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        make_folder(tmp_path / "file")


def set_aside(run: Path) -> None:
    with Checkpoints(run / "checkpoints", keep=1) as checkpoints:
        (run / "checkpoints" / "10").mkdir()
        checkpoints.set_aside_after(0)


def figures(run: Path) -> None:
    report.main([str(run), "--png"])


FOLDERS: dict[str, Callable[[Path], object]] = {
    "tensorboard": lambda run: MetricWriter(run, 0),
    "checkpoints": lambda run: Checkpoints(run / "checkpoints", keep=1),
    "damaged": set_aside,
    "profile": lambda run: StepTrace(run / "profile", 1)._start(TrainState({}, {}, (), {}, None)),
    "evaluation": lambda run: evaluate.main([str(run)]),
    "figures": figures,
}


class OnlyFolder:
    """Stands in for an evaluation and a report of which only the folder is asked."""

    def __init__(self, run: Path):
        self.run, self.folder = self, run


@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_in_place_of_a_folder_of_a_run_is_not_followed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "evaluate_run", lambda run, *_: OnlyFolder(run))
    monkeypatch.setattr(evaluate, "_show", lambda _: None)
    monkeypatch.setattr(report, "make_report", lambda *_: None)
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / name).parent.mkdir(parents=True)
    outside.mkdir()
    (run / name).symlink_to(outside)
    with pytest.raises(UserError, match=str(run / name)) as caught:
        FOLDERS[name](run)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert not list(outside.iterdir())
