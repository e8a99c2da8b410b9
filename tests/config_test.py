"""Invalid values and choices: each gives an error of one line that names the key or the choice, never a traceback."""

import functools
import math
import operator
from typing import Any

import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.config_keys import KEYS, RENAMED, fixed
from alexnet_jax.errors import UserError
from configs.alexnet import get_config


def config_with(changes: dict[str, Any]) -> dict[str, Any]:
    """A plain config with changes to dotted keys, also such that ConfigDict's types would refuse."""
    config = get_config().to_dict()
    for key, value in changes.items():
        *sections, name = key.split(".")
        functools.reduce(operator.getitem, sections, config)[name] = value
    return config


# Values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("batch_size", "64"),
        ("eval_batch_size", 0),
        ("log_every_steps", 0),
        ("epochs", 0.0),
        ("epochs", math.inf),
        ("eval_every_epochs", 0.0),
        ("max_steps", -1),
        ("profile_steps", -1),
        ("seed", -1),
        ("seed", 2**31),
        ("batch_size", 1.5),
        ("batch_size", True),
        ("batch_size", None),
        ("data.mirror", "yes"),
        ("data.name", 7),
        ("data.crop", 0),
        ("data.crop", 73),  # image_size is 72
        ("data.validation_fraction", 0.0),
        ("data.validation_fraction", 1.0),
        ("data.synthetic_examples", 0),
        ("data.num_threads", -1),
        ("data.jpeg_quality", 0),
        ("data.jpeg_quality", 101),
        ("data.test_fraction", 1.0),
        ("data.max_quarantined", -0.1),
        ("data.max_megapixels", 0.0),
        ("data.mean", (1.0, 2.0)),
        ("data.mean", ("a", "b", "c")),
        ("data.mean", 127.0),
        ("data.mean", (math.nan, 0.0, 0.0)),
        ("data.std", (1.0, 0.0, 1.0)),
        ("data.std", (1.0, 1.0, math.inf)),
        ("model.dropout_rate", 1.5),
        ("model.dropout_rate", 1.0),
        ("model.dropout_rate", -0.1),
        ("model.hidden_width", 0),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", math.nan),
        ("optimizer.momentum", 1.0),
        ("optimizer.momentum", -0.9),
        ("optimizer.weight_decay", -0.0005),
        ("optimizer.weight_decay_overrides", (("fc8/kernel",),)),
        ("optimizer.weight_decay_overrides", ((0.1, "fc8/kernel"),)),
        ("optimizer.weight_decay_overrides", ("fc8/kernel", 0.1)),
        ("optimizer.weight_decay_overrides", (("fc8/kernel", -0.1),)),
        ("optimizer.bias_learning_rate_multiplier", 0.0),
        ("optimizer.learning_rate_multipliers", (("conv1/*", 0.1),)),
        ("optimizer.learning_rate_multipliers", ("conv1/*", 67.0, 0.1)),
        ("optimizer.learning_rate_multipliers", (("conv1/*", "67", 0.1),)),
        ("optimizer.learning_rate_multipliers", (("conv1/*", 67.0, math.nan),)),
        ("optimizer.learning_rate_multipliers", (("conv1/*", 67.0, -0.1),)),
        ("optimizer.factor", 0.0),
        ("optimizer.factor", 1.0),
        ("optimizer.patience", 0),
        ("optimizer.threshold", -0.001),
        ("optimizer.threshold", 1.5),
        ("optimizer.cooldown", -1),
        ("optimizer.minimum_learning_rate", -1e-5),
        ("optimizer.min_drops", -1),
        ("optimizer.step_epochs", (30.0, "60")),
        ("optimizer.step_epochs", (30.0, math.nan)),
        ("optimizer.dexp_target", 1.0),
        ("optimizer.dexp_steps", 1),
        ("optimizer.batch_scaling", "cubic"),
        ("optimizer.base_batch_size", 0),
        ("optimizer.bias_schedule", "dexp"),
        ("optimizer.warmup_epochs", -1.0),
        ("optimizer.warmup_epochs", 30.0),  # all epochs
        ("optimizer.restart_epochs", (20.0, "25")),
        ("optimizer.restart_epochs", 20.0),
        ("optimizer.restart_epochs", (0.0,)),
        ("optimizer.restart_epochs", (20.0, 10.0)),
        ("optimizer.restart_epochs", (30.0,)),  # the end
        ("early_stopping_patience", -1),
        ("optimizer.ema_decay", 1.0),
        ("optimizer.ema_decay", -0.1),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("data.mixup", -0.2),
        ("data.cutmix", -0.2),
        ("data.resized_min_area", 0.0),
        ("data.resized_max_aspect", 0.75),
        ("data.rotation", -10.0),
        ("data.brightness", -0.1),
        ("data.contrast", -0.1),
        ("data.saturation", math.inf),
        ("data.trivial_augment", "wide"),
        ("data.random_erasing", 1.5),
        ("optimizer.name", "adam"),
        ("optimizer.beta1", 1.0),
        ("optimizer.beta2", -0.1),
        ("optimizer.epsilon", 0.0),
        ("optimizer.clip_norm", -1.0),
        ("parallel.num_devices", -1),
        ("parallel.mode", "jit"),
        ("parallel.micro_batches", 0),
        ("parallel.towers", 0),
        ("parallel.towers", 2),  # without a mesh
        ("parallel.coordinator", "localhost"),
        ("parallel.num_processes", 0),
        ("parallel.process_id", -1),
        ("parallel.timeout_seconds", 0),
        ("checkpoint.keep", 0),
        ("checkpoint.every_steps", -1),
        ("checkpoint.on_failure", "retry"),
        ("data.storage", "png"),
        ("data.cache", "cloud"),
        ("data.cropping", "none"),
        ("data.color_noise_form", "none"),
        ("data.mean_form", "none"),
        ("model.activation", "rleu"),
        ("model.lrn", "yes"),
        ("model.pool_window", "3"),
        ("model.pool_kind", "min"),
        ("model.dropout_convention", "2013"),
        ("model.towers", 3),
        ("optimizer.schedule", "exponential"),
    ],
)
def test_impossible_values_are_refused_by_the_name_of_their_key(key: str, value: Any) -> None:
    with pytest.raises(UserError) as raised:
        config_lib.check(config_with({key: value}))
    assert f"config.{key}=" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 1),
        ("epochs", 0.5),
        ("seed", 2**31 - 1),
        ("data.crop", 72),
        ("data.num_threads", 0),
        ("data.test_fraction", 0.0),
        ("data.mean", (0, 0, 0)),
        ("data.mean", [1.0, 2.0, 3.0]),  # JSON has no tuples
        ("model.dropout_rate", 0.0),
        ("model.dropout_rate", None),
        ("optimizer.momentum", 0.0),
        ("optimizer.weight_decay", 0.0),
        ("optimizer.weight_decay_overrides", [["fc8/kernel", 0.0]]),
        ("optimizer.learning_rate_multipliers", (("conv1/*", 67, 0),)),
        ("optimizer.step_epochs", ()),
        ("optimizer.cooldown", 0),
        ("optimizer.minimum_learning_rate", 0.0),
        ("optimizer.min_drops", 0),
    ],
)
def test_possible_values_at_the_edge_are_not_refused(key: str, value: Any) -> None:
    config_lib.check(config_with({key: value}))


