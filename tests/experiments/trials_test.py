"""Runs of several configs, compared with the same runs done separately."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from alexnet_jax import experiment
from alexnet_jax.errors import Terminated, UserError
from alexnet_jax.experiments import trials as trials_lib
from alexnet_jax.experiments.trials import Trial, TrialStoppedError, is_finished, run_trials
from alexnet_jax.run import run_folder
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.train import train_and_evaluate
from tests.conftest import full_disk

MakeConfig = Callable[..., ConfigDict]

SETTINGS: list[dict[str, Any]] = [
    {"seed": 0, "optimizer.learning_rate": 0.002},
    {"seed": 1, "optimizer.learning_rate": 0.002, "optimizer.momentum": 0.5},
    {"seed": 1, "optimizer.learning_rate": 0.001, "optimizer.weight_decay": 0.01},
]


def make_trial(make_config: MakeConfig, workdir: Path, **changes: object) -> Trial:
    config = make_config("digits,lenet,smoke", **{"max_steps": 0, "epochs": 0.2, "eval_every_epochs": 0.1, **changes})
    return Trial(config, workdir, ["main.py"])


@pytest.mark.slow
def test_each_equals_its_run_by_itself(tmp_path: Path, make_config: MakeConfig) -> None:
    trials = [make_trial(make_config, tmp_path / str(number), **settings) for number, settings in enumerate(SETTINGS)]
    outcomes = {outcome.trial.workdir: outcome for outcome in run_trials(trials)}
    for trial in trials:
        alone = tmp_path / "alone" / trial.workdir.name
        test = train_and_evaluate(trial.config, alone)
        outcome = outcomes[trial.workdir]
        assert outcome.failure is None and outcome.test is not None
        assert outcome.test.items() >= test.items() and len(outcome.epochs) == 2
        assert (trial.workdir / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_trials_in_a_row_open_their_data_set_once(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_and_count(data: Any) -> Any:
        opened.append(data.crop)
        return experiment.open_dataset(data)

    monkeypatch.setattr(trials_lib, "open_dataset", open_and_count)
    trials = [make_trial(make_config, tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    trials.append(make_trial(make_config, tmp_path / "other", **{"data.crop": 24}))
    trials_lib._opened.cache_clear()
    assert all(outcome.test is not None for outcome in run_trials(trials))
    assert opened == [trials[0].config.data.crop, 24]


def test_a_finished_trial_is_not_repeated_and_a_changed_one_fails_alone(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    first = make_trial(make_config, tmp_path / "run")
    list(run_trials([first]))
    before = (tmp_path / "run" / "timing.jsonl").read_bytes()
    changed = make_trial(make_config, tmp_path / "run", **{"optimizer.momentum": 0.1})
    other = make_trial(make_config, tmp_path / "other")
    again, refused, done = run_trials([first, changed, other])
    assert again.test is not None and done.test is not None and again.test["loss"] == done.test["loss"]
    assert refused.test is None and "config.optimizer.momentum: 0.9 -> 0.1" in str(refused.failure)
    assert not refused.cannot_train
    assert (tmp_path / "run" / "timing.jsonl").read_bytes() == before


def test_a_trial_that_diverges_is_to_blame_and_the_others_go_on(tmp_path: Path, make_config: MakeConfig) -> None:
    trials = [
        make_trial(make_config, tmp_path / "good"),
        make_trial(make_config, tmp_path / "bad", **{"optimizer.learning_rate": 1e20}),
    ]
    outcomes = {outcome.trial.workdir.name: outcome for outcome in run_trials(trials)}
    assert outcomes["good"].test is not None
    assert outcomes["bad"].cannot_train and "training loss is" in str(outcomes["bad"].failure)


def test_a_trial_can_be_stopped_and_goes_on_later(tmp_path: Path, make_config: MakeConfig) -> None:
    trial = make_trial(make_config, tmp_path / "run")
    heard: list[float] = []

    def stop(of: Trial, record: dict[str, Any]) -> None:
        assert of is trial
        heard.append(record["epoch"])
        raise TrialStoppedError("enough")

    (stopped,) = run_trials([trial], on_epoch=stop)
    assert stopped.failure == "enough" and len(stopped.epochs) == 1 and not stopped.cannot_train
    (done,) = run_trials([trial], on_epoch=lambda _, record: heard.append(record["epoch"]))
    assert done.test is not None and len(done.epochs) == 2
    assert heard == [record["epoch"] for record in done.epochs]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 0.2


def test_a_disk_that_is_full_is_no_result_of_a_trial(tmp_path: Path, make_config: MakeConfig) -> None:
    trial = make_trial(make_config, tmp_path / "run")
    with full_disk(room=100), pytest.raises(UserError, match=r"run.*is the disk full\?"):
        list(run_trials([trial]))
    (done,) = run_trials([trial])
    assert done.test is not None


@pytest.mark.slow
def test_a_trial_of_another_process_is_waited_for(tmp_path: Path, make_config: MakeConfig) -> None:
    elsewhere, here = (make_trial(make_config, tmp_path / name) for name in ("elsewhere", "here"))
    claim = run_folder.claim(elsewhere.workdir)
    assert claim is not None and run_folder.claim(elsewhere.workdir) is None
    outcomes = run_trials([elsewhere, here])
    assert next(outcomes).trial is here
    claim.close()  # it died
    last = next(outcomes)
    assert last.trial is elsewhere and last.test is not None
    again = run_folder.claim(elsewhere.workdir)
    assert again is not None
    again.close()


def test_after_a_signal_the_run_is_saved_and_goes_on_later(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [make_trial(make_config, tmp_path / str(seed), seed=seed) for seed in (0, 1)]

    def interrupt(trial: Trial, record: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        for outcome in run_trials(trials, on_epoch=interrupt):
            pytest.fail(str(outcome.failure))  # it was not saved
    assert caught.value.code == 143 and "the same command continues" in capsys.readouterr().out
    assert not (tmp_path / "1").exists()
    before = len(read_metrics(trials[0].workdir))
    outcomes = list(run_trials(trials))
    assert all(outcome.test is not None and len(outcome.epochs) == 2 for outcome in outcomes) and len(outcomes) == 2
    assert len(read_metrics(trials[0].workdir)) > before


def test_a_signal_while_another_process_is_waited_for_ends_the_wait(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(make_config, tmp_path / "elsewhere")
    claim = run_folder.claim(trial.workdir)
    assert claim is not None
    monkeypatch.setattr(time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with claim, pytest.raises(Terminated):
        list(run_trials([trial]))
    assert "the same command continues" in capsys.readouterr().out


def test_a_trial_finished_before_a_key_was_added_is_not_repeated(tmp_path: Path, make_config: MakeConfig) -> None:
    trial = make_trial(make_config, tmp_path / "run")
    list(run_trials([trial]))
    path = trial.workdir / "config.json"
    stored = json.loads(path.read_text())
    del stored["optimizer"]["ema_decay"], stored["stop_at_train_error"]
    path.write_text(json.dumps(stored))
    assert is_finished(trial)
    path.write_text(json.dumps({**stored, "stop_at_train_error": 0.5}))
    assert not is_finished(trial)
