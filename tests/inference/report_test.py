"""The HTML report on a run, finished or not."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax import load_run
from alexnet_jax.cli import report
from alexnet_jax.data.storage import read_images
from alexnet_jax.errors import UserError
from alexnet_jax.inference import report as report_lib
from alexnet_jax.inference import report_page
from alexnet_jax.inference.activations import activation_statistics, nearest_neighbours
from alexnet_jax.inference.evaluation import Evaluation, evaluate, open_run_dataset
from alexnet_jax.inference.report import make_report
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.train import train_and_evaluate

FIGURES = ["curves", "kernels", "augmented", "confusion", "predictions", "mistakes", "neighbours"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prepared_dir: str) -> Path:
    from configs import alexnet

    config = alexnet.get_config("digits,lenet")
    config.update({"max_steps": 45, "log_every_steps": 5, "log_images": True})
    config.data.prepared_dir = prepared_dir
    config.optimizer.min_drops = 1
    workdir = tmp_path_factory.mktemp("report") / "<run>"
    train_and_evaluate(config, workdir, ["main.py", "--config=configs/alexnet.py:digits,lenet"])
    return workdir


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "<run>")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(prepared_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the prepared data sets where they are by default."""
    monkeypatch.chdir(Path(prepared_dir).parent)


def page_of(folder: Path, *flags: str) -> str:
    report.main([str(folder), *flags])
    return (folder / "report.html").read_text()


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))


@pytest.mark.slow
def test_the_page_of_a_finished_run(finished: Path) -> None:
    page = page_of(finished)
    assert len(page) < 5e6
    assert not re.findall(
        r"""(?:src|href|srcset)="(?!data:image/png;base64,|#)""", page
    ) and "http" not in page.replace("http-equiv", "")
    assert "<script" not in page and "<run>" not in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    expected = ["Training", "First layer", "Training images", "Errors", "Predictions", "Worst mistakes", "Neighbours"]
    assert titles == [*expected, "Activations", "Time", "Config", "Paper, source, Caffe and this run", "Versions"]
    assert page.count("<img") == page.count("prefers-color-scheme: dark") - 1 == len(FIGURES)
    text = text_of(page)
    (test,) = (record for record in read_metrics(finished) if record["kind"] == "test")
    assert f"Test error: top-1 {test['top1_error']:.2%}" in text
    wrong = round(test["top1_error"] * test["count"])
    assert f"top-1 error {test['top1_error']:.2%} ({wrong:,} of {test['count']:,} images wrong; 95 % interval" in text
    assert "python main.py --config=configs/alexnet.py:digits,lenet" in text
    assert "config.optimizer.learning_rate" in text and "shorter side 256, central square" in text


def test_the_picture_of_the_report_is_in_tensorboard_too(finished: Path) -> None:
    (events,) = (finished / "tensorboard").iterdir()
    report_figure = next(figure for figure in make_report(finished).figures() if figure.name == "augmented")
    assert report_figure.png() in events.read_bytes()


@pytest.mark.slow
def test_the_figures_alone(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(finished), "--png", f"--output={tmp_path}"])
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(FIGURES)
    for path in tmp_path.iterdir():
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert picture.shape[1] > 300 and picture.std() > 5, path
    assert len(capsys.readouterr().out.splitlines()) == len(FIGURES)


@pytest.mark.slow
def test_a_run_without_its_end(run_folder: Path) -> None:
    metrics = run_folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if '"kind": "test"' not in line) + '{"kind": "ep')
    text = text_of(page_of(run_folder))
    assert "Not finished: epoch" in text and "Validation, checkpoint" in text and "Test, checkpoint" not in text


def test_a_run_without_a_checkpoint(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run_folder / "checkpoints")
    page = page_of(run_folder)
    assert page.count("<img") == 1
    assert "No network is shown:" in text_of(page) and "holds no checkpoint" in text_of(page)
    assert "warning: No network is shown:" in capsys.readouterr().out


def test_an_edited_record_is_told(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run_folder / "checkpoints")
    record = run_folder / "metrics.jsonl"
    record.write_text(record.read_text().replace('"loss": ', '"loss": 1', 1))
    assert "line 2 was edited" in str(make_report(run_folder).sections["Training"][0])
    assert "line 2 was edited" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("name", ["config.json", "versions.json"])
