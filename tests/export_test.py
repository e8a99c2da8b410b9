"""A network as a file for other programs: it answers the same, or there is no file."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import load_run
from alexnet_jax.errors import UserError
from alexnet_jax.export import FORMATS, ExportFailedError, export_run
from alexnet_jax.programs import export
from alexnet_jax.trained import TrainedRun
from configs import alexnet
from tests.conftest import REPOSITORY
from tests.pictures import refused
from tests.random_run import CLASSES, random_run

PRESETS = (
    "source",
    "paper",
    "caffe",
    "owt",
    "bn",
    "small",
    "small_modern",
    "lenet",
    "cifar_18pct",
    "cifar_13pct",
)
SNIPPETS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "serving.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def run() -> TrainedRun:
    config = alexnet.get_config("synthetic,lenet,smoke")
    config.test_views = 2
    return random_run(config)


@pytest.fixture(scope="module")
def served(run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each format and a picture that is wider than high."""
    folder = tmp_path_factory.mktemp("served")
    for kind in FORMATS.values():
        export_run(run, kind, folder / f"model{kind.suffix}")
    pixels = np.random.default_rng(3).integers(0, 256, (32, 44, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=95)
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_answers_the_same_in_every_format(preset: str, tmp_path: Path) -> None:
    run = random_run(alexnet.get_config(f"synthetic,{preset},smoke"))
    for name, kind in FORMATS.items():
        difference = export_run(run, kind, tmp_path / f"model{kind.suffix}")
        print(f"{preset} {name} {difference:.1e}")
        assert difference <= {"stablehlo": 1e-5, "onnx": 1e-4, "safetensors": 0}[name]


def test_each_format_has_a_snippet() -> None:
    assert len(SNIPPETS) == len(FORMATS)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: re.findall(r"model\.[\w.]+", text)[0])
def test_ten_lines_of_the_documentation_load_it(snippet: str, served: Path, run: TrainedRun) -> None:
    assert len(snippet.splitlines()) <= 10
    path = os.pathsep.join([str(REPOSITORY)] if "alexnet_jax" in snippet else [])
    result = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=served,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answers = [re.fullmatch(r"\((.*), '(.*)'\)", line) for line in result.stdout.splitlines()]
    photo = served / "photo.jpg"
    by_pillow = np.asarray(Image.open(photo))[:, 6:38]  # what decodes a JPEG decides its last bits
    (expected,) = run.predict([photo] if "alexnet_jax" in snippet else by_pillow[None])
    order = np.argsort(-expected)
    assert [answer and answer[2] for answer in answers] == [CLASSES[k] for k in order]
    np.testing.assert_allclose([float(answer[1]) for answer in answers if answer], expected[order], atol=1e-4)


def test_a_stablehlo_file_is_for_all_platforms_and_holds_the_names(served: Path) -> None:
    with zipfile.ZipFile(served / "model.stablehlo.zip") as file:
        exported = jax.export.deserialize(bytearray(file.read("model.stablehlo")))
        about = json.loads(file.read("model.json"))
    assert about["class_names"] == list(CLASSES) and about["image_size"] == 32
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0].shape) == "(batch, 32, 32, 3)"


def test_the_program_exports_a_file_of_a_file(served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "net.safetensors"
    export.main([str(served / "model.safetensors"), "--format=safetensors", f"--output={path}"])
    assert path.read_bytes() == (served / "model.safetensors").read_bytes()
    shown = " ".join(capsys.readouterr().out.split())
    assert "uint8, [batch, 32, 32, 3]" in shown and "2 views" in shown and "cat, dog" in shown
    assert "differs from the network by 0 at most (limit 0)" in shown
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_a_file_that_answers_otherwise_is_not_kept(run: TrainedRun, tmp_path: Path) -> None:
    other = dataclasses.replace(run, params=jax.tree.map(lambda leaf: leaf * 1.01, run.params))
    broken = dataclasses.replace(FORMATS["safetensors"], save=lambda run, path: other.save(path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"what was there")
    with pytest.raises(ExportFailedError, match="nothing is written"):
        export_run(run, broken, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == b"what was there"


def test_not_a_number_is_not_kept(run: TrainedRun, tmp_path: Path) -> None:
    other = dataclasses.replace(run, params=jax.tree.map(lambda leaf: leaf * np.nan, run.params))
    with pytest.raises(ExportFailedError, match="nan"):
        export_run(other, FORMATS["safetensors"], tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_says_what_to_install(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = refused(lambda: export_run(run, FORMATS["onnx"], tmp_path / "model.onnx"))
    assert "onnxruntime" in message and "pip install -r requirements-export.txt" in message
    assert (REPOSITORY / "requirements-export.txt").is_file() and not list(tmp_path.iterdir())


def test_a_format_that_does_not_exist_is_refused(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        export.main([str(served / "model.safetensors"), "--format=pickle"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in FORMATS)


def test_a_damaged_file_is_named(served: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "cut.safetensors"
    damaged.write_bytes((served / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.safetensors is no whole"):
        load_run(damaged)
    assert "cut.safetensors" in refused(lambda: export.main([str(damaged), "--format=stablehlo"]))
