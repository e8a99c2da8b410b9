"""Bytes of device memory that a training step moves on a GPU, compiled for one but not run: a table by category.

    python -m pip install -r requirements.txt jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2
    python -m benchmarks.gpu_compiled

XLA compiles for a GPU on a machine without one, from a description of it. Layouts, types, kernels and their operands
are those of the real program. Each kernel counts as reading its distinct operands and writing its results once. No time
is measured, and kernels are not tuned. The plugin needs no driver; its version is jax's.

Descriptions of other GPUs are in XLA's repository: xla/backends/gpu/target_config/specs.
"""

import argparse
import collections
import dataclasses
import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from alexnet_jax.data.statistics import Statistics
from alexnet_jax.experiment import make_preprocessing
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.models.summary import trace_shapes
from alexnet_jax.optimizer import make_optimizer
from alexnet_jax.parallel.collectives import Axes
from alexnet_jax.parallel.devices import Devices
from alexnet_jax.steps import make_train_step
from alexnet_jax.system.files import write_json
from alexnet_jax.system.versions import describe_environment
from alexnet_jax.train_state import create_train_state
from configs import alexnet

H100 = Path(__file__).parent / "h100.txtpb"
PLUGIN = "jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2"
PRESETS = ("source", "caffe", "owt", "modern")

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2} | {"s64": 8, "u64": 8, "f64": 8}
"""Bytes of a number of XLA's types; 4 of all others."""

NO_KERNELS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier")
"""Operations of a compiled program that move nothing."""

CATEGORIES = (
    ("convolutions", r"cudnn\$conv"),
    ("matrix products", r"gemm|cublas"),
    ("normalisation", r"normalize_maps|map_norm|normalize_batch"),
    ("pooling", r"/pool/|\(pool\)"),
    ("crops", r"/crops/"),
    ("optimizer", r"/optimizer/"),
    ("activations, biases and dropout", r"_activate|_weights/\w+/reduce_sum|dropout"),
    ("casts of weights", r"_weights/\w+/convert_element_type"),
)
"""What kernels do, by XLA's name or our names of what is fused in them; the first that fits counts."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a compiled program, or a call of a library.

    Attributes:
      name: XLA's name.
      names: XLA's and our names of all that it computes.
      bytes: those of its distinct operands and of its results.
    """

    name: str
    names: str
    bytes: int

    @property
    def category(self) -> str:
        """The first of CATEGORIES that fits."""
        return next((category for category, pattern in CATEGORIES if re.search(pattern, self.names)), "other")


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--target", type=Path, default=H100, help="the description of a GPU")
    parser.add_argument("--kernels", type=int, default=0, help="print so many of the largest kernels, too")
    parser.add_argument("--output", type=Path, help="default: results/gpu_compiled/TARGET.json")
    arguments = parser.parse_args()
    if importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        raise SystemExit(f"XLA for NVIDIA GPUs is missing: python -m pip install {PLUGIN}")
    jax.config.update("jax_platforms", "cpu")
    tables = {}
    for preset in arguments.presets:
        config = alexnet.get_config(f"imagenet2012,{preset}")
        config.update({"batch_size": arguments.batch, "model": {"compute_dtype": arguments.dtype, "num_classes": 1000}})
        program = compile_step(config, arguments.target.read_text())
        kernels = find_kernels(program.as_text())
        tables[preset] = {**add_up(kernels), "memory": program.memory_analysis().temp_size_in_bytes}
        print_table(preset, tables[preset])
        for kernel in sorted(kernels, key=lambda kernel: -kernel.bytes)[: arguments.kernels]:
            print(f"    {kernel.bytes / 1e9:.3f} GB {kernel.category}: {kernel.name}")
    settings = {"target": arguments.target.stem, "batch": arguments.batch, "dtype": arguments.dtype}
    result = {**settings, **describe_environment(["-m", "benchmarks.gpu_compiled"]), "bytes": tables}
    write_json(arguments.output or Path(f"results/gpu_compiled/{arguments.target.stem}.json"), result)