def test_an_edited_description_is_told(name: str, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not list(report_lib._faults(run_folder))
    path = run_folder / name
    path.write_text(path.read_text().replace("lenet", "lenot"))
    (fault,) = report_lib._faults(run_folder)
    assert name in str(fault) and name in capsys.readouterr().out


def test_a_run_that_has_recorded_nothing(run_folder: Path) -> None:
    for name in ("metrics.jsonl", "timing.jsonl"):
        (run_folder / name).unlink()
    shutil.rmtree(run_folder / "checkpoints")
    text = text_of(page_of(run_folder))
    assert "no epoch has been evaluated yet" in text and text.count("Nothing is recorded yet.") == 2


@pytest.mark.slow
def test_a_run_whose_images_are_gone(make_config: Callable[..., ConfigDict], tmp_path: Path, prepared_dir: str) -> None:
    from tests.helpers.pictures import make_folder

    photos = make_folder(tmp_path / "photos", {"train/cat": 20, "train/dog": 20})
    changes = {"data.dir": str(photos), "data.prepared_dir": str(tmp_path / "prepared")}
    train_and_evaluate(make_config("folder,cifar_18pct", max_steps=1, batch_size=8, **changes), tmp_path / "run")
    shutil.rmtree(photos)
    shutil.rmtree(tmp_path / "prepared")
    page = page_of(tmp_path / "run")
    assert "No images are shown:" in text_of(page) and page.count("<img") == 2
    make_folder(tmp_path / "elsewhere", {"train/cat": 20, "train/dog": 20})
    again = page_of(tmp_path / "run", f"--data-dir={tmp_path / 'elsewhere'}", f"--prepared-dir={tmp_path / 'again'}")
    assert again.count("<img") == len(FIGURES)


@pytest.mark.slow
def test_a_run_made_before_a_key_was_added_is_shown_with_its_default(run_folder: Path) -> None:
    path = run_folder / "config.json"
    config = json.loads(path.read_text())
    del config["optimizer"]["ema_decay"], config["epochs"]
    path.write_text(json.dumps(config))
    text = text_of(page_of(run_folder))
    assert "config.optimizer.ema_decay 0.0" in " ".join(text.split())
    assert "config.epochs 90.0" in " ".join(text.split())


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        report.main([str(tmp_path)])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        report.main([str(tmp_path)])


GOOD = {"config.json": "{}", "versions.json": '{"command": ["main.py"], "packages": {}}'}
EPOCH = {"epoch": 1.0, "train_loss": 1.0, "train_top1_error": 0.5, "validation_loss": 1.0, "validation_top1_error": 0.5}


def record(kind: str, **values: object) -> str:
    return json.dumps({"kind": kind, "examples_seen": 8, **values}) + "\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model": 5}'),
        ("config.json", "[" * 100_000),
        ("versions.json", "{}"),
        ("versions.json", '{"command": "main.py", "packages": {}}'),
        ("versions.json", '{"command": [], "packages": []}'),
        ("metrics.jsonl", "[]\n"),
        ("metrics.jsonl", "{}\n"),
        ("metrics.jsonl", '{"kind": "step", "examples_seen": "8"}\n'),
        ("metrics.jsonl", record("step", loss="low", learning_rate=0.1)),
        ("metrics.jsonl", record("step", loss=2.0, learning_rate=0.1) + record("step", loss=2.0)),
        ("metrics.jsonl", record("start", seed=0, train_examples=-1)),
        ("metrics.jsonl", record("epoch", **EPOCH)),
        ("metrics.jsonl", record("test", split="test", top1_error=0.5, top5_error=None)),
        ("metrics.jsonl", record("division", learning_rate=0.1)),
        ("timing.jsonl", '{"examples_seen": 8, "seconds": 2.0}\n'),
        ("timing.jsonl", '{"examples_seen": 8, "save_seconds": "2"}\n'),
    ],
)
def test_a_damaged_record_is_named_in_a_line(file: str, content: str, tmp_path: Path) -> None:
    for name, text in {**GOOD, file: content}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / file))) as caught:
        report.main([str(tmp_path)])
    assert "\n" not in str(caught.value)
    if content.count("\n") == 2:
        assert f"{file}, line 2 is damaged: learning_rate is missing" in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", '["a.png"]', "[" + "5, " * 359 + "5]"])
