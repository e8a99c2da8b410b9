"""Placement of batches, state and steps on devices, by `jax.pmap` or by `jax.shard_map` over a mesh.

The only module that uses pmap and meshes.
"""

import dataclasses
import functools
import os
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
from alexnet_jax.system import console
from alexnet_jax.system.machine import free_memory_bytes, has_nvidia_gpu


@runtime_checkable
class Network(Protocol):
    """The interface of a network for tensor parallelism; see `models.alexnet.AlexNet`."""

    towers: int

    def is_split(self, name: str) -> bool:
        """Whether the layer of that name is sharded over the devices that share the network."""

    def check_split(self, shards: int) -> None:
        """Raises UserError if the network cannot be divided into that many shards."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of all processes, and the placement of batches, state and steps on them.

    State is passed in and out as a tree of whole arrays, so that checkpoints do not depend on the devices.

    Attributes:
      mesh: all devices, process by process.
      axes: the mapped axes of steps.
      is_split: whether the layer or parameter group of a name is sharded over `axes.tower`.
      uses_pmap: steps run by `jax.pmap`, whose batches have a leading device axis; otherwise by `jax.shard_map`.
      deterministic: results are bit-for-bit reproducible on GPUs too.
    """

    mesh: Mesh
    axes: Axes
    is_split: Callable[[str], bool]
    uses_pmap: bool
    deterministic: bool = False

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The devices of all processes."""
        return tuple(self.mesh.devices.flat)

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are CPUs, which share the host's memory."""
        return self.devices[0].platform == "cpu"

    @property
    def compiler_options(self) -> dict[str, str | bool]:
        """XLA's options for compiling a step."""
        return compiler_options(self.devices[0].platform) | {"xla_gpu_deterministic_ops": self.deterministic}

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one device in bytes; None for a CPU."""
        return self._memory("bytes_limit")

    @property
    def peak_memory_bytes(self) -> int | None:
        """Peak memory use of one device so far, in bytes; None for a CPU."""
        return self._memory("peak_bytes_in_use")

    @property
    def free_memory_bytes(self) -> int:
        """Free memory of one device in bytes; for a CPU, an equal share of the host's free memory."""
        limit, used = self._memory("bytes_limit"), self._memory("bytes_in_use")
        if limit is None or used is None:
            return free_memory_bytes() // len(self.mesh.local_devices)
        return limit - used

    def _memory(self, statistic: str) -> int | None:
        statistics = self.mesh.local_devices[0].memory_stats()
        return statistics[statistic] if statistics else None

    @property
    def batch_shards(self) -> int:
        """Number of shards of a batch; in 2012's scheme, devices that share a network see the same shard."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axes.batch]))

    @property
    def batch_spec(self) -> PartitionSpec:
        """The PartitionSpec of the arrays of a batch."""
        return PartitionSpec(self.axes.batch)

    @property
    def image_axis(self) -> int:
        """The image axis of the arrays of a batch on the devices: pmap's have a device axis before it."""
        return 1 if self.uses_pmap else 0

    @property
    def layout(self) -> str:
        """A short description of how the devices divide the work."""
        if self.uses_pmap:
            return "pmap"
        rows, towers = self.mesh.devices.shape
        scheme = "fully connected layers sharded" if "tower" in self.axes.batch else "one tower per device, as in 2012"
        return f"mesh of {rows} x {towers}" + (f", {scheme}" if towers > 1 else "")

    def compile_train_step(
        self, train_step: Callable[..., Any], resident: dict[str, np.ndarray] | None = None
    ) -> Program:
        """Compiles a training step for all devices; it donates the state that it is given.

        Args:
          train_step: the step on one shard; see `steps.make_train_step`.
          resident: arrays of the whole training split, by example id, to keep on every device; batches then hold only
            the ids of their examples in place of these arrays.

        Returns:
          The step. Its metrics also hold "id" and "epoch" of all examples in order, and the sum over all processes of
          the batch's "stop" if it has one, by which a process asks all others to stop.
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
        """Compiles an evaluation step for all devices.

        Args:
          eval_step: (params, batch_stats, batch) -> sums over the batch, or arrays by image.
          by_image: the step returns arrays by image; `batch_on_host` puts them together.
        """
        in_specs = (self.state_specs, self.state_specs, self.batch_spec)
        return Program(self, eval_step, in_specs, self.batch_spec if by_image else PartitionSpec(), "eval_batch_size")

    def compile_map(self, function: Callable[[dict[str, jax.Array]], Any]) -> Callable[[Any], Any]:
        """Maps a function over the shards of a batch, one per device, to be compiled at its first call."""
        return self.map(function, (self.batch_spec,), self.batch_spec)

    def map(
        self, function: Callable[..., Any], in_specs: tuple[Any, ...], out_specs: Any, donated: tuple[int, ...] = ()
    ) -> Any:
        """Maps a function over the devices, to be compiled.

        Args:
          function: what each device computes.
          in_specs, out_specs: the PartitionSpecs of arguments and results.
          donated: the indices of arguments whose memory the results may reuse.
        """
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
        """The PartitionSpecs of a state: replicated, or for sharded layers divided by features over `axes.tower`."""
        if not self.axes.tower:
            return PartitionSpec()

        def spec(path: Any, leaf: Any) -> PartitionSpec:
            names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            if np.ndim(leaf) and any(map(self.is_split, names)):
                return PartitionSpec(*[None] * (np.ndim(leaf) - 1), self.axes.tower)
            return PartitionSpec()

        return jax.tree_util.tree_map_with_path(spec, tree)

    def place(self, tree: Any) -> Any:
        """Puts a tree of whole arrays on the devices, replicated or sharded as `state_specs` says."""
        specs = self.state_specs(tree)
        if isinstance(specs, PartitionSpec):
            specs = jax.tree.map(lambda _: PartitionSpec(), tree)
        shardings = jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)
        return jax.device_put(tree, shardings) if jax.process_count() == 1 else jax.tree.map(_put, tree, shardings)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's rows of a batch, [batch / processes, ...], on its devices.

        Returns:
          Global arrays, [batch, ...]; for pmap [devices, batch / devices, ...].
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
        """The smallest multiple of the number of shards that is at least `batch_size`."""
        return -(-batch_size // self.batch_shards) * self.batch_shards

    def on_host(self, tree: Any) -> Any:
        """A tree of whole arrays on the host; on a CPU they may share memory that the next step reuses."""
        return jax.tree.map(_on_host, tree)

    def batch_on_host(self, tree: Any) -> Any:
        """The arrays by image that a step returned, on the host, [batch, ...]."""
        axis = self.image_axis
        return jax.tree.map(lambda array: _on_host(array).reshape(-1, *array.shape[axis + 1 :]), tree)


def make_devices(config: ConfigDict, network: Network) -> Devices:
    """Creates the devices that `config.parallel` describes.

    Raises UserError if there are too few devices, or they cannot share the network as asked.
    """
    if config.mode == "pmap":
        devices = data_parallel(config.num_devices)
    else:
        devices = mesh_parallel(config.num_devices, config.towers, network)
    return dataclasses.replace(devices, deterministic=config.deterministic)


def data_parallel(num_devices: int = 0) -> Devices:
    """Data parallelism by `jax.pmap`: each device holds the whole state and gets a shard of the batch.

    Args:
      num_devices: devices to use of each process; 0 for all. Raises UserError if it has fewer.
    """
    return Devices(Mesh(np.array(_choose(num_devices)), ("data",)), Axes(("data",)), lambda _: False, uses_pmap=True)


def mesh_parallel(num_devices: int, towers: int, network: Network) -> Devices:
    """Data and tensor parallelism by `jax.shard_map` over a mesh of data x tower; see `collectives`.

    Args:
      num_devices: devices to use of each process; 0 for all.
      towers: number of devices that share one network.
      network: the network.

    Raises UserError if there are too few devices, or `towers` does not divide them or the network.
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
    if local[0].platform == "cpu":
        _tell_of_unused_gpu()
    if num_devices > len(local):
        raise UserError(f"config.parallel.num_devices={num_devices}, but this machine has {len(local)}: {local}")
    by_process = [jax.local_devices(process_index=process) for process in range(jax.process_count())]
    return [device for devices in by_process for device in devices[: num_devices or len(local)]]


@functools.cache
def _tell_of_unused_gpu() -> None:
    """Warns, once, if there is an NVIDIA GPU that this JAX cannot use; not if JAX_PLATFORMS asks for the CPU."""
    if not os.environ.get("JAX_PLATFORMS") and has_nvidia_gpu():
        console.warn(
            "an NVIDIA GPU is here, but this JAX is for CPUs; to use it: python -m pip install -c requirements.txt "
            "'.[gpu]'"
        )


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process holds on the devices of all processes."""
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
