"""`python -m alexnet_jax convert`: weights of other programs to a run, and back."""

import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.cli import convert, evaluate, predict
from alexnet_jax.cli.flags import config_from_flags
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import open_dataset
from alexnet_jax.inference.layouts import to_layout
from alexnet_jax.inference.loaded_run import load_run
from alexnet_jax.inference.weight_files import read_arrays
from alexnet_jax.models.alexnet import AlexNet
from tests.conftest import REPOSITORY
from tests.inference.layouts_test import network, random_params

CROP = 95
PRESETS = {"torchvision": "owt", "caffe": "caffe"}
CAFFE_MEAN = ["--config.data.mean_form=channel", "--config.data.mean=(123.0,117.0,104.0)"]


def arguments(source: Path, workdir: Path, layout: str = "torchvision", *more: str) -> list[str]:
    size = [f"--config.data.crop={CROP}", "--config.data.image_size=96", "--config.model.hidden_width=16"]
    config = f"--config=configs/alexnet.py:synthetic,{PRESETS[layout]}"
    return [str(source), f"--layout={layout}", f"--workdir={workdir}", config, *size, *more]


def foreign(layout: str) -> tuple[AlexNet, Any, dict[str, np.ndarray]]:
    model = network(PRESETS[layout])
    params = random_params(model, CROP)
    return model, params, to_layout(layout, model, CROP, {"params": params})


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return path


@pytest.mark.parametrize(
    ("layout", "source", "target", "flags"),
    [("torchvision", "a.safetensors", "b.npz", []), ("caffe", "a.npz", "b.safetensors", CAFFE_MEAN)],
)
def test_weights_become_a_run_and_come_out_the_same(
    layout: str, source: str, target: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, params, arrays = foreign(layout)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {number}" for number in range(7)))
    workdir, output = tmp_path / "run", tmp_path / target
    convert.main(arguments(write(tmp_path / source, arrays), workdir, layout, f"--class-names={names}", *flags))
    assert "16 arrays" in capsys.readouterr().out
    run = load_run(workdir)
    assert run.class_names[6] == "class 6" and run.content == "" and run.examples_seen == 0
    assert json.loads((workdir / "config.json").read_text())["model"]["preset"] == PRESETS[layout]
    jax.tree.map(np.testing.assert_array_equal, run.params, params)

    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    data = run.config.data
    crops = (run.preprocessing.centre(pixels) - np.float32(data.mean)) / np.float32(data.std)
    logits, _ = jax.jit(model.apply)({"params": params}, crops)
    np.testing.assert_allclose(run.predict(pixels), jax.nn.softmax(logits), rtol=1e-3, atol=1e-6)

    convert.main([str(workdir), f"--layout={layout}", f"--output={output}"])
    assert str(output) in capsys.readouterr().out
    back = read_arrays(output)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, strict=True)


