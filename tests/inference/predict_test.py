"""Predictions of a trained network that is loaded from its run folder or file."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax import load_run
from alexnet_jax.checkpoint import digest
from alexnet_jax.cli import predict
from alexnet_jax.errors import UnreadableImagesError, UserError
from alexnet_jax.inference.loaded_run import TrainedRun
from alexnet_jax.inference.weight_files import write_safetensors
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.train import train_and_evaluate
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, prepared_dir: str) -> TrainedRun:
    from configs import alexnet

    config = alexnet.get_config("digits,lenet,smoke")
    config.data.prepared_dir = prepared_dir
    workdir = tmp_path_factory.mktemp("run")
    with ThreadPoolExecutor() as pool:  # which cannot handle signals
        pool.submit(train_and_evaluate, config, workdir / "run").result()
    (workdir / "run").rename(workdir / "moved")
    return load_run(workdir / "moved")


def photo(path: Path, seed: int, size: tuple[int, int] = (90, 70), mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).resize(size).convert(mode).save(path)
    return path


def answers(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict]:
    predict.main([*arguments, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_probabilities_add_up_and_are_the_same_in_any_batch(run: TrainedRun, tmp_path: Path) -> None:
    files = [photo(tmp_path / f"{number}.png", number) for number in range(7)]
    together = run.predict(files)
    assert together.shape == (7, 10) and together.dtype == np.float32
    np.testing.assert_allclose(together.sum(axis=1), 1, rtol=1e-5)
    one_by_one = np.concatenate([run.predict([file]) for file in files])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-7)
    small = run.config.copy_and_resolve_references()
    small.eval_batch_size = 3
    np.testing.assert_allclose(dataclasses.replace(run, config=small).predict(files), together, rtol=1e-5, atol=1e-7)


def test_a_file_its_bytes_and_its_pixels_are_one(run: TrainedRun, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png", 1)
    expected = run.predict([file])
    np.testing.assert_array_equal(run.predict(file), expected)
    np.testing.assert_array_equal(run.predict([file.read_bytes()]), expected)
    np.testing.assert_array_equal(run.predict(np.asarray(Image.open(file))), expected)


def test_predict_is_what_training_evaluates(run: TrainedRun, prepared_dir: str) -> None:
    from alexnet_jax.data.storage import read_images
    from alexnet_jax.inference.evaluation import evaluate, open_run_dataset

    dataset = open_run_dataset(run, prepared_dir=prepared_dir)
    evaluation = evaluate(run, dataset, "test")
    images = read_images(dataset.splits["test"], np.arange(40))
    probabilities = run.predict(images)
    np.testing.assert_array_equal(np.argsort(-probabilities, axis=1, kind="stable")[:, :5], evaluation.predicted[:40])
    np.testing.assert_allclose(
        np.take_along_axis(probabilities, evaluation.predicted[:40], axis=1), evaluation.probabilities[:40], rtol=1e-5
    )


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_grey_and_print_colours_and_rotation(mode: str, run: TrainedRun, tmp_path: Path) -> None:
    upright = photo(tmp_path / "a.jpg", 3, (300, 200), mode)
    turned, exif = Image.open(upright), Image.Exif()
    exif[0x0112] = 6
    turned.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.jpg", exif=exif, quality=95)
    first, second = (run.resize(file).astype(float) for file in (upright, tmp_path / "b.jpg"))
    assert first.shape == (run.config.data.image_size, run.config.data.image_size, 3)
    assert np.abs(first - second).mean() < 8 < np.abs(first - first[::-1]).mean()


def test_features_are_those_of_the_layer(run: TrainedRun, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png", 1)
    for name, shape in run.layer_shapes.items():
        assert run.features([file], name).shape == (1, *shape)
    np.testing.assert_array_equal(run.features([file], "act4"), np.maximum(run.features([file], "fc4"), 0))
    logits = run.features([file], run.layer_names[-1]).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(run.predict([file]), shares, rtol=1e-5)
    with pytest.raises(UserError, match=r"'fc77'.*conv1, act1"):
        run.features([file], "fc77")


def test_pixels_of_another_type_are_refused(run: TrainedRun) -> None:
    with pytest.raises(UserError, match="uint8"):
        run.predict(np.zeros((1, 72, 72, 3), np.float32))
    with pytest.raises(UserError, match="4"):
        run.predict(np.zeros((1, 72, 72, 4), np.uint8))
    with pytest.raises(UserError, match="no images"):
        run.predict([])
    with pytest.raises(UserError, match=r"float64.*255 \* images"):
        run.predict([np.zeros((72, 72, 3))])
    with pytest.raises(UserError, match=r"image 2 .*int64.*astype"):
        run.predict([np.zeros((72, 72), np.uint8), np.zeros((72, 72), np.int64)])
    with pytest.raises(UserError, match=r"\(3, 72, 72\).*\(72, 72, 3\) or \(3, 72, 72, 1\)"):
        run.predict(np.zeros((3, 72, 72), np.uint8))
    with pytest.raises(UserError, match=r"image 1 .*\(3, 72, 72\)"):
        run.predict(np.zeros((2, 3, 72, 72), np.uint8))
    with pytest.raises(UserError, match=r"\(5,\)"):
        run.predict(np.zeros(5, np.uint8))


def test_every_form_of_images_gives_the_same(run: TrainedRun, tmp_path: Path) -> None:
    file = photo(tmp_path / "a.png", 1, (72, 72), "L")
    picture = Image.open(file)
    grey, expected = np.asarray(picture), run.predict([file, file])
    forms = (
        np.stack([grey, grey]),
        np.stack([grey, grey])[..., None],
        [picture, picture.convert("RGB")],
        (np.asarray(picture.convert("RGB")) for _ in range(2)),
        (path for path in (file, str(file))),
        iter([file.read_bytes(), grey[..., None]]),
    )
    for form in forms:
        np.testing.assert_array_equal(run.predict(form), expected)
    for one in (picture, grey, grey[..., None], np.asarray(picture.convert("RGB")), file):
        np.testing.assert_array_equal(run.predict(one).shape, (1, 10))
    turned, exif = picture.convert("RGBA"), Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    np.testing.assert_array_equal(run.resize(turned), np.rot90(run.resize(picture), -1))


def test_a_run_describes_itself_on_one_screen(run: TrainedRun, tmp_path: Path) -> None:
    lines = repr(run).splitlines()
    (test,) = [record for record in read_metrics(run.path) if record["kind"] == "test"]
    assert lines[0] == "TrainedRun moved" and len(lines) == 6
    assert "lenet, " in lines[1] and "digits; 10 classes: 0, 1, 2" in lines[2]
    assert f"test {test['top1_error']:.2%}" in lines[4] and "validation " in lines[4]
    assert lines[3].endswith(f"{run.examples_seen:,} images") and "epochs" in lines[3]
    assert lines[5].endswith(str(run.path))
    run.save(tmp_path / "net.safetensors")
    shutil.copy(run.path / "metrics.jsonl", tmp_path)  # perhaps of another run
    assert "not recorded" in repr(load_run(tmp_path / "net.safetensors"))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "start", "examples_seen": 0}\n')
    assert "not recorded" in repr(dataclasses.replace(run, path=tmp_path))


def test_an_exported_file_is_the_same_network(run: TrainedRun, tmp_path: Path) -> None:
    run.save(tmp_path / "net.safetensors")
    again = load_run(tmp_path / "net.safetensors")
    file = photo(tmp_path / "a.png", 1)
    np.testing.assert_array_equal(again.predict([file]), run.predict([file]))
    assert again.class_names == run.class_names and again.examples_seen == run.examples_seen
    content = bytearray((tmp_path / "net.safetensors").read_bytes())
    (tmp_path / "cut.safetensors").write_bytes(content[:-9])
    (tmp_path / "text.safetensors").write_bytes(b"no such file at all")
    for name in ("cut", "text"):
        with pytest.raises(UserError, match=f"{name}.safetensors"):
            load_run(tmp_path / f"{name}.safetensors")
    renamed = bytes(content).replace(rb"\"3\"", rb"\"8\"", 1)
    assert renamed != content
    (tmp_path / "renamed.safetensors").write_bytes(renamed)
    with pytest.raises(UserError, match=r"renamed\.safetensors.*digest"):
        load_run(tmp_path / "renamed.safetensors")
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match=r"bare\.safetensors"):
        load_run(tmp_path / "bare.safetensors")


def test_a_folder_in_order_and_a_file(run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    files = [photo(folder / name, number) for number, name in enumerate(("b.png", "c.JPG", "deep/a.webp"))]
    (folder / "notes.txt").write_text("not an image")
    extra = photo(tmp_path / "extra.png", 9)
    found = answers([str(run.path), str(folder), str(extra), "--top=3"], capsys)
    assert [answer["file"] for answer in found] == [*map(str, files), str(extra)]
    probabilities = run.predict([*files, extra])
    for answer, expected in zip(found, probabilities, strict=True):
        labels = [prediction["label"] for prediction in answer["predictions"]]
        assert labels == np.argsort(-expected, kind="stable")[:3].tolist()
        assert [prediction["class"] for prediction in answer["predictions"]] == [str(label) for label in labels]


def test_the_table_and_the_csv_say_the_same(
    run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = photo(tmp_path / "a.png", 1)
    predict.main([str(run.path), str(file)])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == str(file) and len(lines) == 5
    predict.main([str(run.path), str(file), "--csv"])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "file,rank,class,label,probability"
    for line, row in zip(lines, rows, strict=True):
        _, _, name, _, probability = row.split(",")
        assert line.split()[:2] == [name, f"{float(probability):.1%}"]


class Terminal(io.StringIO):
    """Text written to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_csv_gives_odd_names_to_programs_but_not_to_terminals(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    predictions = [{"class": "=1+1", "label": 3, "probability": 0.5}]
    predict._show_csv(iter([{"file": "\x1b]0;a\x07\n.jpg", "predictions": predictions}]))
    name = r"\x1b]0;a\x07\n.jpg" if is_terminal else "\x1b]0;a\x07\n.jpg"
    assert output.getvalue() == f'file,rank,class,label,probability\n"{name}",1,\'=1+1,3,0.5\n'


def test_unreadable_files_are_named_and_the_others_answered(
    run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "c.png").write_bytes(b"")
    with pytest.raises(UnreadableImagesError, match="2 of 3 images") as error:
        predict.main([str(run.path), str(tmp_path), "--csv"])
    assert error.value.exit_code == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 6
    assert [line.split(" cannot be read")[0] for line in printed.err.splitlines()] == [
        f"skipped: {tmp_path / name}" for name in ("b.png", "c.png")
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["RUN", "nowhere.png"], "nowhere.png: no such file"),
        (["RUN", "."], "holds no image"),
        (["RUN", "a.png", "--top=0"], "--top=0"),
        (["RUN", "a.png", "--checkpoint=17"], "--checkpoint=17"),
        (["nowhere", "a.png"], "nowhere: no such run"),
        (["empty", "a.png"], "empty/checkpoints holds no checkpoint"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], text: str, run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / "empty").mkdir(parents=True)
    monkeypatch.chdir(work)
    if words[1] == "a.png":
        photo(work / "a.png", 1)
    with pytest.raises(UserError, match=text):
        predict.main([str(run.path) if word == "RUN" else word for word in words])


