"""The processor and the memory of this machine."""

import ctypes
import hashlib
import os
import platform
import sys
from pathlib import Path

import psutil

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Options of glibc's mallopt."""


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compute_threads() -> int:
    """The number of threads with which XLA computes on the CPU, which decides in what order it adds."""
    reserved = os.environ.get("NPROC", "")  # read by XLA's PjRt client
    return int(reserved) if reserved.isdecimal() and int(reserved) else available_cores()


def memory_bytes() -> int:
    """Bytes of memory of the machine, or of its container if that may use less."""
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    total = psutil.virtual_memory().total
    return min(total, int(allowed)) if allowed.isdecimal() else total


def free_memory_bytes() -> int:
    """Bytes of memory that this process may still take: of the machine, of its container, within its own limit."""
    process = psutil.Process().memory_info()
    free = min(psutil.virtual_memory().available, memory_bytes() - process.rss)
    try:
        import resource
    except ImportError:  # Windows has none
        return free
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return free if limit == resource.RLIM_INFINITY else min(free, limit - process.vms)


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory, instead of returning each large array's to the system and asking anew.

    XLA allocates the memory of a step on the CPU anew each time; the page faults take up to a quarter of it. To be
    called before JAX starts its threads, which would otherwise have heaps of their own. Nothing happens without glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)


def has_nvidia_gpu() -> bool:
    """Whether the system shows an NVIDIA GPU to this process, whether or not JAX can use it."""
    return any(Path(name).exists() for name in ("/dev/nvidia0", "/proc/driver/nvidia/version"))


def processor_kind() -> str:
    """A name shared by processors that can run the same instructions, as far as the machine tells."""
    features = _first_line_of_cpuinfo("flags", "Features")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def peak_memory_bytes() -> int:
    """The most bytes of memory that this process has held so far."""
    try:
        import resource
    except ImportError:  # Windows has none
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def processor_name() -> str:
    """The name of the processor, such as "Intel(R) Xeon(R) CPU"."""
    return _first_line_of_cpuinfo("model name").split(":", 1)[-1].strip()


def _first_line_of_cpuinfo(*names: str) -> str:
    """The first line "name : value" of /proc/cpuinfo with one of these names; without Linux, what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line for line in lines if line.startswith(names)), platform.processor())
