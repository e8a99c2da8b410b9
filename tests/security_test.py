"""Run folders and prepared data sets of strangers: they run nothing, and name no place to read from or write to."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from alexnet_jax import load_run
from alexnet_jax.checkpoint import Checkpoints, checkpoint_names, restore
from alexnet_jax.cli import audit, convert, evaluate, explain_prediction, export, predict
from alexnet_jax.config_keys import KEYS
from alexnet_jax.data.sources import Tfds
from alexnet_jax.data.storage import final_name, write_tfds_metadata
from alexnet_jax.errors import UserError
from alexnet_jax.inference import evaluation
from alexnet_jax.inference.fine_tuning import start_from
from alexnet_jax.inference.report import make_report
from alexnet_jax.system.files import write_json
from alexnet_jax.train import train_and_evaluate
from configs import alexnet
from tests.conftest import REPOSITORY
from tests.helpers.pictures import make_folder, noise, save

TEXT = "tensorflow_datasets.core.features.text_feature.Text"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared_dir: str) -> Path:
    config = alexnet.get_config("digits,lenet,smoke")
    config.data.prepared_dir = prepared_dir
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_and_evaluate(config, folder)
    return folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, prepared_dir: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the digits prepared where they are by default."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "data").symlink_to(prepared_dir)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """The place that the stranger names."""
    return tmp_path / "trap"


def from_a_stranger(trained: Path, trap: Path, name: str) -> Path:
    """A copy of a run whose config names other images, and the trap for every place; its digest is right."""
    run = shutil.copytree(trained, trap.parent / "run")
    (position,) = checkpoint_names(run / "checkpoints")
    found = restore(run / "checkpoints", position)
    config = ConfigDict(found.metadata["config"])
    places = {key: str(trap) for key in ("init_from", "compilation_cache_dir", "data.dir", "data.prepared_dir")}
    config.update_from_flattened_dict({"data.name": name, **places})
    with Checkpoints(run / "checkpoints", keep=1) as checkpoints:
        metadata = {**found.metadata, "config": config.to_dict(), "data": "unknown images"}
        checkpoints.save(position, found.tree, metadata, best=None)
    write_json(run / "config.json", config.to_dict())
    return run


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes a set "planted" of TFDS whose features name a module on the path; returns what importing that makes."""
    modules, directory = folder / "modules", folder / "planted" / "1.0.0"
    directory.mkdir(parents=True)
    shard = directory / final_name("train", 0, 1, "jpeg")
    shard.touch()
    write_tfds_metadata(directory, ["cat", "dog"], 8, {"train": [(shard.name, 2, 9)]})
    features = directory / "features.json"
    text = features.read_text()
    assert text.count(TEXT) == 1
    features.write_text(text.replace(TEXT, "intruder.Text"))
    modules.mkdir()
    (modules / "intruder.py").write_text("from pathlib import Path\nPath(__file__).with_name('was_here').touch()\n")
    monkeypatch.syspath_prepend(modules)
    monkeypatch.delitem(sys.modules, "intruder", raising=False)
    return modules / "was_here"


def fine_tune(run: Path) -> None:
    source = load_run(run)
    start_from(ConfigDict({**source.config.to_dict(), "init_from": str(run)}), source.class_names, source.variables)


