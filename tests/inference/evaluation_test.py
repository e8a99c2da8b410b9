"""Evaluation of a run: the tables of predictions add up to the printed errors."""

import csv
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import load_run
from alexnet_jax.cli import evaluate as program
from alexnet_jax.errors import UserError
from alexnet_jax.inference.evaluation import evaluate, evaluate_run, open_run_dataset
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.presets import Layer
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.steps import make_eval_step, make_predictions_step
from alexnet_jax.train import train_and_evaluate
from tests.augment_test import CROP, PLAIN
from tests.helpers.pictures import make_folder, noise, save

MakeConfig = Callable[..., ConfigDict]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("views", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_rows_add_up_to_what_is_printed_and_recorded(
    views: int, make_config: MakeConfig, tmp_path: Path, prepared_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train_and_evaluate(make_config("digits,lenet,smoke", test_views=views), tmp_path)
    (test,) = (record for record in read_metrics(tmp_path) if record["kind"] == "test")
    capsys.readouterr()
    program.main([str(tmp_path), f"--prepared-dir={prepared_dir}"])
    printed = " ".join(capsys.readouterr().out.split())
    rows = rows_of(tmp_path / "evaluation" / "predictions-test.csv")
    assert [int(row["id"]) for row in rows] == list(range(test["count"]))
    assert all(row["file"].startswith("digits/") and row["class"] == row["label"] for row in rows)
    assert len({row["file"] for row in rows}) == len(rows)
    for k in (1, 5):
        wrong = sum(row["label"] not in [row[f"prediction{rank}"] for rank in range(1, k + 1)] for row in rows)
        assert wrong / len(rows) == pytest.approx(test[f"top{k}_error"])
        assert f"top-{k} error {wrong / len(rows):.2%} ({wrong} of {len(rows)} wrong" in printed
    for row in rows:
        shares = [float(row[f"probability{rank}"]) for rank in range(1, 6)]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-5
    classes = rows_of(tmp_path / "evaluation" / "classes-test.csv")
    assert sum(int(row["images"]) for row in classes) == len(rows)
    for column, k in (("wrong_top1", 1), ("wrong_top5", 5)):
        assert sum(int(row[column]) for row in classes) == round(test[f"top{k}_error"] * len(rows))
    evaluation = evaluate_run(tmp_path, prepared_dir=prepared_dir)
    assert evaluation.summary["loss"] == pytest.approx(test["loss"], rel=1e-5)


def test_the_predictions_of_many_devices_stay_in_order(
    make_config: MakeConfig, tmp_path: Path, prepared_dir: str
) -> None:
    """With two devices and a batch size that does not divide the split, each row still belongs to its image."""
    train_and_evaluate(make_config("digits,lenet,smoke"), tmp_path)
    run = load_run(tmp_path)
    assert len(jax.devices()) == 2
    dataset = open_run_dataset(run, prepared_dir=prepared_dir)
    small = run.config.copy_and_resolve_references()
    small.eval_batch_size = 7
    first, second = evaluate(run, dataset, "test"), evaluate(dataclasses.replace(run, config=small), dataset, "test")
    np.testing.assert_array_equal(first.predicted, second.predicted)
    np.testing.assert_allclose(first.losses, second.losses, rtol=1e-4, atol=1e-6)
    untested = dataclasses.replace(dataset, splits={"validation": dataset.splits["validation"]})
    assert [evaluate(run, data).split for data in (dataset, untested)] == ["test", "validation"]


def test_a_prediction_agrees_with_the_metrics_of_training_also_for_ties_and_nan() -> None:
    """The n-th image has one bright pixel, so that the logits are the n-th row of the kernel."""
    model = AlexNet(layers=(Layer("fc", 0),), num_classes=7)
    rng = np.random.default_rng(0)
    images = np.eye(108, dtype=np.uint8).reshape(108, CROP, CROP, 3)
    logits, labels = rng.integers(-2, 3, (108, 7)).astype(np.float32), rng.integers(0, 7, 108).astype(np.int32)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels), "mask": jnp.ones(108, bool)}
    steps = make_predictions_step(model, PLAIN), make_eval_step(model, PLAIN)
    for kernel in (logits, np.full_like(logits, np.nan)):
        params = {"fc1": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(7)}}
        answers, sums = (step(params, {}, batch) for step in steps)
        predictions = np.asarray(answers["prediction"])
        for k in (1, 5):
            assert (predictions[:, :k] == labels[:, None]).any(axis=1).sum() == sums[f"top{k}_correct"]
        np.testing.assert_allclose(answers["loss"].sum(), sums["loss_sum"], rtol=1e-5)
    assert (predictions == -1).all()


