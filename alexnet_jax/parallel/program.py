"""A function compiled for all devices, once, for the shapes of its first call."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import PartitionSpec

from alexnet_jax.parallel import memory

if TYPE_CHECKING:
    from alexnet_jax.parallel.devices import Devices

Spec = PartitionSpec | Callable[[Any], Any]
"""The sharding of an argument: a PartitionSpec, or a function from the argument to its PartitionSpecs."""


@dataclasses.dataclass
class Program:
    """A function on all devices, compiled for the shapes of its first call.

    Later calls must have the same shapes, and all arguments must already be on the devices.

    Attributes:
      devices: the devices.
      function: what one device computes from its shards.
      in_specs: the sharding of each argument; `devices.batch_spec` marks the batch.
      out_specs: the sharding of the results.
      batch_key: the config key of the batch size, for error messages.
      updates_state: the first result is the new state and reuses the memory of the first argument.
      last: fixed arguments, already on the devices, that are appended to those of each call.
    """

    devices: "Devices"
    function: Callable[..., Any]
    in_specs: tuple[Spec, ...]
    out_specs: Any
    batch_key: str
    updates_state: bool = False
    last: tuple[Any, ...] = ()
    _compiled: Any = None

    def __call__(self, *args: Any) -> Any:
        """Calls the function. Raises UserError if a device is out of memory, with a batch size that should fit."""
        args = (*args, *self.last)
        if self._compiled is not None:
            return self._run(*args)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), args)
        free = self.devices.free_memory_bytes
        with memory.out_of_memory_as_user_error(lambda _: self._explain_memory(shapes, free)):
            self._compiled = self._compile(*args)
            free = self.devices.free_memory_bytes  # compiling uses some of the host's memory
            return jax.block_until_ready(self._run(*args))

    def compile(self, *args: Any) -> Any:
        """Compiles the function for arguments like these, arrays or their shapes, and returns XLA's executable."""
        return self._compile(*args, *self.last)

    def _run(self, *args: Any) -> Any:
        with jax.transfer_guard("disallow"):  # an implicit transfer would stall the devices
            return self._compiled(*args)

    def _compile(self, *args: Any) -> Any:
        in_specs = tuple(
            spec if isinstance(spec, PartitionSpec) else spec(arg)
            for spec, arg in zip(self.in_specs, args, strict=True)
        )
        out_specs = (in_specs[0], self.out_specs) if self.updates_state else self.out_specs
        donated = (0,) if self.updates_state else ()
        mapped = self.devices.map(self.function, in_specs, out_specs, donated)
        return mapped.lower(*args).compile(compiler_options=self.devices.compiler_options)

    def _explain_memory(self, shapes: tuple[Any, ...], free_bytes: int) -> str:
        index = self.in_specs.index(self.devices.batch_spec)

        def memory_of(batch: dict[str, jax.ShapeDtypeStruct]) -> Any:
            return self._compile(*shapes[:index], batch, *shapes[index + 1 :]).memory_analysis()

        return memory.explain(shapes[index], self.devices.image_axis, free_bytes, memory_of, self.batch_key)
