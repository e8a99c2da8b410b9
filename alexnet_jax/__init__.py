"""AlexNet in JAX and Flax, as published in 2012 and as its authors' code really trained it.

    from alexnet_jax import load_run

    run = load_run("runs/alexnet")
    run.predict(["photo.jpg"])

Names are imported at their first use, so that importing one module of the package does not load all of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet_jax.inference.loaded_run import TrainedRun, load_run

__all__ = ["TrainedRun", "load_run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from alexnet_jax.inference import loaded_run

    return getattr(loaded_run, name)