def test_an_image_too_large_to_decode_is_unreadable(run: TrainedRun, tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb\.png.*20000 x 20000"):
        run.predict([tmp_path / "bomb.png"])


def test_standard_input_elsewhere_without_data_or_configs(run: TrainedRun, tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (50, 40, 3), np.uint8)).save(content, "PNG")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "alexnet_jax", "predict", str(run.path), "-", "--json"],
        input=content.getvalue(),
        capture_output=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    assert not done.stderr and not list(tmp_path.iterdir())
    (first, *_) = json.loads(done.stdout)["predictions"]
    expected = run.predict([content.getvalue()])[0]
    assert first["label"] == expected.argmax() and first["probability"] == pytest.approx(float(expected.max()), 1e-5)


def test_classes_that_the_data_lack_have_a_name(make_config: Callable[..., ConfigDict], tmp_path: Path) -> None:
    train_and_evaluate(make_config(**{"model.num_classes": 12}), tmp_path)
    run = load_run(tmp_path)
    assert len(run.outputs) == 12 and run.outputs[-1] == "unused 11"
    assert run.predict(np.zeros((1, 256, 256, 3), np.uint8)).shape == (1, 12)


def test_views_that_there_are_not_are_refused(run: TrainedRun) -> None:
    for views in (0, 3, -1):
        with pytest.raises(UserError, match=f"views={views}.* 1, 2, 10"):
            run.predict(np.zeros((72, 72, 3), np.uint8), views)


