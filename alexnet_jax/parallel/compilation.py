"""What XLA is told when it compiles, and where compiled programs are kept."""

from pathlib import Path

import jax

from alexnet_jax.system.machine import processor_kind

CPU_OPTIONS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""XLA's options for the CPU: matrix products by Eigen, up to twice as fast at those of `ops.convolution` as YNNPACK."""


def compiler_options(platform: str | None = None) -> dict[str, str | bool]:
    """What XLA is told when it compiles for "cpu", "gpu" or "tpu", by default for JAX's first choice."""
    return dict(CPU_OPTIONS) if (platform or jax.default_backend()) == "cpu" else {}


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in a folder, one for each kind of processor, and takes them from there; "" for none.

    A folder that JAX was given by its own means (JAX_COMPILATION_CACHE_DIR) is used instead.
    """
    if directory and not jax.config.values["jax_compilation_cache_dir"]:
        # XLA compiles for the processor at hand and would run the program on another, up to an illegal instruction.
        jax.config.update("jax_compilation_cache_dir", str(Path(directory) / processor_kind()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
