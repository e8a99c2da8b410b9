"""XLA's compiler options, and the cache of compiled programs."""

import tempfile
from pathlib import Path

import jax

from alexnet_jax.errors import reason
from alexnet_jax.system import console
from alexnet_jax.system.files import expand_home
from alexnet_jax.system.machine import processor_kind

CPU_OPTIONS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""XLA's options on the CPU: matrix products by Eigen, up to twice as fast as YNNPACK for `ops.convolution`."""


def compiler_options(platform: str | None = None) -> dict[str, str | bool]:
    """The compiler options for a platform, "cpu", "gpu" or "tpu"; None: JAX's default platform."""
    return dict(CPU_OPTIONS) if (platform or jax.default_backend()) == "cpu" else {}


def use_compilation_cache(directory: str) -> None:
    """Makes JAX cache compiled programs in a folder, with a subfolder for each kind of processor.

    Args:
      directory: the folder; "" for no cache. JAX_COMPILATION_CACHE_DIR takes precedence. One that cannot be written is
        not used, which a warning says.
    """
    if not directory or jax.config.values["jax_compilation_cache_dir"]:
        return
    # XLA compiles for this processor; run on another one, the program may crash with an illegal instruction.
    folder = Path(expand_home(directory)) / processor_kind()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        console.warn(f"config.compilation_cache_dir={directory}: {reason(error)}; programs are compiled each time anew")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
