"""The GPU benchmark completes on a CPU; its measurements on a GPU are not tested."""

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

SECTIONS = (
    "Checked first:",
    "- float32: our loss goes from ",
    "- bfloat16: our loss goes from ",
    "| matrix product, float32, highest precision |",
    "| memory, read and written |",
    "| images/s, batch | ours, float32 | ours, bfloat16 | PyTorch, float32 | ours / theirs |",
    "| 2 | ",
    "| images/s, float32, batch 2 |",
    "| float32, batch 2 | GFLOP |",
    *(f"| {part} |" for part in ("crops", "conv1", "conv2", "fc3", "fc4", "fc5", "optimizer")),
    "The step takes ",
    "| training step, float32, best batch, against PyTorch |",
    "| end to end from data on the device, fraction of the bare step's images/s |",
    "| bare step with config.parallel.deterministic, fraction of its images/s |",
    "| 90 epochs of ImageNet at ",
)


def test_all_sections_are_printed() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--preset", "lenet"]
    options = ["--batches", "2", "--rounds", "1", "--round_seconds", "0.1", "--dtypes", "float32", "bfloat16"]
    run = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    places = [run.stdout.find(section) for section in SECTIONS]
    assert -1 not in places, run.stdout
    assert places == sorted(places), run.stdout
    assert "out of memory" not in run.stdout


def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    environment = {**os.environ, "PATH": ""}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, len(run.stderr.splitlines())) == (1, 1)
    assert "no NVIDIA GPU" in run.stderr


def out_of_memory() -> Callable[[int], None]:
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte\nand more")


def nothing_to_do() -> Callable[[int], None]:
    return lambda steps: None


def test_a_batch_that_does_not_fit_is_a_result(tmp_path: Path) -> None:
    settings = gpu.Settings("caffe", (1,), ("float32",), rounds=2, round_seconds=1e-6, smoke=True, folder=tmp_path)
    fits, full = gpu.take_turns(settings, [(nothing_to_do, 1), (out_of_memory, 1)])
    assert len(fits.rates) == 2
    assert str(full) == "out of memory"
    assert (full.median, fits.against(full)) == (0, "-")


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