COMMANDS: dict[str, Callable[[Path], object]] = {
    "load_run": load_run,
    "init_from": fine_tune,
    "predict": lambda run: predict.main([str(run), "photo.png"]),
    "evaluate": lambda run: evaluate.main([str(run)]),
    "explain_prediction": lambda run: explain_prediction.main([str(run), "photo.png"]),
    "report": make_report,
    "export": lambda run: export.main([str(run), "--format=safetensors"]),
    "convert": lambda run: convert.main([str(run), "--layout=caffe", "--output=weights.npz"]),
    "audit": lambda run: audit.main([str(run)]),
}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_no_command_uses_a_place_that_a_run_names(
    trained: Path, trap: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = from_a_stranger(trained, trap, "digits")
    caches: list[str] = []
    monkeypatch.setattr(evaluation, "use_compilation_cache", caches.append)
    monkeypatch.setattr(explain_prediction, "use_compilation_cache", caches.append)
    monkeypatch.setattr("alexnet_jax.inference.explanation.PLACES", 2)
    monkeypatch.setattr("alexnet_jax.inference.report._predictions", lambda *_: {})  # takes long, and no places
    save(own_folder / "photo.png", noise(0))
    before = files(run)
    for name, command in COMMANDS.items():
        command(run)
        assert not trap.exists(), name
    assert caches == [KEYS["compilation_cache_dir"].default] * 3  # of evaluate, explain_prediction and report
    assert files(run) - before == {
        "explanations/photo.png.html",
        "explanations/photo.png.png",
        "evaluation/predictions-test.csv",
        "evaluation/classes-test.csv",
        "evaluation/confusion-test.csv",
        "model.safetensors",
    }
    assert {path.name for path in own_folder.iterdir()} == {"data", "photo.png", "weights.npz"}


@pytest.mark.parametrize("name", ["folder", "tfds:planted", "tfds:mnist"])
def test_images_where_a_run_says_that_they_are_are_not_opened(
    name: str, trained: Path, trap: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does TFDS hear of the name, which would make it run what it finds there or download data."""
    run, intruded = from_a_stranger(trained, trap, name), plant(trap, monkeypatch)
    make_folder(trap, {f"train/{digit}": 2 for digit in range(10)})
    before = files(trap)
    (own_folder / "data").unlink()
    with pytest.raises(UserError, match=rf"\({name}\) .* prepared in data: give --prepared-dir=FOLDER"):
        evaluate.main([str(run)])
    with pytest.raises(UserError, match=r"prepared in .*trap: give --prepared-dir=FOLDER"):
        evaluate.main([str(run), f"--prepared-dir={trap}"])
    assert "No images are shown: " in str(make_report(run).sections["Missing"])
    assert files(trap) == before and not (own_folder / "data").exists()
    assert not intruded.exists()


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_a_prepared_set_of_tfds_that_names_a_module_is_refused(
    file: str, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intruded, directory = plant(trap, monkeypatch), trap / "planted" / "1.0.0"
    if file == "dataset_info.json":  # TFDS reads features there, too
        features = directory / "features.json"
        info = json.loads((directory / file).read_text())
        write_json(directory / file, {**info, "features": json.loads(features.read_text())})
        features.write_text(features.read_text().replace("intruder.Text", TEXT))
    for name in ("planted", "planted:1.0.0"):
        with pytest.raises(UserError, match=rf"'tfds:{name}': its files name the class 'intruder\.Text'"):
            Tfds(name, str(trap))
    assert not intruded.exists()
    with pytest.raises(ValueError, match=r"intruder\.Text"):
        tfds.builder("planted", data_dir=trap)
    assert intruded.exists()  # what is refused would have run


def test_what_a_run_records_is_shown_and_never_run(trained: Path, trap: Path) -> None:
    run = from_a_stranger(trained, trap, "folder")
    versions = json.loads((run / "versions.json").read_text())
    command = ["main.py", "<script>", f"$(touch {trap})", f"; touch {trap}"]
    write_json(run / "versions.json", {**versions, "command": command})
    (shown,) = make_report(run).sections["Versions"]
    assert "&lt;script&gt;" in str(shown) and "<script>" not in str(shown)
    assert not trap.exists()


def test_each_line_of_the_threat_model_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| .*tests/.* \|$", (REPOSITORY / "docs" / "security.md").read_text(), re.MULTILINE)
    assert len(rows) >= 8
    for row in rows:
        for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row):
            assert f"def {name}(" in (REPOSITORY / path).read_text() if name else (REPOSITORY / path).exists(), row
