"""The record of a run: what is written, what a resumed run leaves of it, and the files beside it."""

import importlib.metadata
import json
import os
import platform
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from alexnet_jax.errors import UserError
from alexnet_jax.run.metrics_log import MetricWriter, read_metrics
from alexnet_jax.system.files import acquire_lock, write_bytes, write_json
from alexnet_jax.system.versions import _git_revision, describe_environment
from tests.conftest import full_disk


def write_epochs(workdir: Path, *epochs: int, opened_at: int = 0) -> None:
    """Records a step, an epoch and its timing for each, 10 examples apart."""
    with MetricWriter(workdir, opened_at) as writer:
        for epoch in epochs:
            seen = 10 * epoch
            writer.write("step", seen - 5, {"loss": (0.1 + 0.2) / epoch, "learning_rate": 1e-5})
            writer.write("epoch", seen, {"validation_top1_error": 1 / (3 * epoch), "validation_top5_error": None})
            writer.write("division", seen, {"learning_rate": 0.001, "reason": "“due” at 50 %"})
            writer.write_timing(seen, {"train_seconds": 1.5 * epoch})


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# metrics.jsonl and timing.jsonl


def test_records_are_appended_in_order(tmp_path: Path) -> None:
    with MetricWriter(tmp_path / "new" / "run", 0) as writer:
        writer.write("step", 64, {"loss": 2.5})
        writer.write_timing(64, {"train_seconds": 0.5})
        writer.write("epoch", 128, {"loss": 2.25, "top5_error": None})
        # They can be read while the run goes on.
        assert read_metrics(tmp_path / "new" / "run") == [
            {"kind": "step", "examples_seen": 64, "loss": 2.5},
            {"kind": "epoch", "examples_seen": 128, "loss": 2.25, "top5_error": None},
        ]
    assert read_lines(tmp_path / "new" / "run" / "timing.jsonl") == [{"examples_seen": 64, "train_seconds": 0.5}]


