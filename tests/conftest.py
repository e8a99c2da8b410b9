"""Strict settings for every test: ranks must match, warnings are errors, two virtual devices."""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

# Read by jax when it is first imported. NPROC: jax 0.10.2 deadlocks in collectives of virtual devices on few cores.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["NPROC"] = "16"
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled programs are shared by the tests and the processes that they start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict

from configs import alexnet

jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """The programs that a module compiled: thousands of them fill what the system lets a process map into memory."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder of prepared data sets for all tests."""
    return str(tmp_path_factory.getbasetemp() / "data")


@pytest.fixture
def make_config(prepared_dir: str) -> Callable[..., ConfigDict]:
    """A small config: make_config("synthetic,lenet,smoke", batch_size=8, **{"data.mirror": False})."""

    def make(choices: str = "synthetic,lenet,smoke", **changes: object) -> ConfigDict:
        config = alexnet.get_config(choices)
        config.data.prepared_dir = prepared_dir
        config.data.num_threads = 2
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
