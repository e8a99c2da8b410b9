"""The training loop from outside: files, refused folders and configs, divergence."""

import contextlib
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.checkpoint import Checkpoints, checkpoint_names, restore
from alexnet_jax.cli import evaluate
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.data.storage import InMemoryRecords
from alexnet_jax.errors import TrainingDivergedError, UserError
from alexnet_jax.experiment import open_dataset
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.train import Run, train_and_evaluate
from tests.conftest import REPOSITORY, full_disk
from tests.helpers.pictures import make_folder, noise, save

MakeConfig = Callable[..., ConfigDict]


def test_a_run_leaves_its_record_and_is_evaluated_from_its_folder(
    tmp_path: Path, make_config: MakeConfig, prepared_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(max_steps=0, epochs=3.0)
    result = train_and_evaluate(config, tmp_path, command=["main.py", "--config=c.py"])
    shown = capsys.readouterr().out
    for part in ("fc5", "MACs an image", "epoch  3.00", "test error: top-1", "python main.py --config=c.py"):
        assert part in shown

    metrics = read_metrics(tmp_path)
    kinds = [record["kind"] for record in metrics]
    assert kinds.count("epoch") == 3 and kinds.count("step") == 6 and kinds[-1] == "test"
    assert metrics[-1]["top1_error"] == result["top1_error"]
    assert json.loads((tmp_path / "config.json").read_text())["model"]["preset"] == "lenet"
    assert json.loads((tmp_path / "versions.json").read_text())["command"] == ["main.py", "--config=c.py"]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert not any("second" in key for record in metrics for key in record)

    words = [str(tmp_path), f"--prepared-dir={prepared_dir}"]
    evaluate.main(words)
    wrong = round(result["top1_error"] * result["count"])
    assert f"({wrong} of {result['count']} wrong; 95 % interval" in capsys.readouterr().out
    evaluate.main([*words, "--split=validation", "--checkpoint=best"])
    best = min(record["validation_top1_error"] for record in metrics if record["kind"] == "epoch")
    assert re.search(rf"top-1 error +{best:.2%}", capsys.readouterr().out)
    evaluate.main([*words, "--split=train", "--views=10"])
    shown = capsys.readouterr().out
    assert "train: 32 images" in shown and "10 views" in shown


def test_learning_happens_and_more_epochs_continue(tmp_path: Path, make_config: MakeConfig) -> None:
    changes = {"data.synthetic_examples": 200, "optimizer.schedule": "constant"}
    config = make_config("synthetic,lenet", batch_size=16, epochs=2.0, **changes)
    first = train_and_evaluate(config, tmp_path)
    config.epochs = 5.0
    second = train_and_evaluate(config, tmp_path)
    epochs = [record["epoch"] for record in read_metrics(tmp_path) if record["kind"] == "epoch"]
    assert [round(epoch) for epoch in epochs] == [1, 2, 3, 4, 5]
    assert second["loss"] < first["loss"] < math.log(10)


@pytest.mark.slow
def test_compiled_programs_are_kept_and_a_damaged_one_does_no_harm(prepared_dir: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    cache = tmp_path / "compiled"

    def run(workdir: str) -> set[Path]:
        command = [sys.executable, "main.py", "--config=configs/alexnet.py:synthetic,lenet,smoke"]
        command += [f"--config.compilation_cache_dir={cache}", f"--config.data.prepared_dir={prepared_dir}"]
        command += [f"--workdir={tmp_path / workdir}"]
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
        return {path for path in cache.glob("*/*") if path.name.endswith("-cache")}

    first = run("first")
    assert len(first) >= 3  # initialisation, training step, evaluation step
    for path in first:
        path.write_bytes(path.read_bytes()[:100])
    assert run("second") >= first  # more, if a program took longer to compile than before
    records = [(tmp_path / workdir / "metrics.jsonl").read_bytes() for workdir in ("first", "second")]
    assert records[0] == records[1]


@pytest.mark.slow
def test_a_run_continues_on_other_devices(tmp_path: Path, make_config: MakeConfig) -> None:
    def steps(workdir: Path, *runs: tuple[int, int, int]) -> list[float]:
        for devices, towers, max_steps in runs:
            changes = {"parallel.num_devices": devices, "parallel.towers": towers}
            mode = {"parallel.mode": "mesh" if towers > 1 else "pmap"}
            train_and_evaluate(make_config(max_steps=max_steps, **changes, **mode), workdir)
        return [record["loss"] for record in read_metrics(workdir) if record["kind"] == "step"]

    moved = steps(tmp_path / "moved", (1, 1, 2), (2, 1, 4), (2, 2, 6), (1, 1, 8))
    np.testing.assert_allclose(moved, steps(tmp_path / "stayed", (1, 1, 8)), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 1}, "config.seed: 0 -> 1"),
        ({"model.activation": "tanh"}, "config.model.activation: None -> 'tanh'"),
        ({"data.mirror": False}, "config.data.mirror: True -> False"),
        ({"optimizer.ema_decay": 0.9}, "config.optimizer.ema_decay: 0.0 -> 0.9"),
    ],
)
def test_a_changed_config_is_refused_and_loses_nothing(
    changes: dict[str, Any], key: str, tmp_path: Path, make_config: MakeConfig
) -> None:
    train_and_evaluate(make_config(max_steps=1), tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=key):
        train_and_evaluate(make_config(max_steps=1, **changes), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_run_is_not_continued_with_other_images(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "photos", {"train/cat": 30, "train/dog": 30})
    changes = {"data.dir": str(folder), "data.prepared_dir": str(tmp_path / "prepared")}
    config = make_config("folder,lenet", batch_size=4, max_steps=1, **changes)
    words = [
        str(tmp_path / "run"),
        "--split=validation",
        f"--data-dir={folder}",
        f"--prepared-dir={tmp_path / 'prepared'}",
    ]
    train_and_evaluate(config, tmp_path / "run")
    evaluate.main(words)
    assert "have changed" not in capsys.readouterr().out
    save(folder / "train/cat/new.png", noise(99_999))
    with pytest.raises(UserError, match="images of folder"):
        train_and_evaluate(config, tmp_path / "run")
    evaluate.main(words)
    assert "the images of folder or their splits are not those of the run" in capsys.readouterr().out


def test_where_the_images_lie_changes_nothing(tmp_path: Path, make_config: MakeConfig) -> None:
    for cache in ("disk", "host", "device"):
        train_and_evaluate(make_config(max_steps=4, **{"data.cache": cache}), tmp_path / cache)
    disk, host, device = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("disk", "host", "device"))
    assert disk == host == device