def test_warnings_are_no_answers(run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    shutil.copytree(newest, newest.with_name(f"{newest.name}0"))
    (newest.with_name(f"{newest.name}0") / "_CHECKPOINT_METADATA").unlink()
    predict.main([str(tmp_path / "run"), str(photo(tmp_path / "a.png", 1)), "--csv"])
    printed = capsys.readouterr()
    assert printed.out.startswith("file,rank,") and "is damaged" in printed.err


def test_each_file_has_its_answer_and_hidden_ones_are_none(
    run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = photo(tmp_path / "a.png", 1)
    (tmp_path / "._a.png").write_bytes(b"what a Mac leaves beside each file")
    found = answers([str(run.path), str(tmp_path), str(file)], capsys)
    assert [answer["file"] for answer in found] == [str(file)] * 2


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ({"class_names": tuple("abc")}, r"its arrays do not match its network: params/fc5/bias is \(10,\), not"),
        ({"params": {"conv1": {"kernel": np.zeros(3, np.float32)}}}, "params/conv2/kernel is missing"),
        ({"config": ConfigDict({"seed": 1})}, "its arrays do not match its network"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(
    damage: dict[str, object], text: str, run: TrainedRun, tmp_path: Path
) -> None:
    dataclasses.replace(run, **damage).save(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=text):
        load_run(tmp_path / "a.safetensors")


def test_a_header_without_its_parts_is_refused(tmp_path: Path) -> None:
    tree = {"a": np.zeros(3, np.float32)}
    write_safetensors(tmp_path / "a.safetensors", tree, {"digest": digest(tree, {})})
    with pytest.raises(UserError, match=r"a\.safetensors.*'config'"):
        load_run(tmp_path / "a.safetensors")


def test_a_network_of_nan_has_no_answers(run: TrainedRun, tmp_path: Path) -> None:
    params = jax.tree.map(lambda array: np.full_like(array, np.nan), run.params)
    dataclasses.replace(run, params=params).save(tmp_path / "nan.safetensors")
    words = [str(tmp_path / "nan.safetensors"), str(photo(tmp_path / "a.png", 1))]
    with pytest.raises(UserError, match="NaN"):
        predict.main(words)
    with pytest.raises(UserError, match=r"--checkpoint=best"):
        predict.main([*words, "--checkpoint=best"])


@pytest.mark.slow
def test_nobody_reads_on(run: TrainedRun, tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 1)
    command = f"{sys.executable} -m alexnet_jax predict {run.path} {tmp_path} --csv | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stderr) == (141, "")
