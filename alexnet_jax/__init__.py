"""AlexNet in JAX and Flax, as it was published in 2012 and as its source really ran it.

    from alexnet_jax import load_run

    run = load_run("runs/alexnet")
    run.predict(["photo.jpg"])

What is imported here is loaded at its first use, so that a part of the package can be had without the whole.
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