def test_a_damaged_checkpoint_costs_no_more_than_the_steps_after_the_one_before(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(max_steps=4, **{"checkpoint.every_steps": 1})
    expected = train_and_evaluate(config, tmp_path)
    names = checkpoint_names(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / str(names[-1]) / "_CHECKPOINT_METADATA").unlink()
    assert train_and_evaluate(config, tmp_path) == expected
    assert f"checkpoints/{names[-1]} is damaged" in capsys.readouterr().out.replace("\n", "")
    assert checkpoint_names(tmp_path / "checkpoints")[-1] == names[-1]


@pytest.fixture
def disk_full_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions at which saves fail; tests add to them."""
    positions: list[int] = []
    original = Checkpoints._write

    def write(checkpoints: Checkpoints, examples_seen: int, *rest: Any) -> None:
        with full_disk() if examples_seen in positions else contextlib.nullcontext():
            original(checkpoints, examples_seen, *rest)

    monkeypatch.setattr(Checkpoints, "_write", write)
    return positions


@pytest.mark.slow
def test_a_full_disk_stops_the_run_which_then_continues(
    tmp_path: Path, make_config: MakeConfig, disk_full_at: list[int]
) -> None:
    config = make_config(max_steps=6)
    expected = train_and_evaluate(config, tmp_path / "expected")
    disk_full_at.append(64)
    with pytest.raises(UserError, match=r"checkpoints/64 .*checkpoints/32"):
        train_and_evaluate(config, tmp_path / "run")
    disk_full_at.clear()
    assert train_and_evaluate(config, tmp_path / "run") == expected
    records = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("expected", "run")]
    assert records[0] == records[1]


def test_a_full_disk_can_be_survived_but_not_at_the_end(
    tmp_path: Path,
    make_config: MakeConfig,
    prepared_dir: str,
    disk_full_at: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config(max_steps=4, **{"checkpoint.on_failure": "continue"})
    disk_full_at.append(32)
    train_and_evaluate(config, tmp_path)
    assert "checkpoints/32 failed" in capsys.readouterr().out.replace("\n", "")
    assert checkpoint_names(tmp_path / "checkpoints") == [64]
    evaluate.main([str(tmp_path), "--checkpoint=best", f"--prepared-dir={prepared_dir}"])
    config.max_steps = 6
    disk_full_at.append(96)
    with pytest.raises(UserError, match=r"checkpoints/96 .*checkpoints/64"):
        train_and_evaluate(config, tmp_path)


def test_how_long_saves_took_is_recorded(tmp_path: Path, make_config: MakeConfig) -> None:
    train_and_evaluate(make_config(max_steps=4), tmp_path)
    assert (tmp_path / "timing.jsonl").read_text().count('"save_seconds"') == 2


def test_a_run_that_diverges_names_step_rate_and_last_good_checkpoint(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(max_steps=9, **{"optimizer.learning_rate": 1e6})
    with pytest.raises(TrainingDivergedError, match=r"step \d .*1e\+06"):
        train_and_evaluate(config, tmp_path)


def test_divergence_after_a_checkpoint_names_it(tmp_path: Path, make_config: MakeConfig) -> None:
    # Step 3 is the first with too high a learning rate: from epoch 1, which ends in step 2, it is 10^9 times as high.
    changes = {
        "checkpoint.every_steps": 1,
        "optimizer.learning_rate_multipliers": (("*/kernel", 1.0, 1e9),),
        "log_every_steps": 1,
    }
    with pytest.raises(TrainingDivergedError, match=r"checkpoints/\d+"):
        train_and_evaluate(make_config(max_steps=9, **changes), tmp_path)
    names = checkpoint_names(tmp_path / "checkpoints")
    params = restore(tmp_path / "checkpoints", names[-1]).tree["params"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_few_classes_have_no_top5_error(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = InMemoryRecords(np.zeros((5, 72, 72, 3), np.uint8), np.zeros(5, np.int32))
    splits = dict.fromkeys(("train", "validation", "test"), images)
    dataset = Dataset(splits, ("only",), Statistics.unknown(72), "content", tmp_path)
    monkeypatch.setattr("alexnet_jax.experiment.open_dataset", lambda *_: dataset)
    result = train_and_evaluate(make_config(max_steps=1), tmp_path)
    assert (result["top1_error"], result["top5_error"]) == (0, None)
    assert "top-5 error is left out" in capsys.readouterr().out


def test_the_command_line(tmp_path: Path, prepared_dir: str) -> None:
    command = [sys.executable, "main.py", "--config=configs/alexnet.py:synthetic,lenet,smoke", f"--workdir={tmp_path}"]
    completed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert "test error: top-1" in completed.stdout
    assert not completed.stderr
    command = [sys.executable, "-m", "alexnet_jax", "evaluate", str(tmp_path)]
    assert "top-1 error" in subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True).stdout


def test_memory_exhausted_on_the_way_is_one_line(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nat a place")

    monkeypatch.setattr("alexnet_jax.train.Run._read_metrics", fail)
    with pytest.raises(UserError, match=r"allocating 9 bytes.*config\.batch_size"):
        train_and_evaluate(make_config(max_steps=2), tmp_path)


def test_a_folder_that_vanishes_during_the_run_ends_it_with_an_error(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test, workdir = Run._test, tmp_path / "run"

    def vanish(run: Run) -> dict[str, Any]:
        run.checkpoints.wait()
        workdir.rename(tmp_path / "elsewhere")
        return test(run)

    monkeypatch.setattr(Run, "_test", vanish)
    with pytest.raises(UserError, match=r"metrics\.jsonl was removed"):
        train_and_evaluate(make_config(max_steps=1), workdir)
    assert "is finished" not in capsys.readouterr().out and not workdir.exists()


def test_a_resumed_run_keeps_the_statistics_that_it_began_with(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train_and_evaluate(make_config(max_steps=2), tmp_path / "whole")
    train_and_evaluate(make_config(max_steps=1), tmp_path / "parts")
    assert "differ" not in capsys.readouterr().out
    dataset = open_dataset(make_config().data)
    mean = tuple(value + 40.0 for value in dataset.statistics.mean)
    edited = dataclasses.replace(dataset, statistics=dataclasses.replace(dataset.statistics, mean=mean))
    assert train_and_evaluate(make_config(max_steps=2), tmp_path / "parts", data=edited) == expected
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "mean of" in shown and "differ from those of the run" in shown
    (mean_before, mean_after) = (
        restore(tmp_path / name / "checkpoints", 2 * 16).tree["preprocessing"]["mean"] for name in ("whole", "parts")
    )
    np.testing.assert_array_equal(mean_before, mean_after)