def compile_step(config: ConfigDict, target: str) -> Any:
    """Compiles the training step of a config for one GPU, which need not exist, and returns XLA's executable."""
    options = {"target_config": target, "topology": "1x1x1"}
    described = topologies.get_topology_desc("gpu", platform="cuda", **options)
    mesh = Mesh(np.array(described.devices[:1]), ("data",))
    devices = Devices(mesh, Axes(("data",)), lambda _: False, uses_pmap=True)
    model = get_model(config.model, config.model.num_classes)
    variables, _ = trace_shapes(model, config.data.crop)
    optimizer = make_optimizer(config.optimizer, variables["params"])
    preprocessing = make_preprocessing(config.data, Statistics.unknown(config.data.image_size))
    step = make_train_step(model, optimizer, preprocessing, devices.axes, 1, config.label_smoothing)
    state = jax.eval_shape(lambda variables: create_train_state(variables, optimizer, 0), variables)
    size, number = config.data.image_size, ((), jnp.int32)
    arrays = {"image": ((size, size, 3), jnp.uint8), "label": number, "id": number, "epoch": number}

    def place(shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    batch = {
        name: place((1, config.batch_size, *shape), dtype, devices.batch_spec)
        for name, (shape, dtype) in arrays.items()
    }
    state = jax.tree.map(lambda leaf: place(leaf.shape, leaf.dtype, PartitionSpec()), state)
    return devices.compile_train_step(step).compile(state, batch)


def find_kernels(program: str) -> list[Kernel]:
    """The kernels of a compiled program, given as XLA's text, except those inside loops, which are small here."""
    computations = {
        name: " ".join(re.findall(r'op_name="([^"]*)"', body))
        for name, body in re.findall(r"^%([\w.-]+) \(.*?\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL)
    }
    kernels, buffers, sizes = [], {}, {}
    for line in program[program.index("\nENTRY ") :].splitlines():
        match = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)(.*)", line)
        if not match:
            continue
        name, shape, operation, operands, rest = match.groups()
        arguments = re.findall(r"%([\w.-]+)", operands)
        buffers[name], sizes[name] = name, _bytes(shape)
        if operation in ("bitcast", "opt-barrier"):
            buffers[name] = buffers[arguments[0]]
        elif operation == "get-tuple-element":
            buffers[name] = f"{buffers[arguments[0]]} {rest}"
        elif operation not in NO_KERNELS and not operation.endswith("-done"):
            read = {buffers[argument]: sizes[argument] for argument in arguments}
            called = re.search(r"calls=%([\w.-]+)", rest)
            names = f"{name} {rest} {computations.get(called[1], '') if called else ''}"
            kernels.append(Kernel(name, names, sum(read.values()) + sizes[name]))
    return kernels


def _bytes(shape: str) -> int:
    """Bytes of arrays that XLA writes as f32[8,3]{1,0} or (f32[8]{0}, s32[])."""
    return sum(
        ITEM_BYTES.get(dtype, 4) * math.prod(int(extent) for extent in extents.split(",") if extent)
        for dtype, extents in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    )


def add_up(kernels: list[Kernel]) -> dict[str, int]:
    """Bytes by category, the largest first, and of all kernels."""
    totals: collections.Counter[str] = collections.Counter()
    for kernel in kernels:
        totals[kernel.category] += kernel.bytes
    return {**dict(totals.most_common()), "all": totals.total(), "kernels": len(kernels)}


def print_table(preset: str, table: dict[str, int]) -> None:
    """Prints the bytes of a preset as a line of Markdown."""
    cells = [f"{name} {table[name] / 1e9:.2f}" for name in table if name not in ("all", "kernels", "memory")]
    print(f"| {preset} | {table['all'] / 1e9:.2f} GB | {', '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