@pytest.mark.parametrize(
    ("layout", "changes", "what"),
    [
        ("torchvision", ["--config.data.mean_form=image_centre"], r"config\.data\.mean=\(123\.675,116\.28,103\.53\)"),
        ("caffe", [], r"mean=\(123\.0,117\.0,104\.0\)"),
        ("torchvision", ["--class-names=names.txt"], "names.txt has 3 lines; a name for each of 7"),
        ("torchvision", ["--class-names=none.txt"], "none.txt cannot be read"),
        ("torchvision", ["--config.model.num_classes=9"], r"classifier.6.bias is \(7,\), not \(9,\); classifier.6.wei"),
        ("torchvision", ["--config.model.hidden_width=8"], r"classifier.1.bias is \(16,\), not \(8,\)"),
        ("torchvision", ["--config.data.crop=64"], r"classifier.1.weight is \(16, 1024\), not \(16, 256\)"),
        ("torchvision", ["--config.model.activation=tanh"], "activation tanh"),
        ("torchvision", ["what"], "unexpected argument 'what'"),
    ],
)
def test_what_does_not_suit_is_refused_and_nothing_is_written(
    layout: str, changes: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.safetensors", foreign(layout)[2])
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(REPOSITORY / "configs")
    Path("names.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=what):
        convert.main(arguments(source, tmp_path / "run", layout, *changes))
    assert not (tmp_path / "run").exists()


def test_a_network_of_a_thousand_classes_knows_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network("lenet").clone(num_classes=1000)
    source, workdir = tmp_path / "lenet.npz", tmp_path / "run"
    write(source, to_layout("caffe", model, 28, {"params": random_params(model, 28)}))
    config = ["--config=configs/alexnet.py:synthetic,lenet", "--config.data.crop=28", "--config.data.image_size=28"]
    config += ["--config.model.hidden_width=16", "--config.data.mean=(78.0,78.0,78.0)"]
    convert.main([str(source), "--layout=caffe", f"--workdir={workdir}", *config])
    assert "ImageNet" in capsys.readouterr().out
    assert load_run(workdir).class_names[281] == "n02123045"
    predictions = [{"class": "n02123045", "label": 281, "probability": 0.5}]
    answer = {"file": "cat.jpg", "predictions": predictions}
    predict._show_tables(iter([answer]))
    assert "  tabby, tabby cat (n02123045)  " in capsys.readouterr().out
    predict._show_json(iter([answer]))
    (shown,) = json.loads(capsys.readouterr().out)["predictions"]
    assert shown == {**predictions[0], "name": "tabby, tabby cat"}


def test_nan_is_refused(tmp_path: Path) -> None:
    arrays = foreign("torchvision")[2]
    arrays["features.3.bias"][5] = np.nan
    with pytest.raises(UserError, match=r"features\.3\.bias"):
        convert.main(arguments(write(tmp_path / "a.npz", arrays), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_left_alone_and_an_interrupted_conversion_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    source = write(tmp_path / "a.safetensors", foreign("torchvision")[2])
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert.main(arguments(source, tmp_path / "run"))
    with pytest.raises(UserError, match=r"run"):
        convert.main(arguments(source, tmp_path / "run", "torchvision", "--config.seed=1"))
    convert.main(arguments(source, tmp_path / "run"))
    assert load_run(tmp_path / "run").examples_seen == 0
    with pytest.raises(UserError, match=r"run"):
        convert.main(arguments(source, tmp_path / "run"))


def test_one_direction_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--workdir=DIR .* --output=FILE"):
        convert.main(["a.pth", "--layout=torchvision"])
    with pytest.raises(UserError, match="no such run"):
        convert.main([str(tmp_path / "a"), "--layout=torchvision", f"--output={tmp_path / 'b.npz'}"])


def test_a_malicious_file_does_nothing(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    program = b"cos\nsystem\n(S'touch " + str(planted).encode() + b"'\ntR."
    pickle_alone, in_archive = tmp_path / "a.pth", tmp_path / "b.pth"
    pickle_alone.write_bytes(program)
    with zipfile.ZipFile(in_archive, "w") as archive:
        archive.writestr("x/data.pkl", program)
    for source in (pickle_alone, in_archive):
        with pytest.raises(UserError, match=source.name):
            convert.main(arguments(source, tmp_path / "run"))
    assert not planted.exists() and not (tmp_path / "run").exists()


def test_a_converted_run_is_evaluated_without_a_warning(
    tmp_path: Path, prepared_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network("lenet").clone(num_classes=10)
    source = write(tmp_path / "a.npz", to_layout("caffe", model, 28, {"params": random_params(model, 28)}))
    config = ["--config=configs/alexnet.py:synthetic,lenet,smoke", "--config.data.crop=28"]
    config += ["--config.model.hidden_width=16", "--config.data.mean=(78.0,78.0,78.0)"]
    config += [f"--config.data.prepared_dir={prepared_dir}"]
    dataset = open_dataset(config_from_flags("test", config).data)
    names, workdir = tmp_path / "names.txt", tmp_path / "run"
    names.write_text("\n".join(dataset.class_names))
    convert.main([str(source), "--layout=caffe", f"--workdir={workdir}", f"--class-names={names}", *config])
    capsys.readouterr()
    evaluate.main([str(workdir), f"--prepared-dir={prepared_dir}"])
    shown = capsys.readouterr()
    assert "top-1 error" in shown.out and "have changed" not in shown.out + shown.err