def test_fractions_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(UserError, match=r"validation_fraction and config\.data\.test_fraction"):
        config_lib.check(config_with({"data.validation_fraction": 0.5, "data.test_fraction": 0.5}))


def test_clipping_needs_whole_networks() -> None:
    changes = {"parallel.mode": "mesh", "parallel.towers": 2, "optimizer.clip_norm": 1.0}
    lars = {**changes, "optimizer.clip_norm": 0.0, "optimizer.name": "lars"}
    with pytest.raises(UserError, match=r"name=lars .*config\.parallel\.towers=1"):
        config_lib.check(config_with(lars))
    with pytest.raises(UserError, match=r"clip_norm=1\.0 .*config\.parallel\.towers=1"):
        config_lib.check(config_with(changes))
    config_lib.check(config_with({**changes, "parallel.towers": 1}))


def test_a_config_without_a_key_has_its_default() -> None:
    config = get_config().to_dict()
    del config["optimizer"]["patience"], config["checkpoint"]
    config_lib.check(config)
    assert config_lib.complete(config) == get_config().to_dict()
    assert config_lib.differences(config, get_config().to_dict()) == []
    config["optimizer"]["warmup_epochs"] = -1.0
    with pytest.raises(UserError, match=r"config\.optimizer\.warmup_epochs=-1\.0"):
        config_lib.check(config)


