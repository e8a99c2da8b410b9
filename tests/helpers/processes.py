"""Starts the processes of one training run on this machine, as if each were a host."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.conftest import REPOSITORY, xla_flags


def start(
    count: int,
    workdir: Path,
    prepared_dir: str,
    *changes: str,
    devices: int = 1,
    own: Mapping[int, Sequence[str]] | None = None,
    slurm: bool = False,
) -> list[subprocess.Popen[str]]:
    """Starts `main.py` on a few images in several processes; one process needs no coordinator.

    Args:
      count: number of processes.
      workdir: folder of the run.
      prepared_dir: folder of prepared data sets.
      changes: flags of all processes.
      devices: devices of each process.
      own: further flags by the number of the process.
      slurm: set the environment variables of a Slurm task in each process, by which the processes find each other.
    """
    environment = {**os.environ, "XLA_FLAGS": xla_flags(devices)}
    command = [sys.executable, "main.py", "--config=configs/alexnet.py:synthetic,lenet", f"--workdir={workdir}"]
    settings = {
        "data.prepared_dir": prepared_dir,
        "data.synthetic_examples": 101,  # a prime: epochs end inside batches
        "data.num_threads": 1,
        "batch_size": 12,
        "epochs": 2.0,
        "log_every_steps": 1,
        "optimizer.schedule": "step",  # does not depend on how often a run stopped and evaluated
        "optimizer.step_epochs": "(1.0,)",
        "parallel.timeout_seconds": 60,
    }
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    port, processes = free_port(), []
    for number in range(count):
        words = [*command, *changes, *(own or {}).get(number, ())]
        if slurm:
            words.append("--config.parallel.coordinator=auto")
            environment |= slurm_task(number, count, port)
        elif count > 1:
            words += joining(number, count, port)
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(words, cwd=REPOSITORY, env=environment, text=True, stdout=pipe, stderr=pipe))
    return processes


def joining(number: int, count: int, port: int) -> list[str]:
    """The flags with which a process joins the others."""
    values = {"coordinator": f"127.0.0.1:{port}", "num_processes": count, "process_id": number}
    return [f"--config.parallel.{key}={value}" for key, value in values.items()]


def slurm_task(number: int, count: int, port: int) -> dict[str, str]:
    """The variables of a Slurm task that JAX reads, one task a node; Slurm has no port: JAX derives it from the job."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": "0",
        "JAX_COORDINATOR_PORT": str(port),
    }


def finish(processes: list[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Exit status, standard output and standard error of each process; kills those that take longer than `timeout`."""
    try:
        return [(process.wait(timeout), *process.communicate()) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def free_port() -> int:
    """A port that no process uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_silent(out: str) -> bool:
    """Whether the output has no lines but gloo's, which differ between versions of jax and may be interleaved."""
    return not any(word in out for word in ("main.py", "epoch", "warning", "error"))
