"""How steps run on devices. The only file that knows `jax.pmap` and device placement."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alexnet_jax.errors import UserError
from alexnet_jax.machine import processor_kind
from alexnet_jax.steps import EvalStep, State, Step

AXIS = "data"
"""The mapped axis over which gradients are averaged and sums added up."""

CPU_OPTIONS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""XLA's options for the CPU: matrix products by Eigen, up to twice as fast at those of `convolution` as YNNPACK."""


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in a folder, one for each kind of processor, and takes them from there; "" for none.

    A folder that JAX was given by its own means (JAX_COMPILATION_CACHE_DIR) is used instead.
    """
    if directory and not jax.config.values["jax_compilation_cache_dir"]:
        # XLA compiles for the processor at hand and would run the program on another, up to an illegal instruction.
        jax.config.update("jax_compilation_cache_dir", str(Path(directory) / processor_kind()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """`jax.pmap` over local devices: each gets its share of every batch, and all hold the same state.

    The state goes in and comes out as one plain tree, so a checkpoint is the same whatever the number of devices.
    """

    devices: tuple[jax.Device, ...]
    axis = AXIS

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are processors, which share the host's memory."""
        return self.devices[0].platform == "cpu"

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one device; None for one that uses the host's."""
        stats = self.devices[0].memory_stats()
        return stats["bytes_limit"] if stats else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that one device has held so far; None for one that uses the host's."""
        stats = self.devices[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else None

    @classmethod
    def create(cls, num_devices: int) -> "DataParallel":
        """The first `num_devices` local devices, or all of them for 0. Raises UserError if there are fewer."""
        local = jax.local_devices()
        if num_devices > len(local):
            raise UserError(f"config.parallel.num_devices={num_devices}, but this machine has {len(local)}: {local}")
        return cls(tuple(local[:num_devices] if num_devices else local))

    def compile_train_step(self, train_step: Step[State], resident: dict[str, np.ndarray] | None = None) -> Step[State]:
        """The step on all devices; it consumes the state that it is given.

        Args:
          train_step: for the share of one device; of one network or of a population.
          resident: arrays of the whole training split, by example id, that every device is to hold; a batch needs none
            of them then, only its ids.
        """

        def step(state: State, batch: dict[str, jax.Array], resident: dict[str, jax.Array]) -> Any:
            looked_up = {name: values[batch["id"]] for name, values in resident.items()}
            return train_step(state, {**batch, **looked_up})

        mapped = jax.pmap(
            step,
            axis_name=AXIS,
            devices=self.devices,
            in_axes=(None, 0, None),
            out_axes=(None, None),
            donate_argnums=0,
        )
        compiled = self._compiled_once(mapped)
        on_devices = self.replicate(resident or {})
        return lambda state, batch: compiled(state, batch, on_devices)

    def compile_eval_step(self, eval_step: EvalStep) -> EvalStep:
        """The step on all devices."""
        return self._compiled_once(
            jax.pmap(eval_step, axis_name=AXIS, devices=self.devices, in_axes=(None, None, 0), out_axes=None)
        )

    def _compiled_once(self, mapped: Any) -> Callable[..., Any]:
        """A mapped function, compiled for the shapes of its first call; it refuses others, and arrays of the host."""
        options = CPU_OPTIONS if self.devices[0].platform == "cpu" else {}
        compiled: Any = None

        def call(*args: Any) -> Any:
            nonlocal compiled
            compiled = compiled or mapped.lower(*args).compile(compiler_options=options)
            with jax.transfer_guard("disallow"):  # what is not on the devices yet would be waited for
                return compiled(*args)

        return call

    def compile_map(self, function: Callable[[dict[str, jax.Array]], jax.Array]) -> Callable[[Any], jax.Array]:
        """A function of a batch, each device doing its share."""
        return jax.pmap(function, devices=self.devices)

    def replicate(self, tree: Any) -> Any:
        """Puts the same tree on every device."""
        return jax.device_put(tree, self._sharding(PartitionSpec()))

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Splits a batch over the devices: [batch, ...] becomes [devices, batch / devices, ...]."""
        count = len(self.devices)
        return jax.device_put(
            {name: values.reshape(count, -1, *values.shape[1:]) for name, values in batch.items()},
            self._sharding(PartitionSpec(AXIS)),
        )

    def round_up(self, batch_size: int) -> int:
        """The smallest multiple of the number of devices that holds `batch_size` examples."""
        return -(-batch_size // len(self.devices)) * len(self.devices)

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.devices), (AXIS,)), spec)
