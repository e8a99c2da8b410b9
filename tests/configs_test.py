"""Every config can be built and trained for a step, and every key is read somewhere."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.config_keys import KEYS
from alexnet_jax.data.preparation import StorageOptions
from alexnet_jax.errors import UserError
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.models.presets import PRESETS
from alexnet_jax.schedules import BATCH_SCALINGS
from alexnet_jax.train import train_and_evaluate
from configs import alexnet
from tests.helpers.models import slow_unless
from tests.helpers.narrow import NARROW

ELSEWHERE = {"parallel.towers", "parallel.num_processes", "parallel.process_id", "optimizer.cooldown"}
ELSEWHERE |= {"optimizer.beta1", "optimizer.beta2", "optimizer.epsilon", "optimizer.trust_coefficient"}
"""Keys read only in tensor parallel, multi-process or longer runs, or by other rules; mesh_, hosts_, schedules_ and
optimizer_test.py cover them."""


def recording(config: ConfigDict, read: set[str], prefix: str = "") -> ConfigDict:
    """A copy that records which keys are read as attributes."""

    class Recorder(ConfigDict):  # type: ignore[misc]
        def __getattr__(self, name: str) -> Any:
            value = super().__getattr__(name)
            if not isinstance(value, ConfigDict):
                read.add(prefix + name)
            return value

    recorder = Recorder()
    for key, value in config.items():
        recorder[key] = recording(value, read, f"{prefix}{key}.") if isinstance(value, ConfigDict) else value
    return recorder


def test_the_presets_of_the_config_are_those_of_the_models() -> None:
    assert set(alexnet.PRESETS) == set(PRESETS)


@pytest.mark.parametrize("name", ["activation", "lrn", "pool_window", "pool_kind", "dropout_convention", "towers"])
def test_the_names_in_the_table_are_those_that_the_models_know(name: str) -> None:
    (rule,) = KEYS[f"model.{name}"].rules
    config = alexnet.get_config().model
    config[name] = KEYS[f"model.{name}"].kind("9")
    with pytest.raises(UserError) as raised:
        get_model(config, num_classes=10)
    assert str(raised.value) == f"config.model.{name}={config[name]!r} {rule.text}"


def test_the_names_in_the_table_are_those_that_storage_and_schedules_know() -> None:
    (rule,) = KEYS["data.storage"].rules
    data = alexnet.get_config().data
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(StorageOptions)}
    with pytest.raises(UserError) as raised:
        StorageOptions(**{**fields, "storage": "png"})
    assert str(raised.value) == f"config.data.storage='png' {rule.text}"
    (rule,) = KEYS["optimizer.batch_scaling"].rules
    assert all(rule.holds(name) for name in BATCH_SCALINGS) and all(name in rule.text for name in BATCH_SCALINGS)


@pytest.mark.parametrize("data", [*alexnet.DATASETS, "tfds:mnist"])
@pytest.mark.parametrize("preset", alexnet.PRESETS)
def test_every_combination_has_possible_values(data: str, preset: str) -> None:
    config_lib.check(alexnet.get_config(f"{data},{preset}").to_dict())
    config_lib.check(alexnet.get_config(f"smoke,{preset},{data}").to_dict())


QUICK = {"source", "lenet"}
"""Presets that compile in seconds and together have all kinds of layers but batch normalisation."""


LIKE_OTHERS = {"logistic", "digit_cnn", "vgg11", "vgg16", "vgg_small", "googlenet", "inception_small"}
LIKE_OTHERS |= {"resnet18", "resnet50", "resnet_small", "large", "large_batch"}
"""Presets whose layers all occur in another preset, or in NARROW, whose networks compile much faster."""


@pytest.mark.parametrize("preset", slow_unless(QUICK, sorted(set(alexnet.PRESETS) - LIKE_OTHERS)))
def test_every_preset_trains_a_step(preset: str, tmp_path: Path, prepared_dir: str) -> None:
    config = alexnet.get_config(f"digits,{preset},smoke")
    config.data.prepared_dir = prepared_dir
    config.max_steps = 1
    assert train_and_evaluate(config, tmp_path / "run")["count"] == 360


@pytest.mark.slow
def test_a_network_of_blocks_trains_a_step(tmp_path: Path, prepared_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "bottlenecks", NARROW["bottlenecks"])  # type: ignore[arg-type]
    config = alexnet.get_config("digits,small_modern,smoke")
    config.data.prepared_dir, config.model.preset, config.max_steps = prepared_dir, "bottlenecks", 1
    assert train_and_evaluate(config, tmp_path / "run")["count"] == 360


def test_every_key_is_read(tmp_path: Path, prepared_dir: str) -> None:
    """Each schedule reads its own keys, so several are run."""
    read: set[str] = set()
    for schedule in ("plateau", "step", "dexp"):
        config = alexnet.get_config("digits,lenet,smoke")
        config.data.prepared_dir, config.max_steps, config.optimizer.schedule = prepared_dir, 1, schedule
        train_and_evaluate(recording(config, read), tmp_path / schedule)
    assert read | ELSEWHERE == {key for key, _ in config_lib.flatten(config)}