def test_the_defaults_fulfil_their_rules_and_have_comments_and_types() -> None:
    for name, entry in KEYS.items():
        assert entry.comment and not entry.comment.endswith("."), name
        assert (entry.default is None) == (entry.kind is not None), name
        assert entry.resume in {"fixed", "length", "free"}, name
        assert entry.default is None or all(rule.holds(entry.default) for rule in entry.rules), name
        assert all(rule.text.startswith(("must ", "is unknown; there are: ")) for rule in entry.rules), name
    assert {name for name, _ in config_lib.flatten(config_lib.default_config())} == KEYS.keys()


def test_a_key_that_the_code_no_longer_has_is_kept_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = get_config().to_dict()
    monkeypatch.setitem(KEYS, "data.sharpen", fixed(0.5, "strength of a filter that was taken out again"))
    before = get_config().to_dict()
    monkeypatch.undo()
    config_lib.check(before)
    assert config_lib.complete(before) == before
    assert config_lib.differences(before, now) == ["config.data.sharpen: 0.5 -> None"]


def test_each_key_is_decisive_of_the_length_or_free() -> None:
    plain = get_config().to_dict()
    length, free = config_lib.length(plain), config_lib.free(plain)
    names = [name for name, _ in config_lib.flatten(plain)]
    assert sorted([*config_lib.decisive(plain), *length, *free]) == sorted(names)
    assert length.keys() == {
        "batch_size",
        "epochs",
        "max_steps",
        "stop_at_train_error",
        "early_stopping_patience",
        "optimizer.restart_epochs",
    }
    assert {name for name in names if name.startswith(("parallel.", "checkpoint."))} <= free.keys()


def test_a_config_that_came_with_a_run_tells_no_place() -> None:
    """It keeps all other keys, also what they were called in earlier versions."""
    places = {key: "elsewhere" for key in KEYS if key.endswith("dir")}
    assert len(places) == 3
    stored = config_with({**places, "seed": 7, "data.num_threads": 99, "init_from": "a run"})
    expected = config_with({"seed": 7, "init_from": "a run"})
    assert config_lib.complete_here(stored) == expected
    assert config_lib.complete_here({**stored, "data.dir": "elsewhere"}) == expected


