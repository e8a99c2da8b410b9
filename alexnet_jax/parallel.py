"""How steps run on devices. The only file that knows `jax.pmap` and device placement."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alexnet_jax.errors import UserError
from alexnet_jax.steps import EvalStep, TrainStep

AXIS = "data"
"""The mapped axis over which gradients are averaged and sums added up."""


@dataclasses.dataclass(frozen=True)
class DataParallel:
    """`jax.pmap` over local devices: each gets its share of every batch, and all hold the same state.

    The state goes in and comes out as one plain tree, so a checkpoint is the same whatever the number of devices.
    """

    devices: tuple[jax.Device, ...]

    @classmethod
    def create(cls, num_devices: int) -> "DataParallel":
        """The first `num_devices` local devices, or all of them for 0. Raises UserError if there are fewer."""
        local = jax.local_devices()
        if num_devices > len(local):
            raise UserError(f"config.parallel.num_devices={num_devices}, but this machine has {len(local)}: {local}")
        return cls(tuple(local[:num_devices] if num_devices else local))

    def compile_train_step(self, train_step: TrainStep) -> TrainStep:
        """The step on all devices; it consumes the state that it is given."""
        return jax.pmap(
            train_step,
            axis_name=AXIS,
            devices=self.devices,
            in_axes=(None, 0),
            out_axes=(None, None),
            donate_argnums=0,
        )

    def compile_eval_step(self, eval_step: EvalStep) -> EvalStep:
        """The step on all devices."""
        return jax.pmap(eval_step, axis_name=AXIS, devices=self.devices, in_axes=(None, None, 0), out_axes=None)

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
