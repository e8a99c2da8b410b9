"""The GPU benchmark completes on a CPU and resumes; its measurements on a GPU are not tested."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from tests.conftest import REPOSITORY

pytest.importorskip("torch")

from benchmarks import gpu, roofline

pytestmark = pytest.mark.slow

ROWS = (
    "| agreement, lenet, float32: checked | our loss goes from ",
    "| step, lenet, float32 | ",
    "| peaks of the card: matrix products, float32, highest precision | ",
    "| training from the device | ",
    "| training from the device: 90 epochs of ImageNet | ",
    "| training from the disk: of the bare step | ",
    "| evaluation, 1 view | ",
    "| evaluation, 10 views | ",
    "| step, deterministic | ",
    *(f"| parts of the step, lenet, float32: {part} | " for part in ("crops", "conv1", "fc5", "optimizer")),
)


def run(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", f"--output={folder}/gpu.json", *options]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)


def test_all_rows_are_measured(tmp_path: Path) -> None:
    done = run(tmp_path, "--smoke", "--presets=lenet", "--batch=2", "--rounds=1", "--round_seconds=0.1")
    assert done.returncode == 0, done.stderr
    places = [done.stdout.find(row) for row in ROWS]
    assert -1 not in places and places == sorted(places), done.stdout
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"].values()
    assert {side["failure"] for row in rows for side in (row.get("ours"), row.get("theirs")) if side} == {""}


def test_rows_are_kept_and_none_is_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []

    def broken() -> dict[str, Any]:
        measured.append("broken")
        raise ValueError("no such thing\nand more")

    def good() -> dict[str, Any]:
        measured.append("good")
        return {"lines": [("speed", "7 m/s")]}

    monkeypatch.setattr(gpu, "call", lambda *_: {"jax": "1.0"})
    monkeypatch.setattr(gpu, "make_rows", lambda *_: iter([("first", broken), ("second", good)]))
    settings = gpu.Settings(("lenet",), 2, rounds=1, round_seconds=0.1, smoke=True, folder=tmp_path)
    output = tmp_path / "gpu.json"
    for deadline in (0.0, math.inf, 0.0):
        gpu.measure(settings, output, deadline)
    assert measured == ["broken", "good"]
    before, *tables = capsys.readouterr().out.split("card CPU, jax 1.0, batch 2")[1:]
    assert "No time for 2 rows, from 'first' on" in before and tables[0] == tables[1]
    assert "| first | ValueError: no such thing | - | - | - | - |\n| second: speed | 7 m/s |" in tables[0]
    with pytest.raises(SystemExit, match=r"gpu\.json holds .*'batch': 2"):
        gpu.measure(dataclasses.replace(settings, batch=4), output, math.inf)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, PATH="")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "no NVIDIA GPU" in done.stderr


def out_of_memory() -> Callable[[int], None]:
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte\nand more")


def nothing_to_do() -> Callable[[int], None]:
    return lambda steps: None


def test_a_batch_that_does_not_fit_is_a_result() -> None:
    fits, full = gpu.take_turns([(nothing_to_do, 1), (out_of_memory, 1)], rounds=2, round_seconds=1e-6)
    assert len(fits.rates) == 2
    assert str(full) == "out of memory | -"
    (line,) = gpu.lines("step", {"ours": vars(fits), "theirs": vars(full)})
    assert line.endswith("| out of memory | - | - |")


def test_limits_of_a_layer(make_config: Callable[..., ConfigDict]) -> None:
    config = make_config("synthetic,caffe", batch_size=2, **{"model.num_classes": 1000})
    layer = {part.name: part for part in roofline.get_parts(config)}
    # Caffe's own shapes: 227 x 227 x 3 to 55 x 55 x 96 to 27 x 27 x 96; 4096 to 4096.
    assert layer["conv1"].flops == 2 * 2 * (2 * 55**2 * 96 * 11**2 * 3)
    activations = 2 * 227**2 * 3 + 2 * 55**2 * 96 + 2 * 27**2 * 96
    assert layer["conv1"].bytes == 4 * (2 * activations + 3 * (11**2 * 3 + 1) * 96)
    assert layer["fc7"].flops == 3 * 2 * 2 * 4096**2
    assert layer["fc7"].bytes == 4 * (2 * 6 * 4096 + 3 * 4097 * 4096)
    assert layer["optimizer"].bytes == 5 * 4 * 60_965_224
