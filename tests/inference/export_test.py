"""Exported files predict what the network does, describe their outputs, and are complete or not written at all."""

import ast
import dataclasses
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from alexnet_jax.cli.export import main
from alexnet_jax.config import complete_here
from alexnet_jax.errors import Terminated
from alexnet_jax.inference.export import FORMATS, export_run
from alexnet_jax.inference.loaded_run import TrainedRun, load_run
from tests.conftest import REPOSITORY, full_disk
from tests.helpers.models import slow_unless
from tests.helpers.pictures import noise, refused, save
from tests.helpers.random_run import CLASSES, random_run

QUICK = {"source", "lenet", "small_modern"}
"""Networks that have all kinds of layers between them."""

BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "export.md").read_text(), re.DOTALL)
PRESETS = (
    "source", "paper", "caffe", "owt", "bn", "small", "small_modern", "lenet", "cifar_18pct", "cifar_13pct"
)  # fmt: skip


@pytest.fixture
def run(make_config: Callable[..., ConfigDict]) -> TrainedRun:
    return random_run(make_config())


@pytest.fixture
def saved(run: TrainedRun, tmp_path: Path) -> Path:
    run.save(tmp_path / "run.safetensors")
    return tmp_path / "run.safetensors"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def format_of(block: str) -> str:
    """The suffix of the file that a program of docs/export.md loads."""
    return re.findall(r'\("model(\.\S+)"\)\n', block)[0]


@pytest.mark.parametrize("preset", slow_unless(QUICK, PRESETS))
def test_stablehlo_answers_as_the_network_does(
    preset: str, make_config: Callable[..., ConfigDict], tmp_path: Path
) -> None:
    run = random_run(make_config(f"synthetic,{preset},smoke", test_views=2 if preset == "lenet" else 1))
    path = tmp_path / "model.stablehlo.zip"
    assert export_run(run, FORMATS["stablehlo"], path) <= 1e-5
    with zipfile.ZipFile(path) as file:
        network = jax.export.deserialize(bytearray(file.read("model.stablehlo")))
    assert network.platforms == ("cpu", "cuda", "tpu")
    size = run.config.data.image_size
    (given,), (answer,) = network.in_avals, network.out_avals
    assert str(given) == f"uint8[batch,{size},{size},3]" and str(answer) == "float32[batch,3]"


@pytest.mark.parametrize("preset", ["small_modern", "cifar_13pct"])
def test_safetensors_give_the_same_run(preset: str, make_config: Callable[..., ConfigDict], tmp_path: Path) -> None:
    run = random_run(make_config(f"synthetic,{preset},smoke", **{"model.compute_dtype": "bfloat16"}))
    path = tmp_path / "model.safetensors"
    assert export_run(run, FORMATS["safetensors"], path) == 0
    again = load_run(path)
    here = ConfigDict(complete_here(run.config.to_dict()))
    assert again.config.to_json(sort_keys=True) == here.to_json(sort_keys=True)
    assert again.class_names == CLASSES and again.model == run.model
    images = np.stack([noise(seed, 32, 32) for seed in range(3)])
    np.testing.assert_array_equal(again.predict(images), run.predict(images))


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_answers_otherwise_is_not_kept(
    format: str, run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, path = FORMATS[format], tmp_path / "model"
    other = dataclasses.replace(run, params={**run.params, "fc5": jax.tree.map(lambda x: 1.01 * x, run.params["fc5"])})
    wrong = dataclasses.replace(kind, save=lambda _, path: kind.save(other, path))
    path.write_text("from before")
    message = refused(lambda: export_run(run, wrong, path))
    assert str(path) in message and f"more than {kind.limit:.0e}" in message
    assert files(tmp_path) == ["model"] and path.read_text() == "from before"


def test_an_answer_that_is_no_number_is_not_kept(run: TrainedRun, tmp_path: Path) -> None:
    nan = dataclasses.replace(
        FORMATS["safetensors"], load=lambda path: lambda images: np.full((len(images), 3), np.nan)
    )
    assert "by nan in a probability" in refused(lambda: export_run(run, nan, tmp_path / "model"))
    assert files(tmp_path) == []


@pytest.mark.parametrize("format", FORMATS)
def test_the_program_says_what_it_wrote(format: str, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(saved), f"--format={format}"])
    path = saved.parent / f"model{FORMATS[format].suffix}"
    printed = capsys.readouterr().out
    for words in (str(path), "uint8, [batch, 32, 32, 3]", "[batch, 3], the mean of 1 view", "3: cat, dog, Ærø ship"):
        assert "".join(words.split()) in "".join(printed.split())  # however it was folded
    difference, limit = re.findall(r"at most\s+(\S+)\s+\(limit\s+(\S+)\)", printed)[0]
    assert float(difference) <= float(limit) == FORMATS[format].limit
    assert files(saved.parent) == sorted([path.name, saved.name])


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_network_gives_the_same_bytes(format: str, run: TrainedRun, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    export_run(run, FORMATS[format], first)
    export_run(run, FORMATS[format], second)
    assert first.read_bytes() == second.read_bytes()
    assert b".py" not in first.read_bytes()  # nor does it name the folders of whoever wrote it


def test_an_unknown_format_is_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(saved), "--format=pickle"])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "invalid choice: 'pickle'" in message and all(name in message for name in FORMATS)


