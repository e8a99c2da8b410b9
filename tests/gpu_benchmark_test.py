"""The GPU benchmark completes on a CPU and resumes; its measurements on a GPU are not tested."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.conftest import REPOSITORY

pytest.importorskip("torch")

from benchmarks import gpu, roofline

pytestmark = pytest.mark.slow

ROWS = (
    "| agreement, lenet, bfloat16: checked | our loss goes from ",
    "| agreement, lenet, float32: checked | our loss goes from ",
    "| step, lenet, bfloat16 | ",
    "| peaks of the card: matrix products, float32, highest precision | ",
    "| training from the device | ",
    "| training from the device: 90 epochs of ImageNet | ",
    "| training from the disk: of the bare step | ",
    "| evaluation, 1 view | ",
    "| evaluation, 10 views | ",
    "| step, deterministic | ",
    "| step, lenet, float32 | ",
    "| step, lenet, bfloat16, batch 128 | ",
    *(f"| parts of the step, lenet, bfloat16: {part} | " for part in ("crops", "conv1", "fc5", "optimizer")),
)


def run(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", f"--output={folder}/gpu.json", *options]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)


def test_all_rows_are_printed_and_written_and_none_is_measured_twice(tmp_path: Path) -> None:
    options = ["--smoke", "--presets=lenet", "--batch=2", "--rounds=1", "--round_seconds=0.1"]
    none = run(tmp_path, *options, "--minutes=0")
    assert "No time for 14 rows, from 'agreement, lenet, bfloat16' on" in none.stdout, none.stderr
    done = run(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    places = [done.stdout.find(row) for row in ROWS]
    assert -1 not in places and places == sorted(places), done.stdout
    content = json.loads((tmp_path / "gpu.json").read_text())
    failures = [
        side["failure"] for row in content["rows"].values() for side in map(row.get, ("ours", "theirs")) if side
    ]
    assert len(content["rows"]) == 14 and set(failures) == {""}, content
    assert run(tmp_path, *options, "--minutes=0").stdout == done.stdout
    other = run(tmp_path, *options, "--batch=4")
    assert (other.returncode, "give another --output" in other.stderr) == (1, True)


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
