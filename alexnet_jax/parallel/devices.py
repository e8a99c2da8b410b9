"""Devices, and how batches, state and steps lie on them: by `jax.pmap`, or by `jax.shard_map` over a mesh.

The only file that knows pmap and meshes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from alexnet_jax.errors import UserError
from alexnet_jax.parallel.collectives import Axes, gather_batch, sum_over_images
from alexnet_jax.parallel.compilation import compiler_options
from alexnet_jax.parallel.program import Program
from alexnet_jax.system.machine import free_memory_bytes


@runtime_checkable
class Network(Protocol):
    """What tensor parallelism must know of a network; see `models.alexnet.AlexNet`."""

    towers: int

    def is_split(self, name: str) -> bool:
        """Whether the layer of that name is divided over the devices of a network."""

    def check_split(self, parts: int) -> None:
        """Raises UserError if the network cannot be divided into that many parts."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """Devices of one or more processes, and how batches, state and steps lie on them.

    State goes in and comes out as one plain tree of whole arrays, so a checkpoint is the same whatever the devices.

    Attributes:
      mesh: all devices, those of a process one after the other.
      axes: the mapped axes that steps see.
      is_split: whether the layer or parameter group of a name is divided over `axes.tower`.
      uses_pmap: a step runs by `jax.pmap`, whose arrays have an axis of devices first; else by `jax.shard_map`.
      deterministic: the same bits each time on GPUs too, where sums are made in any order and kernels chosen by time.
    """

    mesh: Mesh
    axes: Axes
    is_split: Callable[[str], bool]
    uses_pmap: bool
    deterministic: bool = False

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """Those of all processes."""
        return tuple(self.mesh.devices.flat)

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are processors, which share the host's memory."""
        return self.devices[0].platform == "cpu"

    @property
    def compiler_options(self) -> dict[str, str | bool]:
        """What XLA is told when it compiles a step."""
        return compiler_options(self.devices[0].platform) | {"xla_gpu_deterministic_ops": self.deterministic}

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one device; None for one that uses the host's."""
        return self._memory("bytes_limit")

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that one device has held so far; None for one that uses the host's."""
        return self._memory("peak_bytes_in_use")

    @property
    def free_memory_bytes(self) -> int:
        """Memory that is free on one device; on a processor, an equal part of what the host has free."""
        limit, used = self._memory("bytes_limit"), self._memory("bytes_in_use")
        if limit is None or used is None:
            return free_memory_bytes() // len(self.mesh.local_devices)
        return limit - used

    def _memory(self, statistic: str) -> int | None:
        statistics = self.mesh.local_devices[0].memory_stats()
        return statistics[statistic] if statistics else None

    @property
    def batch_shards(self) -> int:
        """Shards into which a batch is divided; devices that hold different parts of a network see the same one."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axes.batch]))

    @property
    def batch_spec(self) -> PartitionSpec:
        """How the arrays of a batch are divided."""
        return PartitionSpec(self.axes.batch)

    @property
    def image_axis(self) -> int:
        """The axis of images in the arrays of a batch on the devices."""
        return 1 if self.uses_pmap else 0

    @property
    def layout(self) -> str:
        """How the devices share the work, in words."""
        if self.uses_pmap:
            return "pmap"
        rows, towers = self.mesh.devices.shape
        scheme = "the images of all in the fully connected layers" if "tower" in self.axes.batch else "as in 2012"
        return f"mesh of {rows} x {towers}" + (f", {scheme}" if towers > 1 else "")

    def compile_train_step(
        self, train_step: Callable[..., Any], resident: dict[str, np.ndarray] | None = None
    ) -> Program:
        """The step on all devices; it consumes the state that it is given and adds to its metrics what was used.

        Args:
          train_step: for the shard of one device; see `steps.make_train_step`.
          resident: arrays of the whole training split, by example id, that every device is to hold; a batch needs none
            of them then, only its ids.

        Returns the step. Its metrics hold also "id" and "epoch" of every example that the devices had, in order, and
        the sum of the batch's "stop", if there is one: what one process tells all with a batch.
        """

        def step(state: Any, batch: dict[str, jax.Array], resident: dict[str, jax.Array]) -> Any:
            looked_up = {name: values[batch["id"]] for name, values in resident.items()}
            state, metrics = train_step(state, {**batch, **looked_up})
            metrics |= {name: gather_batch(batch[name], self.axes) for name in ("id", "epoch")}
            if "stop" in batch:
                metrics |= sum_over_images({"stop": jnp.sum(batch["stop"])}, self.axes)
            return state, metrics

        in_specs = (self.state_specs, self.batch_spec, PartitionSpec())
        last = (self.place(resident or {}),)
        return Program(self, step, in_specs, PartitionSpec(), "batch_size", updates_state=True, last=last)

    def compile_eval_step(self, eval_step: Callable[..., Any], by_image: bool = False) -> Program:
        """The step on all devices, (params, batch_stats, batch) -> sums over the whole batch.

        Or arrays by image, if the step returns such; see `batch_on_host`.
        """
        in_specs = (self.state_specs, self.state_specs, self.batch_spec)
        return Program(self, eval_step, in_specs, self.batch_spec if by_image else PartitionSpec(), "eval_batch_size")

    def compile_map(self, function: Callable[[dict[str, jax.Array]], Any]) -> Callable[[Any], Any]:
        """A function of a batch, each device doing its shard."""
        return self.map(function, (self.batch_spec,), self.batch_spec)

    def map(
        self, function: Callable[..., Any], in_specs: tuple[Any, ...], out_specs: Any, donated: tuple[int, ...] = ()
    ) -> Any:
        """The function on all devices, to be compiled; the arguments of these numbers are consumed."""
        if not self.uses_pmap:
            mapped = jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
            return jax.jit(mapped, donate_argnums=donated)
        in_axes = tuple(self._pmap_axis(spec) for spec in in_specs)
        out_axes = tuple(map(self._pmap_axis, out_specs)) if type(out_specs) is tuple else self._pmap_axis(out_specs)
        axes: Any = {"axis_name": "data", "in_axes": in_axes, "out_axes": out_axes}
        return jax.pmap(function, devices=self.devices, donate_argnums=donated, **axes)

    def _pmap_axis(self, spec: PartitionSpec) -> int | None:
        return 0 if spec == self.batch_spec else None

    def state_specs(self, tree: Any) -> Any:
        """How the arrays of a state are divided: whole on every device, or by features over the towers."""
        if not self.axes.tower:
            return PartitionSpec()

        def spec(path: Any, leaf: Any) -> PartitionSpec:
            names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            if np.ndim(leaf) and any(map(self.is_split, names)):
                return PartitionSpec(*[None] * (np.ndim(leaf) - 1), self.axes.tower)
            return PartitionSpec()

        return jax.tree_util.tree_map_with_path(spec, tree)

    def place(self, tree: Any) -> Any:
        """Puts a tree of whole arrays on the devices: a copy on each, or each device's part of what is divided."""
        specs = self.state_specs(tree)
        if isinstance(specs, PartitionSpec):
            specs = jax.tree.map(lambda _: PartitionSpec(), tree)
        shardings = jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)
        return jax.device_put(tree, shardings) if jax.process_count() == 1 else jax.tree.map(_put, tree, shardings)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's rows of a batch, [batch / processes, ...], on its devices.

        For pmap the arrays get the shape that it wants, [devices, batch / devices, ...].
        """
        if self.uses_pmap:
            count = len(self.mesh.local_devices)
            batch = {name: values.reshape(count, -1, *values.shape[1:]) for name, values in batch.items()}
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, self.batch_spec), batch)

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process reads."""
        size = batch_size // jax.process_count()
        return slice(jax.process_index() * size, (jax.process_index() + 1) * size)

    def round_up(self, batch_size: int) -> int:
        """The smallest batch that can be divided and holds `batch_size` examples."""
        return -(-batch_size // self.batch_shards) * self.batch_shards

    def on_host(self, tree: Any) -> Any:
        """The whole arrays of a tree; in memory of the devices where that is the host's: the next step may take it."""
        return jax.tree.map(_on_host, tree)

    def batch_on_host(self, tree: Any) -> Any:
        """The arrays by image that a step returned, [batch, ...]."""
        axis = self.image_axis
        return jax.tree.map(lambda array: _on_host(array).reshape(-1, *array.shape[axis + 1 :]), tree)


def make_devices(config: ConfigDict, network: Network) -> Devices:
    """The devices that `config.parallel` asks for. Raises UserError if there are fewer or the network does not suit."""
    if config.mode == "pmap":
        devices = data_parallel(config.num_devices)
    else:
        devices = mesh_parallel(config.num_devices, config.towers, network)
    return dataclasses.replace(devices, deterministic=config.deterministic)


def data_parallel(num_devices: int = 0) -> Devices:
    """`jax.pmap` over `num_devices` of each process, or all for 0: each gets a shard of a batch, all hold the state.

    Raises UserError if there are fewer.
    """
    return Devices(Mesh(np.array(_choose(num_devices)), ("data",)), Axes(("data",)), lambda _: False, uses_pmap=True)


def mesh_parallel(num_devices: int, towers: int, network: Network) -> Devices:
    """`jax.shard_map` over a mesh of data x tower: the devices of a row share one network; see `collectives`.

    Takes `num_devices` of each process, or all for 0, in rows of `towers`. Raises UserError if that cannot be.
    """
    devices = _choose(num_devices)
    local = len(devices) // jax.process_count()
    if local % towers:
        raise UserError(f"config.parallel.towers={towers} does not divide the {local} devices of a process")
    network.check_split(towers)
    mesh = Mesh(np.array(devices).reshape(-1, towers), ("data", "tower"))
    if towers == 1:
        axes = Axes(("data",))
    elif network.towers > 1:
        axes = Axes(("data",), "tower")  # the scheme of 2012
    else:
        axes = Axes(("data", "tower"), "tower")  # that of 2014
    return Devices(mesh, axes, network.is_split, uses_pmap=False)


def _choose(num_devices: int) -> list[jax.Device]:
    """The first `num_devices` devices of each process, or all of them for 0."""
    local = jax.local_devices()
    if num_devices > len(local):
        raise UserError(f"config.parallel.num_devices={num_devices}, but this machine has {len(local)}: {local}")
    of_processes = [jax.local_devices(process_index=process) for process in range(jax.process_count())]
    return [device for devices in of_processes for device in devices[: num_devices or len(local)]]


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process has on the devices of all."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(array), sharding))
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _on_host(array: jax.Array | np.ndarray) -> np.ndarray:
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    whole = np.empty(array.shape, array.dtype)
    for shard in {str(shard.index): shard for shard in array.addressable_shards}.values():
        whole[shard.index] = shard.data
    return whole
