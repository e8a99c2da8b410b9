"""What this machine has."""

import os
from pathlib import Path

import psutil


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of the machine, or what its container may use of it."""
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    total = psutil.virtual_memory().total
    return min(total, int(allowed)) if allowed.isdigit() else total
