"""Starts the processes of one training run on this machine: several hosts in small."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY


def start(count: int, workdir: Path, prepared_dir: str, *changes: str, devices: int = 1) -> list[subprocess.Popen[str]]:
    """`main.py` on a few images, in so many processes with so many devices each; one process needs no coordinator."""
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "main.py", "--config=configs/alexnet.py:synthetic,lenet", f"--workdir={workdir}"]
    settings = {
        "data.prepared_dir": prepared_dir,
        "data.synthetic_examples": 101,  # a prime: epochs end inside batches
        "data.num_threads": 1,
        "batch_size": 12,
        "epochs": 4.0,
        "log_every_steps": 1,
        "parallel.timeout_seconds": 60,
    }
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    if count > 1:
        command += [
            f"--config.parallel.coordinator=127.0.0.1:{free_port()}",
            f"--config.parallel.num_processes={count}",
        ]
    own = [[f"--config.parallel.process_id={number}"] if count > 1 else [] for number in range(count)]
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            [*command, *words, *changes], cwd=REPOSITORY, env=environment, text=True, stdout=pipe, stderr=pipe
        )
        for words in own
    ]


def finish(processes: list[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each; all are killed in the end."""
    try:
        return [(process.wait(timeout), *process.communicate()) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def free_port() -> int:
    """A port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
