"""The standing attack: what counts as which outcome, and its short form."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax.data.images import resize_image
from benchmarks.attack import shim
from benchmarks.attack.mutations import image_seeds, mutate
from benchmarks.attack.processes import Ended
from benchmarks.attack.tries import judge
from tests.conftest import REPOSITORY

RIGHT, WRONG = {"checkpoint": "a"}, {"checkpoint": "b"}
DONE, KILLED, HUNG = Ended(0, "", 1.0), Ended(-signal.SIGKILL, "", 1.0), Ended(None, "", 60.0)
REFUSED = Ended(2, "error: run/metrics.jsonl, line 3: delete it", 1.0)
WARNED = Ended(0, "warning: checkpoint 8 is damaged; the one before it is used", 1.0)
TRACEBACK = Ended(1, "Traceback (most recent call last):\n", 1.0)


@pytest.mark.parametrize(
    ("found", "ended", "outcome"),
    [
        (RIGHT, [DONE], "clean"),
        (RIGHT, [KILLED, DONE], "clean"),
        (RIGHT, [REFUSED, DONE], "one line"),
        (WRONG, [REFUSED], "one line"),
        (WRONG, [WARNED], "one line"),
        (WRONG, [KILLED, REFUSED], "lost"),
        (WRONG, [KILLED, WARNED], "lost"),
        (WRONG, [DONE], "silent wrong"),
        (WRONG, [KILLED, DONE], "silent wrong"),
        (RIGHT, [TRACEBACK, DONE], "traceback"),
        (RIGHT, [Ended(1, "", 1.0), DONE], "traceback"),
        (RIGHT, [Ended(-signal.SIGSEGV, "", 1.0), DONE], "traceback"),
        (RIGHT, [HUNG, DONE], "hang"),
    ],
)
def test_outcomes(found: dict[str, str], ended: list[Ended], outcome: str) -> None:
    assert judge(RIGHT, found, ended) == outcome


def test_mutations_differ_and_can_be_repeated() -> None:
    content = np.random.default_rng(0).bytes(1000)
    mutants = [mutate(content, np.random.default_rng(seed)) for seed in range(50)]
    assert mutants == [mutate(content, np.random.default_rng(seed)) for seed in range(50)]
    assert len(set(mutants)) > 45 and sum(mutant != content for mutant in mutants) > 45


def test_unchanged_seeds_of_images_are_decoded() -> None:
    assert len(image_seeds()) == 28
    for content in image_seeds().values():
        assert resize_image(content, 16, 1e6).pixels.shape == (16, 16, 3)


HIT = """
import errno, os, pathlib, sys
from alexnet_jax.data.images import resize_image
from benchmarks.attack import shim
below, beside = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
shim.arm(below, shim.Hit(shim.Operation.WRITE, 2, errno.ENOSPC))
for path in (beside, below / "a", below / "b", below / "c"):
    try:
        os.write(os.open(path, os.O_WRONLY | os.O_CREAT), b"x")
    except OSError as error:
        print(path.name, errno.errorcode[error.errno])
print(shim.seen()["WRITE"], flush=True)
shim.arm(below, shim.Hit(shim.CHANGES, 1, signal=9))
os.rename(beside, beside)
os.rename(below / "a", below / "moved")
"""


def test_one_operation_below_the_folder_fails_or_is_the_last(tmp_path: Path) -> None:
    library = shim.build(tmp_path)
    if library is None:
        pytest.skip("no C compiler")
    below = tmp_path / "below"
    below.mkdir()
    command = [sys.executable, "-c", HIT, str(below), str(tmp_path / "beside")]
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("b ENOSPC\n3\n", -signal.SIGKILL), ended.stderr
    assert sorted(path.name for path in below.iterdir()) == ["a", "b", "c"]


@pytest.mark.slow
def test_the_short_form(tmp_path: Path) -> None:
    output = tmp_path / "attack.json"
    command = [sys.executable, "-m", "benchmarks.attack", "--tries=15", f"--output={output}"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    kinds = json.loads(output.read_text())["results"]["kinds"]
    assert [counts["tries"] for counts in kinds.values()] == [15] * 6
    assert f"| damage | 15 | {kinds['damage']['clean']} |" in ended.stdout
