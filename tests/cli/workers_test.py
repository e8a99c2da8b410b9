"""One process a core."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alexnet_jax.cli import workers
from configs import alexnet
from tests.conftest import REPOSITORY


def test_each_runs_the_command_and_the_first_failure_is_the_status(capfd: pytest.CaptureFixture[str]) -> None:
    workers.run_on_each_core(["--help"], 2)
    assert capfd.readouterr().out.count("usage:") == 1  # only the first shows its output
    with pytest.raises(SystemExit) as caught:
        workers.run_on_each_core(["nonsense"], 2)
    assert caught.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all(number: int, tmp_path: Path) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("whoever started the tests ignores this signal, which processes inherit")
    code = f"""
import subprocess, sys
from alexnet_jax.cli import workers
started = subprocess.Popen
def popen(command, **options):
    text = "import time, pathlib, os; pathlib.Path(r'{tmp_path}', str(os.getpid())).touch(); time.sleep(60)"
    return started([sys.executable, "-c", text], **options)
subprocess.Popen = popen
workers.run_on_each_core([], 2)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) != 0
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)


def test_small_networks_get_a_process_a_core() -> None:
    assert workers.default_count(alexnet.get_config("digits,lenet")) == workers.available_cores()
    assert workers.default_count(alexnet.get_config("imagenet2012,paper")) == 1
