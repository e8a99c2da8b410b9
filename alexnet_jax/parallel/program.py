"""A function that runs on all devices, compiled once for the shapes of its first call."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import PartitionSpec

from alexnet_jax.parallel import memory

if TYPE_CHECKING:
    from alexnet_jax.parallel.devices import Devices

Spec = PartitionSpec | Callable[[Any], Any]
"""How an argument is divided over the devices: a PartitionSpec, or a function of the argument that returns one."""


@dataclasses.dataclass
class Program:
    """A function on devices, compiled for the shapes of its first call; it refuses others, and arrays of the host.

    Attributes:
      devices: where it runs.
      function: what one device computes of its shards.
      in_specs: of each argument, the batch being the one divided by `devices.batch_spec`.
      out_specs: of the results.
      batch_key: the config's name for the size of the batch.
      updates_state: the first result takes the place of the first argument, which is consumed and divided alike.
      last: arguments, on the devices, that follow those of a call.
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
        """Calls the function. Raises UserError if a device has too little memory, with the batch that should fit."""
        args = (*args, *self.last)
        if self._compiled is not None:
            return self._run(*args)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), args)
        free = self.devices.free_memory_bytes
        with memory.exhaustion_in_a_line(lambda _: self._explain_exhaustion(shapes, free)):
            self._compiled = self._compile(*args)
            free = self.devices.free_memory_bytes  # compiling takes some of a host's
            return jax.block_until_ready(self._run(*args))

    def compile(self, *args: Any) -> Any:
        """What XLA made of the function, for arguments like these, arrays or descriptions of arrays."""
        return self._compile(*args, *self.last)

    def _run(self, *args: Any) -> Any:
        with jax.transfer_guard("disallow"):  # what is not on the devices yet would be waited for
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

    def _explain_exhaustion(self, shapes: tuple[Any, ...], free_bytes: int) -> str:
        index = self.in_specs.index(self.devices.batch_spec)

        def memory_of(batch: dict[str, jax.ShapeDtypeStruct]) -> Any:
            return self._compile(*shapes[:index], batch, *shapes[index + 1 :]).memory_analysis()

        return memory.explain(shapes[index], self.devices.image_axis, free_bytes, memory_of, self.batch_key)