def test_a_damaged_run_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    assert str(saved) in refused(lambda: main([str(saved), "--format=onnx"]))
    assert files(saved.parent) == [saved.name]


def test_a_damaged_zip_file_is_noticed(run: TrainedRun, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    export_run(run, FORMATS["stablehlo"], path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        file.read("model.stablehlo")


def test_a_file_that_cannot_be_written_is_one_line(saved: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (in_the_way / "model.safetensors", folder):
        assert f"cannot write {path}" in refused(
            lambda path=path: main([str(saved), "--format=safetensors", f"--output={path}"])
        )
    with full_disk():
        assert "is the disk full?" in refused(lambda: main([str(saved), "--format=safetensors"]))
    assert files(tmp_path) == ["file", "folder", "run.safetensors"] and files(folder) == []


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnxruntime"), ("onnx", "onnx"), ("stablehlo", "flatbuffers")]
)
def test_without_a_package_it_says_how_to_get_it(
    format: str, package: str, run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(lambda: export_run(run, FORMATS[format], tmp_path / "model"))
    assert message == f"{package} is missing: python -m pip install -r requirements-export.txt"
    assert package in (REPOSITORY / "requirements-export.txt").read_text() and files(tmp_path) == []


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="this system has no file that cannot be read")
def test_a_file_that_cannot_be_read_again_is_an_error_of_the_system(format: str) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        FORMATS[format].load(Path("/proc/self/mem"))


def test_an_export_replaces_what_a_killed_one_left(run: TrainedRun, tmp_path: Path) -> None:
    def killed(run: TrainedRun, path: Path) -> None:
        (path.parent / f"{path.name}.tmp").write_text("half")
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)

    kind = FORMATS["safetensors"]
    with pytest.raises(Terminated):
        export_run(run, dataclasses.replace(kind, save=killed), tmp_path / "model")
    assert files(tmp_path) == ["model.unchecked.tmp"]  # SIGKILL would leave model.unchecked too
    (tmp_path / "model.unchecked").write_text("half")
    export_run(run, kind, tmp_path / "model")
    assert files(tmp_path) == ["model"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A folder with all files and a photograph, and the network's predictions, resized as in training and by Pillow."""
    from configs import alexnet

    folder = tmp_path_factory.mktemp("served")
    run = random_run(alexnet.get_config("synthetic,lenet,smoke"))
    for kind in FORMATS.values():
        export_run(run, kind, folder / f"model{kind.suffix}")
    pixels = Image.fromarray(noise(1, 5, 8)).resize((80, 50), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    photo = save(folder / "photo.jpg", np.asarray(pixels), exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(photo))
    square = np.asarray(ImageOps.fit(upright, (32, 32), Image.Resampling.HAMMING))
    return folder, run.predict([photo])[0], run.predict([square])[0]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=format_of)
def test_ten_lines_serve_it(block: str, served: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, by_training, by_pillow = served
    assert len([line for line in block.splitlines() if line]) <= 10
    ours = "alexnet_jax" in block
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY) if ours else ""}
    program = subprocess.run(
        [sys.executable, "-c", block], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert program.returncode == 0, program.stderr
    printed = [ast.literal_eval(line) for line in program.stdout.splitlines()]
    assert [probability for probability, _ in printed] == sorted((row[0] for row in printed), reverse=True)
    answers = {name: probability for probability, name in printed}
    expected = dict(zip(CLASSES, by_training if ours else by_pillow, strict=True))
    assert answers == pytest.approx(expected, abs=1e-6 if ours else 1e-4)
    np.testing.assert_allclose(by_pillow, by_training, atol=0.05)


def test_there_is_a_program_for_each_format() -> None:
    assert sorted(map(format_of, BLOCKS)) == sorted(kind.suffix for kind in FORMATS.values())
