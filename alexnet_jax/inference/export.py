"""Trained networks for other programs: files that answer as the network does, which is checked before they are kept."""

import contextlib
import dataclasses
import io
import json
import tempfile
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

PLATFORMS = ("cpu", "cuda", "tpu")
"""What a StableHLO file runs on."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Squares of pixels, uint8, [batch, size, size, 3] -> probabilities, float32, [batch, classes]."""


class ExportFailedError(UserError):
    """A file answers otherwise than the network: the input was valid, the file is not."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
      suffix: of its name.
      limit: the largest difference in a probability from the network itself.
      save: writes it.
      load: reads it as other programs do.
    """

    suffix: str
    limit: float
    save: Callable[[TrainedRun, Path], None]
    load: Callable[[Path], Predict]


def export_run(run: TrainedRun, kind: Format, path: Path) -> float:
    """Writes a run to a file, and returns the largest difference in a probability between the two.

    Both compute in float32, whatever the run was trained with. Nothing is left, and what was there stays, unless the
    difference is within the limit.

    Raises UserError if the file cannot be written or a package is missing, ExportFailedError beyond the limit.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            unchecked = Path(folder) / path.name
            with jax.default_matmul_precision("float32"):  # GPUs and TPUs would round products
                kind.save(run, unchecked)
                difference = _largest_difference(_in_float32(run), kind.load(unchecked))
            if not difference <= kind.limit:  # NaN too
                raise ExportFailedError(
                    f"{path} would differ from the network by {difference:.1e} in a probability, "
                    f"more than {kind.limit:.0e}: nothing is written"
                )
            unchecked.replace(path)
    return difference


def _largest_difference(run: TrainedRun, predict: Predict) -> float:
    """Over some squares of random blocks, from single pixels to quarters, in two batches of other sizes."""
    size, random = run.config.data.image_size, np.random.default_rng(0)
    squares = np.empty((4, size, size, 3), np.uint8)
    for square, side in zip(squares, (1, 4, 16, -(-size // 2)), strict=True):
        cells = -(-size // side)
        blocks = random.integers(0, 256, (cells, cells, 3), np.uint8)
        square[:] = blocks.repeat(side, axis=0).repeat(side, axis=1)[:size, :size]
    parts = squares[:1], squares[1:]
    return max(float(np.abs(predict(part) - run.predict(part)).max()) for part in parts)


def _in_float32(run: TrainedRun) -> TrainedRun:
    if run.model.dtype == jnp.float32:
        return run  # with what it has compiled
    return dataclasses.replace(run, model=run.model.clone(dtype=jnp.float32))


def _about(run: TrainedRun) -> dict[str, Any]:
    """What goes with the network into a file."""
    return {
        "class_names": run.outputs,
        "image_size": run.config.data.image_size,
        "views": run.config.test_views,
        "examples_seen": run.examples_seen,
        "data": run.content,
    }


def _save_stablehlo(run: TrainedRun, path: Path) -> None:
    """A zip file of the compiled function, as `jax.export` writes it, and of what it needs as JSON."""
    size, network = run.config.data.image_size, _in_float32(run)
    step = make_predict_step(network.model, network.preprocessing, run.config.test_views)
    variables = jax.device_put(run.variables)

    def predict(squares: jax.Array) -> jax.Array:
        return jnp.exp(step(variables["params"], variables["batch_stats"], squares))

    squares = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), size, size, 3), jnp.uint8)
    with _without_source_lines():
        exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(squares)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # of members without the time
        archive.writestr(zipfile.ZipInfo("model.stablehlo"), bytes(exported.serialize()))
        archive.writestr(zipfile.ZipInfo("model.json"), json.dumps(_about(run), indent=2))
    write_bytes(path, file.getvalue())


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """What is lowered names no line of the code: this machine's folders are nobody's business, and change the bytes."""
    limit = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def _load_stablehlo(path: Path) -> Predict:
    with zipfile.ZipFile(path) as archive:
        exported = jax.export.deserialize(bytearray(archive.read("model.stablehlo")))
    return lambda squares: np.asarray(exported.call(squares))


def _save_onnx(run: TrainedRun, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        name = error.name or error
        raise UserError(f"{name} is missing: python -m pip install -r requirements-export.txt") from error
    write_bytes(path, onnx_model(run, _about(run)))


def _load_onnx(path: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda squares: session.run(None, {"images": squares})[0]


def _load_safetensors(path: Path) -> Predict:
    return _in_float32(load_run(path)).predict


FORMATS = {
    "stablehlo": Format(".stablehlo.zip", 1e-5, _save_stablehlo, _load_stablehlo),
    "onnx": Format(".onnx", 1e-4, _save_onnx, _load_onnx),
    "safetensors": Format(".safetensors", 0.0, TrainedRun.save, _load_safetensors),
}