# What makes two configs different experiments


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 180.0},
        {"max_steps": 7},
        {"eval_batch_size": 1},
        {"log_every_steps": 1},
        {"profile_steps": 5},
        {"data.prepared_dir": "elsewhere", "data.num_threads": 1},
        {"parallel.num_devices": 8},
        {"checkpoint.keep": 9, "checkpoint.every_steps": 3, "checkpoint.on_failure": "continue"},
        {"data.std": [1.0, 1.0, 1.0]},
        {"data.std": (1, 1, 1)},
        {"data.cache": "device", "data.dir": "moved", "data.max_quarantined": 0.5},
        {"optimizer.step_epochs": [30.0, 60.0, 80.0], "optimizer.learning_rate_multipliers": []},
    ],
)
def test_configs_of_the_same_experiment_have_no_differences(changes: dict[str, Any]) -> None:
    assert config_lib.differences(get_config().to_dict(), config_with(changes)) == []


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"seed": 1}, ["config.seed: 0 -> 1"]),
        ({"batch_size": 32, "epochs": 1.0, "parallel.towers": 2}, []),
        (
            {"optimizer.momentum": 0.8, "data.mirror": True},
            ["config.data.mirror: False -> True", "config.optimizer.momentum: 0.9 -> 0.8"],
        ),
        ({"data.std": (1.0, 1.0, 2.0)}, ["config.data.std: [1.0, 1.0, 1.0] -> [1.0, 1.0, 2.0]"]),
        ({"model.lrn": "caffe"}, ["config.model.lrn: None -> 'caffe'"]),
        ({"data.new_key": 3}, ["config.data.new_key: None -> 3"]),
    ],
)
def test_configs_of_another_experiment_differ_in_these_keys(changes: dict[str, Any], differences: list[str]) -> None:
    assert config_lib.differences(get_config().to_dict(), config_with(changes)) == differences


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_stored_config_may_have_the_old_name_of_a_key(old: str, new: str) -> None:
    section, key = new.split(".")
    stored = config_with({old: get_config()[section][key]})
    del stored[section][key]
    assert old not in KEYS
    assert config_lib.complete(stored) == get_config().to_dict()
    assert config_lib.differences(stored, get_config().to_dict()) == []


def test_the_value_under_an_old_name_is_not_lost() -> None:
    stored = config_with({"optimizer.min_divisions": 7})
    del stored["optimizer"]["min_drops"]
    assert config_lib.differences(stored, get_config().to_dict()) == ["config.optimizer.min_drops: 7 -> 0"]
    stored["optimizer"]["min_divisions"] = -1
    with pytest.raises(UserError, match=r"config\.optimizer\.min_drops=-1"):
        config_lib.check(stored)


def test_rows_in_lists_equal_rows_in_tuples() -> None:
    as_tuples = config_with({"optimizer.learning_rate_multipliers": (("conv1/*", 72.0, 0.0),)})
    as_lists = config_with({"optimizer.learning_rate_multipliers": [["conv1/*", 72.0, 0.0]]})
    assert config_lib.differences(as_tuples, as_lists) == []


# Choices


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ("alexnet", ["'alexnet'", "digits", "tfds:NAME", "caffenet", "smoke"]),
        ("digits,Source", ["'Source'", "source"]),
        ("digits source", ["'digits source'"]),
        ("tfds:", ["'tfds:'", "tfds:NAME"]),
        ("digits,synthetic", ["one data set", "digits and synthetic"]),
        ("digits,tfds:mnist", ["one data set", "digits and tfds:mnist"]),
        ("paper,caffe", ["one preset", "paper and caffe"]),
    ],
)
def test_choices_that_do_not_exist_or_exclude_each_other_are_refused(choices: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as raised:
        get_config(choices)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("choices", "data", "preset", "max_steps"),
    [
        ("", "digits", "source", 0),
        ("caffe", "digits", "caffe", 0),
        ("imagenet2012", "imagenet2012", "source", 0),
        ("tfds:mnist,lenet", "tfds:mnist", "lenet", 0),
        ("lenet,tfds:mnist", "tfds:mnist", "lenet", 0),
        ("smoke", "digits", "source", 3),
        ("smoke,imagenet2012,owt", "synthetic", "owt", 3),
        ("folder,smoke", "folder", "source", 3),
    ],
)
def test_choices_in_any_order(choices: str, data: str, preset: str, max_steps: int) -> None:
    config = get_config(choices)
    assert (config.data.name, config.model.preset, config.max_steps) == (data, preset, max_steps)
