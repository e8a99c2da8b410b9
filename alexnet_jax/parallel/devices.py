"""How steps run on devices. The only file that knows `jax.pmap`, meshes and device placement."""

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from alexnet_jax.errors import UserError
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.parallel.collectives import Axes, add_up, gather_batch
from alexnet_jax.steps import EvalStep, GuessStep, State, Step
from alexnet_jax.system.machine import free_memory_bytes, processor_kind

CPU_OPTIONS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""XLA's options for the CPU: matrix products by Eigen, up to twice as fast at those of `convolution` as YNNPACK."""


USABLE_SHARE = 0.9
"""Of free memory: the rest is in pieces, or is taken by other programs, like that of an evaluation."""


def _advise(reason: str) -> str:
    return (
        f"the memory of a device does not suffice ({reason}): give a smaller config.batch_size or "
        "config.eval_batch_size, or more config.parallel.micro_batches"
    )


@contextlib.contextmanager
def exhaustion_in_a_line(explain: Callable[[str], str] = _advise) -> Iterator[None]:
    """Raises UserError where a device's memory is exhausted; `explain` makes its text of what XLA says in a line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(explain(str(error).partition("\n")[0][:200])) from error


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in a folder, one for each kind of processor, and takes them from there; "" for none.

    A folder that JAX was given by its own means (JAX_COMPILATION_CACHE_DIR) is used instead.
    """
    if directory and not jax.config.values["jax_compilation_cache_dir"]:
        # XLA compiles for the processor at hand and would run the program on another, up to an illegal instruction.
        jax.config.update("jax_compilation_cache_dir", str(Path(directory) / processor_kind()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def make_devices(config: ConfigDict, model: AlexNet) -> "Devices":
    """The devices that `config.parallel` asks for. Raises UserError if there are fewer or the network does not suit."""
    if config.mode == "pmap":
        devices: Devices = DataParallel.create(config.num_devices)
    else:
        devices = MeshParallel.create(config.num_devices, config.towers, model)
    return dataclasses.replace(devices, deterministic=config.deterministic)


@dataclasses.dataclass(frozen=True)
class Devices(abc.ABC):
    """Devices of one or more processes, and how batches, state and steps lie on them.

    State goes in and comes out as one plain tree of whole arrays, so a checkpoint is the same whatever the devices.

    Attributes:
      mesh: all devices, those of a process one after the other.
      axes: the mapped axes that steps see.
      deterministic: the same bits each time on GPUs too, where sums are made in any order and kernels chosen by time.
    """

    mesh: Mesh
    axes: Axes
    deterministic: bool = dataclasses.field(default=False, kw_only=True)

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
        return (CPU_OPTIONS if self.on_cpu else {}) | {"xla_gpu_deterministic_ops": self.deterministic}

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one device; None for one that uses the host's."""
        stats = self.mesh.local_devices[0].memory_stats()
        return stats["bytes_limit"] if stats else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that one device has held so far; None for one that uses the host's."""
        stats = self.mesh.local_devices[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else None

    @property
    def free_memory_bytes(self) -> int:
        """Memory that is free on one device; on a processor, its share of what the host has free."""
        stats = self.mesh.local_devices[0].memory_stats()
        if stats:
            return stats["bytes_limit"] - stats["bytes_in_use"]
        return free_memory_bytes() // len(self.mesh.local_devices)

    @property
    def batch_parts(self) -> int:
        """Parts into which a batch is divided; devices that hold different parts of a network share one."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axes.batch]))

    @property
    @abc.abstractmethod
    def layout(self) -> str:
        """How the devices share the work, in words."""

    def compile_train_step(
        self,
        train_step: Step[State],
        resident: dict[str, np.ndarray] | None = None,
        of_many: Callable[[Step[State]], Any] | None = None,
    ) -> "Program":
        """The step on all devices; it consumes the state that it is given and adds to the sums what was used.

        Args:
          train_step: for the share of one device.
          resident: arrays of the whole training split, by example id, that every device is to hold; a batch needs none
            of them then, only its ids.
          of_many: makes the step one of several states and batches; see `population.make_population_step`.

        Returns the step. Its sums hold also "id" and "epoch" of every example that the devices had, in order, and the
        sum of the batch's "stop", if there is one: what one process tells all with a batch.
        """

        def step(state: State, batch: dict[str, jax.Array], resident: dict[str, jax.Array]) -> Any:
            looked_up = {name: values[batch["id"]] for name, values in resident.items()}
            state, sums = train_step(state, {**batch, **looked_up})
            sums |= {name: gather_batch(batch[name], self.axes) for name in ("id", "epoch")}
            if "stop" in batch:
                sums |= add_up({"stop": jnp.sum(batch["stop"])}, self.axes)
            return state, sums

        def step_of_many(states: Any, batches: Any, resident: dict[str, jax.Array]) -> Any:
            assert of_many
            return of_many(lambda state, batch: step(state, batch, resident))(states, batches)

        whole = step_of_many if of_many else step
        return Program(self, whole, "s b c", "s c", "batch_size", self.place(resident or {}))

    def compile_eval_step(self, eval_step: EvalStep) -> "Program":
        """The step on all devices."""
        return Program(self, eval_step, "s s b", "c", "eval_batch_size")

    def compile_guess_step(self, guess_step: GuessStep) -> "Program":
        """The step on all devices, each of which answers for its share of a batch."""
        return Program(self, guess_step, "s s b", "b", "eval_batch_size")

    def compile_map(self, function: Callable[[dict[str, jax.Array]], jax.Array]) -> Callable[[Any], jax.Array]:
        """A function of a batch, each device doing its share."""
        return self._map(function, None, inputs="b", outputs="b")

    @abc.abstractmethod
    def _map(self, function: Any, *args: Any, inputs: str, outputs: str, donate: int | None = None) -> Any:
        """The function on all devices, for arguments like `args`.

        `inputs` and `outputs` have a letter for each: s for state (a tree like that of the first argument), b for a
        batch, c for copies. The argument of number `donate` is consumed.
        """

    def place(self, tree: Any) -> Any:
        """Puts a tree of whole arrays on the devices: a copy on each, or each device's part of what is divided."""
        shardings = jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self._state_specs(tree))
        return jax.device_put(tree, shardings) if jax.process_count() == 1 else jax.tree.map(_put, tree, shardings)

    @abc.abstractmethod
    def _state_specs(self, tree: Any) -> Any:
        """How each array of a state is divided."""

    @abc.abstractmethod
    def share_of(self, shape: tuple[int, ...]) -> int:
        """Images that a device has of a batch with arrays of this shape on the devices."""

    @abc.abstractmethod
    def with_share(self, shape: tuple[int, ...], images: int) -> tuple[int, ...]:
        """The shape with so many images for each device."""

    @abc.abstractmethod
    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's share of a batch, [batch / processes, ...], on its devices."""

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process reads."""
        size = batch_size // jax.process_count()
        return slice(jax.process_index() * size, (jax.process_index() + 1) * size)

    def round_up(self, batch_size: int) -> int:
        """The smallest batch that can be divided and holds `batch_size` examples."""
        return -(-batch_size // self.batch_parts) * self.batch_parts

    def on_host(self, tree: Any) -> Any:
        """The whole arrays of a tree; in memory of the devices where that is the host's: the next step may take it."""
        return jax.tree.map(_on_host, tree)


class Program:
    """A function on devices, compiled for the shapes of its first call; it refuses others, and arrays of the host."""

    def __init__(self, devices: Devices, function: Any, inputs: str, outputs: str, batch_key: str, *last: Any):
        """See `Devices._map`; the first argument is consumed if the first result takes its place.

        `batch_key` is the config's name for the size of a batch, `last` are arguments that follow those of a call.
        """
        donate = 0 if outputs.startswith("s") else None
        self._map = functools.partial(devices._map, function, inputs=inputs, outputs=outputs, donate=donate)
        self._devices, self._last, self._batch_key = devices, last, batch_key
        self._batch_place = inputs.split().index("b")
        self._compiled: Any = None

    def __call__(self, *args: Any) -> Any:
        """Calls the function. Raises UserError if a device has too little memory, with the batch that should fit."""
        args = (*args, *self._last)
        if self._compiled is not None:
            return self._run(*args)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), args)
        free = self._devices.free_memory_bytes
        with exhaustion_in_a_line(lambda _: self._explain_exhaustion(shapes, free)):
            self._compiled = self._compile(*args)
            free = self._devices.free_memory_bytes  # compiling takes some of a host's
            return jax.block_until_ready(self._run(*args))

    def compile(self, *args: Any) -> Any:
        """What XLA made of the function, for arguments like these, arrays or descriptions of arrays."""
        return self._compile(*args, *self._last)

    def _run(self, *args: Any) -> Any:
        with jax.transfer_guard("disallow"):  # what is not on the devices yet would be waited for
            return self._compiled(*args)

    def _compile(self, *args: Any) -> Any:
        return self._map(*args).lower(*args).compile(compiler_options=self._devices.compiler_options)

    def _explain_exhaustion(self, shapes: tuple[Any, ...], free: int) -> str:
        """One line that says how many images should fit into what was free before the call, by two smaller batches."""
        devices, batch = self._devices, shapes[self._batch_place]
        images = devices.share_of(next(iter(batch.values())).shape)
        text = f"the memory of a device ({free / 1e9:.2f} GB free) does not suffice for {images} images at once: "
        if images == 1:
            return text + "a smaller network or crop might"

        def extra_bytes(images: int) -> int:
            smaller = {
                name: jax.ShapeDtypeStruct(devices.with_share(leaf.shape, images), leaf.dtype, sharding=leaf.sharding)
                for name, leaf in batch.items()
            }
            args = [smaller if place == self._batch_place else arg for place, arg in enumerate(shapes)]
            memory = self._compile(*args).memory_analysis()
            return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes

        few, more = max(images // 4, 1), max(images // 2, 2)
        of_few, of_more = extra_bytes(few), extra_bytes(more)
        fitting = few + int((USABLE_SHARE * free - of_few) / max((of_more - of_few) / (more - few), 1))
        fitting = max(min(fitting, images * 3 // 4), 1)  # what failed is no guide to the last image
        return f"{text}{fitting} should fit. Give config.{self._batch_key}={fitting * devices.batch_parts}" + (
            " or more config.parallel.micro_batches" if self._batch_key == "batch_size" else ""
        )


class DataParallel(Devices):
    """`jax.pmap`: each device gets its share of every batch, and all hold the same state."""

    @classmethod
    def create(cls, num_devices: int) -> "DataParallel":
        """`num_devices` of each process, or all for 0. Raises UserError if there are fewer."""
        return cls(Mesh(np.array(_choose(num_devices)), ("data",)), Axes(("data",)))

    @property
    def layout(self) -> str:
        """See Devices."""
        return "pmap"

    def _map(self, function: Any, *args: Any, inputs: str, outputs: str, donate: int | None = None) -> Any:
        in_axes, out_axes = (tuple(0 if kind == "b" else None for kind in kinds.split()) for kinds in (inputs, outputs))
        return jax.pmap(
            function,
            axis_name="data",
            devices=self.devices,
            in_axes=in_axes,
            out_axes=out_axes if len(out_axes) > 1 else out_axes[0],
            donate_argnums=() if donate is None else donate,
        )

    def _state_specs(self, tree: Any) -> Any:
        return jax.tree.map(lambda _: PartitionSpec(), tree)

    def share_of(self, shape: tuple[int, ...]) -> int:
        """See Devices."""
        return shape[1]

    def with_share(self, shape: tuple[int, ...], images: int) -> tuple[int, ...]:
        """See Devices."""
        return (shape[0], images, *shape[2:])

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """See Devices; as `pmap` wants it, [devices, batch / devices, ...]."""
        count = len(self.mesh.local_devices)
        divided = {name: values.reshape(count, -1, *values.shape[1:]) for name, values in batch.items()}
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, PartitionSpec("data")), divided)


@dataclasses.dataclass(frozen=True)
class MeshParallel(Devices):
    """`jax.shard_map` over a mesh of data x tower: the devices of a row share one network; see `towers.py`.

    Attributes:
      is_split: whether a layer is divided over the towers; see `AlexNet.is_split`.
    """

    is_split: Callable[[str], bool]

    @classmethod
    def create(cls, num_devices: int, towers: int, model: AlexNet) -> "MeshParallel":
        """`num_devices` of each process, or all for 0, in rows of `towers`. Raises UserError if that cannot be."""
        devices = _choose(num_devices)
        of_a_process = len(devices) // jax.process_count()
        if of_a_process % towers:
            raise UserError(f"config.parallel.towers={towers} does not divide the {of_a_process} devices of a process")
        model.check_split(towers)
        mesh = Mesh(np.array(devices).reshape(-1, towers), ("data", "tower"))
        of_2012, of_2014 = Axes(("data",), "tower"), Axes(("data", "tower"), "tower")
        shared = of_2012 if model.towers > 1 else of_2014
        return cls(mesh, shared if towers > 1 else Axes(("data",)), model.is_split)

    @property
    def layout(self) -> str:
        """See Devices."""
        rows, towers = self.mesh.devices.shape
        scheme = "the images of all in the fully connected layers" if "tower" in self.axes.batch else "as in 2012"
        return f"mesh of {rows} x {towers}" + (f", {scheme}" if towers > 1 else "")

    def _map(self, function: Any, *args: Any, inputs: str, outputs: str, donate: int | None = None) -> Any:
        batch = PartitionSpec(self.axes.batch)
        of_kind = {"b": lambda _: batch, "c": lambda _: PartitionSpec(), "s": self._state_specs}
        in_specs = tuple(of_kind[kind](arg) for kind, arg in zip(inputs.split(), args, strict=True))
        out_specs = tuple(of_kind[kind](args[0]) for kind in outputs.split())
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs if len(out_specs) > 1 else out_specs[0],
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=() if donate is None else donate)

    def _state_specs(self, tree: Any) -> Any:
        def spec(path: Any, leaf: Any) -> PartitionSpec:
            names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            if self.axes.tower and np.ndim(leaf) and any(map(self.is_split, names)):
                return PartitionSpec(*[None] * (np.ndim(leaf) - 1), self.axes.tower)
            return PartitionSpec()

        return jax.tree_util.tree_map_with_path(spec, tree)

    def share_of(self, shape: tuple[int, ...]) -> int:
        """See Devices."""
        return shape[0] // self.batch_parts

    def with_share(self, shape: tuple[int, ...], images: int) -> tuple[int, ...]:
        """See Devices."""
        return (images * self.batch_parts, *shape[1:])

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """See Devices."""
        sharding = NamedSharding(self.mesh, PartitionSpec(self.axes.batch))
        return jax.make_array_from_process_local_data(sharding, batch)


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
