"""Export of trained networks to files for other programs; each file is checked against the network before use."""

import contextlib
import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.inference.loaded_run import TrainedRun, load_run
from alexnet_jax.inference.onnx_graph import onnx_model
from alexnet_jax.steps import make_predict_step
from alexnet_jax.system.files import naming, write_bytes
from alexnet_jax.system.signals import raise_on_sigterm
from alexnet_jax.system.versions import require

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms for which a StableHLO file is compiled."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Resized images, uint8, [batch, size, size, 3] -> probabilities, float32, [batch, classes]."""


class ExportFailedError(UserError):
    """The exported file's predictions differ from the network's by more than the format's limit."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
      suffix: the suffix of file names.
      packages: those that it needs, of the extra "export".
      limit: the largest allowed difference of a probability from the network's.
      save: writes a run to a file.
      load: reads the file as another program would, and returns its prediction function.
    """

    suffix: str
    packages: tuple[str, ...]
    limit: float
    save: Callable[[TrainedRun, Path], None]
    load: Callable[[Path], Predict]


def export_run(run: TrainedRun, kind: Format, path: Path) -> float:
    """Writes a run to a file, once the file's predictions have been compared with the network's.

    Both compute in float32, whatever the run was trained with. If the check fails, nothing is written and an existing
    file is kept. What a killed export leaves, PATH.unchecked, the next one replaces.

    Args:
      run: the trained network.
      kind: the file format.
      path: the file to write.

    Returns:
      The largest difference between a probability of the file and one of the network.

    Raises:
      UserError: the file cannot be written, or a package is missing.
      ExportFailedError: the difference exceeds the format's limit.
    """
    require("export", *kind.packages)
    unchecked = path.with_name(f"{path.name}.unchecked")
    with naming(path), raise_on_sigterm():
        try:
            with jax.default_matmul_precision("float32"):  # GPUs and TPUs would round products
                kind.save(run, unchecked)
                difference = _largest_difference(_in_float32(run), kind.load(unchecked))
            if not difference <= kind.limit:  # NaN too
                raise ExportFailedError(
                    f"{path} is not written: it would differ from the network by {difference:.1e} in a probability, "
                    f"more than {kind.limit:.0e}"
                )
            unchecked.replace(path)
        finally:
            unchecked.unlink(missing_ok=True)
    return difference


def _largest_difference(run: TrainedRun, predict: Predict) -> float:
    """The largest difference in a probability, over four images of random blocks in two batches of unequal size."""
    size, random = run.config.data.image_size, np.random.default_rng(0)
    images = np.empty((4, size, size, 3), np.uint8)
    for image, side in zip(images, (1, 4, 16, -(-size // 2)), strict=True):
        cells = -(-size // side)
        blocks = random.integers(0, 256, (cells, cells, 3), np.uint8)
        image[:] = blocks.repeat(side, axis=0).repeat(side, axis=1)[:size, :size]
    batches = images[:1], images[1:]
    return max(float(np.abs(predict(batch) - run.predict(batch)).max()) for batch in batches)


def _in_float32(run: TrainedRun) -> TrainedRun:
    if run.model.dtype == jnp.float32 and run.model.matmul_precision == "default":
        return run  # keeps the functions that it has compiled
    return dataclasses.replace(run, model=run.model.clone(dtype=jnp.float32, matmul_precision="default"))


def _about(run: TrainedRun) -> dict[str, Any]:
    """The metadata that is stored beside the network."""
    return {
        "class_names": run.outputs,
        "image_size": run.config.data.image_size,
        "views": run.config.test_views,
        "examples_seen": run.examples_seen,
        "data": run.content,
    }


def _save_stablehlo(run: TrainedRun, path: Path) -> None:
    """Writes a zip file of the function as serialised by `jax.export`, and of its metadata as JSON."""
    size, network = run.config.data.image_size, _in_float32(run)
    step = make_predict_step(network.model, network.preprocessing, run.config.test_views)
    variables = jax.device_put(run.variables)

    def predict(images: jax.Array) -> jax.Array:
        return jnp.exp(step(variables["params"], variables["batch_stats"], images))

    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), size, size, 3), jnp.uint8)
    with _without_source_lines():
        exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(images)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # ZipInfo has a fixed time, so equal runs give equal bytes
        archive.writestr(zipfile.ZipInfo("model.stablehlo"), bytes(exported.serialize()))
        archive.writestr(zipfile.ZipInfo("model.json"), json.dumps(_about(run), indent=2))
    write_bytes(path, file.getvalue())


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """Leaves source locations out of lowered code: they reveal local folders and make the bytes differ by machine."""
    limit = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def _load_stablehlo(path: Path) -> Predict:
    content = io.BytesIO(path.read_bytes())  # zipfile would call a file that the disk does not give a damaged one
    with zipfile.ZipFile(content) as archive:
        exported = jax.export.deserialize(bytearray(archive.read("model.stablehlo")))
    return lambda images: np.asarray(exported.call(images))


def _save_onnx(run: TrainedRun, path: Path) -> None:
    write_bytes(path, onnx_model(run, _about(run)))


def _load_onnx(path: Path) -> Predict:
    import onnxruntime

    content = path.read_bytes()  # onnxruntime would, too
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def _load_safetensors(path: Path) -> Predict:
    return _in_float32(load_run(path)).predict


FORMATS = {
    "stablehlo": Format(".stablehlo.zip", ("flatbuffers",), 1e-5, _save_stablehlo, _load_stablehlo),
    "onnx": Format(".onnx", ("onnx", "onnxruntime"), 1e-4, _save_onnx, _load_onnx),
    "safetensors": Format(".safetensors", (), 0.0, TrainedRun.save, _load_safetensors),
}