def test_other_classes_are_refused_with_the_first_that_differs_but_evaluated_by_name(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "photos", {"train/cat": 30, "train/dog": 30})
    changes = {"data.dir": str(folder), "data.prepared_dir": str(tmp_path / "prepared")}
    train_and_evaluate(make_config("folder,cifar_18pct", max_steps=1, batch_size=8, **changes), tmp_path / "run")
    words = [str(tmp_path / "run"), f"--data-dir={folder}", f"--prepared-dir={tmp_path / 'prepared'}"]
    (folder / "train" / "dog").rename(folder / "train" / "cow")
    with pytest.raises(UserError, match=r"class 1 .*'cow'.*'dog'"):
        program.main([*words, "--split=train"])
    make_folder(folder, {"train/eel": 30})
    (folder / "train" / "cow").rename(folder / "train" / "dog")
    with pytest.raises(UserError, match="3 classes, not 2"):
        program.main([*words, "--split=train"])
    shutil.rmtree(folder / "train" / "eel")
    program.main([*words, "--split=train", f"--output={tmp_path / 'elsewhere'}"])
    assert (tmp_path / "elsewhere" / "predictions-train.csv").exists()
    new = make_folder(tmp_path / "new", {"dog": 5, "emu": 2})
    (new / "dog" / "broken.jpg").write_bytes(b"?")
    capsys.readouterr()
    program.main([str(tmp_path / "run"), f"--data-dir={new}"])
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("emu (2)", "broken.jpg", "expected calibration error", "for the held-out ones of the run's own"):
        assert text in printed
    (table,) = (tmp_path / "run" / "evaluation").glob("predictions-new-*.csv")
    assert [row["class"] for row in rows_of(table)] == ["dog"] * 5
    (table,) = (tmp_path / "run" / "evaluation").glob("confusion-new-*.csv")
    assert sum(int(row["images"]) for row in rows_of(table)) == 5
    many = make_folder(tmp_path / "many", {str(number): 1 for number in range(12)})
    with pytest.raises(UserError, match=r"0 \(1\), .*, 9 \(1\) and 2 more; its classes are cat, dog"):
        program.main([str(tmp_path / "run"), f"--data-dir={many}"])
    with pytest.raises(UserError, match=r"--labels=outer: give --data-dir"):
        program.main([str(tmp_path / "run"), "--labels=outer"])
    save(tmp_path / "unlabelled" / "IMG_1.jpg", noise(0))
    with pytest.raises(UserError, match=r"unlabelled: no images with labels.*--labels=TABLE"):
        program.main([str(tmp_path / "run"), f"--data-dir={tmp_path / 'unlabelled'}"])


def test_images_are_found_by_their_content_or_by_flags(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a run in the default folder of prepared sets need no flag, wherever the originals are now."""
    folder = make_folder(tmp_path / "photos", {"train/cat": 30, "train/dog": 30})
    changes = {"data.dir": str(folder), "data.prepared_dir": str(tmp_path / "prepared")}
    train_and_evaluate(make_config("folder,cifar_18pct", max_steps=1, batch_size=8, **changes), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    folder.rename("moved")
    with pytest.raises(UserError, match=r"\(folder\) .* in data: give --prepared-dir=FOLDER .* --data-dir=FOLDER"):
        program.main(["run"])
    program.main(["run", "--prepared-dir=prepared"])
    Path("prepared").rename("data")
    program.main(["run"])
    shutil.rmtree("data")
    program.main(["run", "--data-dir=moved", "--prepared-dir=new"])
    assert not Path("data").exists()


def test_a_changed_class_list_or_preprocessing_in_a_checkpoint_is_noticed(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    train_and_evaluate(make_config("digits,lenet,smoke"), tmp_path)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    changed = 0
    for path in checkpoint.rglob("*"):
        if path.is_file() and b'"class_names"' in path.read_bytes():
            whole = path.read_bytes()
            for old, new in ((b'"0"', b'"7"'), (b'"crop": 28', b'"crop": 27'), (b'"crop":28', b'"crop":27')):
                if old in whole:
                    path.write_bytes(whole.replace(old, new, 1))
                    with pytest.raises(UserError, match="digest"):
                        load_run(tmp_path)
                    changed += 1
            path.write_bytes(whole)
    assert changed == 2
    load_run(tmp_path)
