"""How runs end and go on: restarts of the learning rate, early stopping, and one process a folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax import load_run
from alexnet_jax.checkpoint import checkpoint_names
from alexnet_jax.errors import RunInUseError, UserError
from alexnet_jax.run import run_folder
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.train import train_and_evaluate

MakeConfig = Callable[..., ConfigDict]

FALLS: dict[str, Any] = {"optimizer.patience": 1, "optimizer.threshold": 0.99}
"""Each evaluation but the first lowers the learning rate, down to the minimum."""


def of_kind(workdir: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(workdir) if record["kind"] == kind]


def test_more_epochs_train_at_the_first_learning_rate_if_the_schedule_starts_anew(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexnet_jax.train.StartWatch.is_at_chance", lambda *_: False)
    first = make_config(max_steps=0, epochs=3.0, **FALLS)
    train_and_evaluate(first, tmp_path / "run", ["main.py"])
    shown = capsys.readouterr().out
    assert "main.py --config.epochs=6 '--config.optimizer.restart_epochs=(3.0,)'" in shown
    assert "at the last learning rate, 2e-05, unless restart_epochs" in " ".join(shown.split())
    shutil.copytree(tmp_path / "run", tmp_path / "refused")
    changes = {**FALLS, "optimizer.restart_epochs": (3.0,)}
    longer = make_config(max_steps=0, epochs=6.0, **changes)
    train_and_evaluate(longer, tmp_path / "run")
    assert "learning rate 2e-05 -> 0.002: the schedule starts anew, epoch 3.00" in capsys.readouterr().out
    rates = [record["learning_rate"] for record in of_kind(tmp_path / "run", "epoch")]
    assert rates == pytest.approx([0.002, 0.002, 0.0002, 0.002, 0.002, 0.0002])

    with pytest.raises(UserError, match=r"restart_epochs=\(2\.0,\).*epoch 2\.50"):
        train_and_evaluate(
            make_config(max_steps=0, epochs=6.0, **{**changes, "optimizer.restart_epochs": (2.0,)}),
            tmp_path / "refused",
        )
    with pytest.raises(UserError, match=r"restart_epochs=\(4\.0,\).*\[3\.0\]"):
        train_and_evaluate(
            make_config(max_steps=0, epochs=7.0, **{**changes, "optimizer.restart_epochs": (4.0,)}), tmp_path / "run"
        )


@pytest.mark.slow
def test_a_run_that_is_interrupted_where_its_schedule_starts_anew_leaves_the_same_bytes(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexnet_jax.train.StartWatch.is_at_chance", lambda *_: False)
    config = make_config(max_steps=0, epochs=4.0, **FALLS, **{"optimizer.restart_epochs": (2.0,)})

    def interrupt(record: dict[str, Any]) -> None:
        if record["epoch"] == 2.0:
            raise InterruptedError

    train_and_evaluate(config, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train_and_evaluate(config, tmp_path / "parts", on_epoch=interrupt)
    train_and_evaluate(config, tmp_path / "parts")
    whole, parts = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts"))
    assert whole == parts and b"starts anew" in whole


def test_early_stopping_tests_the_best_checkpoint_and_so_do_commands_on_the_run(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"early_stopping_patience": 2, "optimizer.learning_rate": 1e-6}  # the error stays as it is
    config = make_config(max_steps=0, epochs=9.0, **changes)
    result = train_and_evaluate(config, tmp_path, ["main.py"])
    epochs = of_kind(tmp_path, "epoch")
    errors = [record["validation_top1_error"] for record in epochs]
    best = epochs[int(np.argmin(errors))]["examples_seen"]
    assert len(epochs) == int(np.argmin(errors)) + 3 < 9
    assert result["checkpoint"] == best == load_run(tmp_path).examples_seen < epochs[-1]["examples_seen"]
    latest = load_run(tmp_path, "latest")
    assert latest.examples_seen == checkpoint_names(tmp_path / "checkpoints")[-1] == epochs[-1]["examples_seen"]
    shown = capsys.readouterr().out
    assert f"test error of the best checkpoint, {best}: " in shown
    assert "main.py --config.early_stopping_patience=0\n" in shown
    assert train_and_evaluate(config, tmp_path).items() >= result.items()
    assert "is finished already" in capsys.readouterr().out
    config.early_stopping_patience = 0
    config.epochs = len(errors) + 1.0
    assert "checkpoint" not in train_and_evaluate(config, tmp_path)
    assert len(of_kind(tmp_path, "epoch")) == len(epochs) + 1 and load_run(tmp_path).examples_seen > best


def test_a_folder_in_use_is_left_alone(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(max_steps=1)
    train_and_evaluate(config, tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    longer = make_config(max_steps=2)
    with run_folder.hold(tmp_path), pytest.raises(RunInUseError, match=f"{tmp_path} is in use.*--workdir"):
        train_and_evaluate(longer, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    train_and_evaluate(longer, tmp_path)


def test_two_runs_that_start_at_once_do_not_share_a_folder(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has claimed the folder while this one opened its data set."""
    monkeypatch.setattr(run_folder, "check_free", lambda _: None)
    with run_folder.hold(tmp_path), pytest.raises(RunInUseError):
        train_and_evaluate(make_config(max_steps=1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".claim"]


def test_a_folder_that_cannot_be_written_is_named_with_its_flag(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"--workdir={tmp_path}/file/run: cannot write"):
        train_and_evaluate(make_config(max_steps=1), tmp_path / "file" / "run")


def test_home_is_expanded_in_keys_and_folders(
    tmp_path: Path, prepared_dir: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(prepared_dir)
    monkeypatch.setenv("HOME", str(tmp_path))
    train_and_evaluate(make_config(max_steps=1, **{"data.prepared_dir": "~/data"}), "~/run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]
    assert load_run("~/run").path == tmp_path / "run"