def test_a_damaged_table_of_files_is_named(content: str, finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    dataset = dataclasses.replace(open_run_dataset(run), directory=tmp_path)
    (tmp_path / "test_files.json").write_text(content)
    with pytest.raises(UserError, match=r"test_files\.json"):
        evaluate(run, dataset, "test")


def test_many_classes_take_little_memory(finished: Path) -> None:
    """A matrix of all classes would take 3 GB."""
    classes, labels = 20_000, np.arange(1000, dtype=np.int32)
    run = dataclasses.replace(load_run(finished), class_names=tuple(map(str, range(classes))))
    probabilities = np.ones((1000, 1), np.float32)
    wrong = Evaluation(run, "test", 1, [""] * 1000, labels, (labels + 1)[:, None], probabilities, probabilities[:, 0])
    tracemalloc.start()
    parts = list(report_lib._errors(wrong))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6 and any(getattr(part, "name", "") == "confusion" for part in parts)


def test_text_is_escaped() -> None:
    evil = "<script>alert('x')</script>\"&"
    cells = [report_page.table([evil], [[evil]]), report_page.facts({evil: evil}), report_page.paragraph(evil)]
    page = report_page.page(evil, evil, {evil: "".join([*cells, report_page.figure(b"", b"", evil)])})
    assert "<script" not in page and 'x"' not in page and evil in html.unescape(page)


def test_neighbours_of_training_images_are_themselves(finished: Path) -> None:
    run = load_run(finished)
    train = open_run_dataset(run).splits["train"]
    ids = np.arange(5, 300)
    queries = read_images(train, ids[:7])
    near = nearest_neighbours(run, "fc4", queries, train, ids, count=3)
    np.testing.assert_array_equal(near[:, 0], ids[:7])
    features = run.features(read_images(train, ids), "fc4")
    distances = np.linalg.norm(features[:7, None] - features[None], axis=-1)
    np.testing.assert_array_equal(near, ids[np.argsort(distances, axis=1)[:, :3]])


def test_activation_statistics_are_those_of_the_features(finished: Path) -> None:
    run = load_run(finished)
    images = read_images(open_run_dataset(run).splits["test"], np.arange(40))
    for row in activation_statistics(run, images):
        features = run.features(images, row.name)
        assert row.shape == features.shape[1:]
        assert row.mean == pytest.approx(features.mean(), rel=1e-4, abs=1e-5)
        assert row.std == pytest.approx(features.std(), rel=1e-4)
        assert row.zeros == pytest.approx((features == 0).mean(), abs=1e-6)
        dead = (features == 0).all(axis=tuple(range(features.ndim - 1))).sum()
        assert row.dead == (dead if row.name.startswith("act") else None)


def test_the_confusion_matrix_adds_up(finished: Path) -> None:
    run = load_run(finished)
    evaluation = evaluate(run, open_run_dataset(run), "test")
    counts = evaluation.confusion(np.arange(len(run.class_names)))
    mistakes = counts - np.diag(np.diag(counts))
    assert evaluation.mistakes().tolist() == (mistakes.sum(0) + mistakes.sum(1)).tolist()
    some = np.array([1, 3, 4])
    assert evaluation.confusion(some).tolist() == counts[np.ix_(some, some)].tolist()
    for number, (_, images, wrong, _) in enumerate(evaluation.by_class()):
        assert counts[number].sum() == images and images - counts[number, number] == wrong


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
def test_a_browser_shows_it_in_light_and_dark_and_on_a_phone(finished: Path, tmp_path: Path) -> None:
    page = page_of(finished)
    (tmp_path / "report.html").write_text(page)
    brightness = {}
    for name, scheme, width in (("light", 1, 1000), ("dark", 0, 1000), ("phone", 1, 500)):
        picture = tmp_path / f"{name}.png"
        subprocess.run(
            [
                str(BROWSER),
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--blink-settings=preferredColorScheme={scheme}",
                f"--window-size={width},6000",
                f"--screenshot={picture}",
                f"file://{tmp_path / 'report.html'}",
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        pixels = np.asarray(Image.open(picture).convert("L")).astype(float)
        assert pixels.shape[1] == width
        brightness[name] = pixels[:, :8].mean(), pixels[:2000].std()
    assert brightness["light"][0] == brightness["phone"][0] == 255 and brightness["dark"][0] < 40
    assert all(contrast > 20 for _, contrast in brightness.values())
