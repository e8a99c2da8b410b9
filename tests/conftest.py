"""Settings for every test: strict types and ranks, warnings as errors, two virtual devices; and the rings of tests.

`python -m pytest` runs the default ring: all that proves the program right in minutes. `python -m pytest -m slow` runs
what takes longer: many processes, kills, full-size networks, other programs.
"""

import contextlib
import gc
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read by jax when it is first imported. NPROC: jax 0.10.2 deadlocks in collectives of virtual devices on few cores.
# Optimization level 0: programs here run for a moment, and compile in half the time.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
os.environ["NPROC"] = "16"
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled programs are shared by the tests and the processes that they start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict

from alexnet_jax.ops import platforms
from configs import alexnet

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
flags.FLAGS.mark_as_parsed()

LEFT_OUT = pytest.StashKey[int]()
REPOSITORY = Path(__file__).parent.parent


def xla_flags(devices: int) -> str:
    """Those of the tests, for a process with another number of virtual devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=2", f"device_count={devices}")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Runs a whole ring in one process a core, and less in this one."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if is_whole and not is_worker and config.option.numprocesses is None:
        is_slow = config.option.markexpr == "slow"
        config.option.numprocesses = len(os.sched_getaffinity(0)) + is_slow  # slow tests often wait for other processes
        config.option.dist = "worksteal" if is_slow else "loadfile"
        config.option.loadscopereorder = False  # the files with few tests are not the quick ones


def pytest_collection_finish() -> None:
    """Spares the garbage collector the modules and tests themselves; it spent an eighth of the time on them."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Counts the tests of the other ring."""
    config = items[0].config
    of_other_ring = [item for item in items if is_slow(item) != (config.option.markexpr == "slow")]
    config.stash[LEFT_OUT] = config.stash.get(LEFT_OUT, 0) + len(of_other_ring)


def is_slow(item: pytest.Item) -> bool:
    """Whether a test belongs to the slow ring."""
    return item.get_closest_marker("slow") is not None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tells the process that started this one how many tests it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes that number from another process; all of them left out the same ones."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Says in the last line what was left out, and how to run it."""
    if count := config.stash.get(LEFT_OUT, 0):
        command = "python -m pytest" + (" -m slow" if config.option.markexpr == "not slow" else "")
        terminalreporter.write_line(f"{count} tests were left out; they run with: {command}")


@pytest.fixture(autouse=True, scope="module")
def compile_fast(request: pytest.FixtureRequest) -> Iterator[None]:
    """Convolutions by XLA, not our own for the CPU, slow to compile, except in modules that test them."""
    tests_them = request.node.get_closest_marker("cpu_kernels") is not None
    with contextlib.nullcontext() if tests_them else platforms.fast_compilation():
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """The programs that a module compiled: thousands of them fill what the system lets a process map into memory."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder of prepared data sets for all tests."""
    folder = tmp_path_factory.getbasetemp()
    return str((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "data")


@pytest.fixture
def make_config(prepared_dir: str) -> Callable[..., ConfigDict]:
    """A small config: make_config("synthetic,lenet,smoke", batch_size=8, **{"data.mirror": False})."""

    def make(choices: str = "synthetic,lenet,smoke", **changes: object) -> ConfigDict:
        config = alexnet.get_config(choices)
        config.data.prepared_dir = prepared_dir
        config.data.num_threads = 2
        config.log_images = False
        config.update_from_flattened_dict(changes)
        return config

    return make


@contextlib.contextmanager
def full_disk(room: int = 2**16) -> Iterator[None]:
    """No file can become larger than so many bytes, whoever writes it: the nearest to a full disk without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