def test_metrics_of_a_folder_without_a_run_are_empty(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize(("position", "epochs_left"), [(30, [1, 2, 3]), (29, [1, 2]), (20, [1, 2]), (10, [1]), (0, [])])
def test_reopening_drops_what_was_written_after_the_position(
    tmp_path: Path, position: int, epochs_left: list[int]
) -> None:
    write_epochs(tmp_path, 1, 2, 3)
    write_epochs(tmp_path, opened_at=position)
    assert [r["examples_seen"] for r in read_metrics(tmp_path) if r["kind"] == "epoch"] == [10 * e for e in epochs_left]
    assert [r["train_seconds"] for r in read_lines(tmp_path / "timing.jsonl")] == [1.5 * e for e in epochs_left]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("rest", ['{"kind": "step", "examp', '{"kind": "step", "examples_seen": 15}', "{"])
def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, rest: str) -> None:
    write_epochs(tmp_path, 1)
    complete = read_metrics(tmp_path)
    for name in ("metrics.jsonl", "timing.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write(rest)
    assert read_metrics(tmp_path) == complete
    write_epochs(tmp_path, 2, opened_at=10)
    assert [r["examples_seen"] for r in read_metrics(tmp_path)] == [5, 10, 10, 15, 20, 20]
    assert [r["examples_seen"] for r in read_lines(tmp_path / "timing.jsonl")] == [10, 20]


@pytest.mark.parametrize("position", [0, 10, 20, 30])
def test_an_interrupted_run_leaves_the_bytes_of_an_uninterrupted_one(tmp_path: Path, position: int) -> None:
    write_epochs(tmp_path / "whole", 1, 2, 3, 4)
    write_epochs(tmp_path / "resumed", 1, 2, 3)
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')
    write_epochs(tmp_path / "resumed", *range(position // 10 + 1, 5), opened_at=position)
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl", "tensorboard"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    refused = pytest.raises(UserError, match=f"{name}.*File too large")
    with refused, MetricWriter(tmp_path, 0) as writer, full_disk(room=2**11):
        for step in range(1000):
            if name == "metrics.jsonl":
                writer.write("step", step, {"reason": "text"})
            elif name == "timing.jsonl":
                writer.write_timing(step, {})
            else:
                writer._board.write("step", step, {"loss": 1.0})


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    write_epochs(tmp_path, 1)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    for act in (lambda: read_metrics(tmp_path), lambda: MetricWriter(tmp_path, 10)):
        with pytest.raises(UserError, match=r"metrics\.jsonl"):
            act()


# TensorBoard


def events(workdir: Path) -> Iterator[Event]:
    """What the event files hold: records of length (8 bytes), checksum (4), an Event, and checksum (4)."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_tensorboard_has_every_number(tmp_path: Path) -> None:
    write_epochs(tmp_path, 1, 2)
    scalars = {
        (value.tag, event.step): value.simple_value for event in events(tmp_path) for value in event.summary.value
    }
    expected = {}
    for epoch in (1, 2):
        expected |= {
            ("step/loss", 10 * epoch - 5): 0.3 / epoch,
            ("step/learning_rate", 10 * epoch - 5): 1e-5,
            ("epoch/validation_top1_error", 10 * epoch): 1 / (3 * epoch),
            ("division/learning_rate", 10 * epoch): 0.001,
            ("timing/train_seconds", 10 * epoch): 1.5 * epoch,
        }
    assert scalars == pytest.approx(expected, rel=1e-6)


def test_tensorboard_has_the_picture(tmp_path: Path) -> None:
    with MetricWriter(tmp_path, 0) as writer:
        writer.write_picture("batch", 0, b"content of a file")
    (value,) = (value for event in events(tmp_path) for value in event.summary.value)
    assert (value.tag, value.image.encoded_image_string) == ("batch", b"content of a file")


def test_tensorboard_is_told_to_forget_what_comes_after_the_position(tmp_path: Path) -> None:
    write_epochs(tmp_path, 1, opened_at=20)
    starts = [event.step for event in events(tmp_path) if event.session_log.status == event.session_log.START]
    assert starts == [21]


# JSON files


def test_write_json_leaves_the_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.json"
    for content in ({"std": (1.0, 2.0), "name": None}, {"seed": 1}):
        write_json(path, content)
        assert json.loads(path.read_text()) == json.loads(json.dumps(content))
        assert list(path.parent.iterdir()) == [path]


def test_write_json_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"seed": 1})
    with full_disk(room=3), pytest.raises(UserError, match=r"config\.json.*File too large"):
        write_json(path, {"seed": 2})
    with pytest.raises(TypeError):
        write_json(path, {"seed": object()})
    assert json.loads(path.read_text()) == {"seed": 1}


# The environment


def test_environment_names_command_versions_and_revision() -> None:
    environment = describe_environment(["main.py", "--config=configs/alexnet.py"])
    assert environment["command"] == ["main.py", "--config=configs/alexnet.py"]
    assert environment["python"] == platform.python_version()
    assert environment["cpu_threads"] == int(os.environ["NPROC"])
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["packages"]["numpy"] == np.__version__
    assert environment["packages"]["pillow"] == importlib.metadata.version("pillow")
    assert environment["git"] is None or re.match(r"[0-9a-f]{40}(-dirty)?$", environment["git"])
    assert json.loads(json.dumps(environment)) == environment


@pytest.fixture
def git_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that belongs to no checkout and sees no git settings."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "checkout"
    folder.mkdir()
    return folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@example.com", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_revision_is_the_commit_whatever_its_tags(git_folder: Path) -> None:
    (git_folder / "file").write_text("committed")
    git(git_folder, "init")
    git(git_folder, "add", "file")
    git(git_folder, "commit", "--message=first")
    git(git_folder, "tag", "--annotate", "--message=first", "v1")
    commit = git(git_folder, "rev-parse", "HEAD")
    assert _git_revision(git_folder) == commit
    (git_folder / "file").write_text("changed")
    assert _git_revision(git_folder) == f"{commit}-dirty"


def test_there_is_no_revision_outside_a_checkout_or_without_git(
    git_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _git_revision(git_folder) is None
    git(git_folder, "init")
    assert _git_revision(git_folder) is None, "a checkout without a commit"
    monkeypatch.setenv("PATH", "")
    assert _git_revision(Path(__file__).parent) is None


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text("kept")
    folder.mkdir()
    for name in ("report.html", "report.html.tmp"):
        (folder / name).symlink_to(outside)
    write_bytes(folder / "report.html", b"new")
    assert outside.read_text() == "kept"
    assert not (folder / "report.html").is_symlink() and (folder / "report.html").read_bytes() == b"new"
    assert [path.name for path in folder.iterdir()] == ["report.html"]


def test_a_link_to_nothing_is_replaced(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "timing.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    write_epochs(tmp_path, 1)
    assert not (tmp_path / "outside").exists() and len(read_metrics(tmp_path)) == 3


def test_a_lock_is_one_processs_and_no_link_is_followed(tmp_path: Path) -> None:
    lock, link, outside = tmp_path / "lock", tmp_path / "link", tmp_path / "outside"
    held = acquire_lock(lock, timeout=0.0)
    assert held is not None and acquire_lock(lock, timeout=0.0) is None
    held.close()
    again = acquire_lock(lock, timeout=0.0)
    assert again is not None
    again.close()
    outside.write_text("kept")
    link.symlink_to(outside)
    with pytest.raises(UserError, match=r"link"):
        acquire_lock(link, timeout=0.0)
    assert outside.read_text() == "kept"


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", Path("/")):
        with pytest.raises(UserError, match="cannot write") as raised:
            write_bytes(path, b"content")
        assert "disk full" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
