"""The table of decisions: every config key affects its rows, and each reference agrees with its own preset."""

import re
from typing import Any

import pytest
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.cli import explain as program
from alexnet_jax.errors import UserError
from alexnet_jax.fidelity.decisions import (
    DECISIONS,
    REFERENCES,
    Comparison,
    bookkeeping,
    explain,
    read_decisions,
)
from alexnet_jax.fidelity.descriptions import Choice
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.system import console
from configs import alexnet
from tests.conftest import REPOSITORY

FREE = set(config_lib.free(alexnet.get_config().to_dict()))
KEYS = [key for key, _ in config_lib.flatten(alexnet.get_config())]
OTHER: dict[str, Any] = {
    "data.name": "mnist",
    "data.storage": "raw",
    "data.cache": "host",
    "data.cropping": "resized",
    "data.color_noise_form": "paper",
    "data.pca_std": (1.0, 2.0, 3.0),
    "data.pca_vectors": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "data.mean_form": "channel",
    "data.mean": (1.0, 2.0, 3.0),
    "data.std": (2.0, 2.0, 2.0),
    "data.validation_fraction": 0.2,
    "data.test_fraction": 0.3,
    "data.sampling": "balanced",
    "data.class_weights": "balanced",
    "model.preset": "owt",
    "model.activation": "tanh",
    "model.lrn": "none",
    "model.pool_window": "plain",
    "model.pool_kind": "avg",
    "model.dropout_rate": 0.25,
    "model.dropout_convention": "inverted",
    "model.towers": 1,
    "model.hidden_width": 7,
    "model.hidden_widths": (7, 7),
    "model.num_classes": 1003,
    "model.without_layers": ("conv4",),
    "model.compute_dtype": "bfloat16",
    "model.matmul_precision": "highest",
    "optimizer.name": "adamw",
    "optimizer.batch_scaling": "linear",
    "optimizer.weight_decay_overrides": (("conv*/kernel", 0.5),),
    "optimizer.learning_rate_multipliers": (("fc8/*", 3.0, 0.0),),
    "optimizer.bias_schedule": "halfway",
    "optimizer.schedule": "linear",
    "optimizer.step_epochs": (3.0,),
    "optimizer.restart_epochs": (3.0,),
    "parallel.mode": "mesh",
    "parallel.coordinator": "auto",
    "parallel.num_processes": 3,
    "parallel.process_id": 2,
    "checkpoint.on_failure": "continue",
    "test_views": 2,
    "init_from": "runs/other",
    "compilation_cache_dir": "elsewhere",
    "data.dir": "elsewhere",
    "data.prepared_dir": "elsewhere",
}
"""Another value for each key that is neither a number nor a boolean."""

NEEDS: dict[str, dict[str, Any]] = {
    "data.resized_min_area": {"data.cropping": "resized"},
    "data.resized_max_aspect": {"data.cropping": "resized"},
    "data.synthetic_examples": {"data.name": "synthetic"},
    "optimizer.beta1": {"optimizer.name": "adamw"},
    "optimizer.beta2": {"optimizer.name": "adamw"},
    "optimizer.epsilon": {"optimizer.name": "adamw"},
    "optimizer.trust_coefficient": {"optimizer.name": "lars"},
    "optimizer.base_batch_size": {"optimizer.batch_scaling": "linear"},
    "optimizer.step_epochs": {"optimizer.schedule": "step"},
    "optimizer.dexp_target": {"optimizer.schedule": "dexp"},
    "optimizer.dexp_steps": {"optimizer.schedule": "dexp"},
}
"""Other keys' values that are needed for a key to matter."""

SOURCES = (
    r"paper section \d(\.\d)?",
    r"CHM (convdata_jpeg\.py|convnet\.py|layer\.py|layer\.cu)( \w+|:\d+)?( and layer-params-145\.cfg)?",
    r"CHM (layers-145\.cfg|layer-params-145\.cfg|src)",
    r"CC2 (make-data|make-data/make-data\.py|python_util/data\.py)",
    r"Caffe (examples/imagenet/(readme\.md|create_imagenet\.sh)|models/bvlc_alexnet/readme\.md)",
    r"Caffe (train_val\.prototxt|solver\.prototxt|(data_transformer|lrn_layer|pooling_layer|dropout_layer)\.cpp)",
    r"Caffe (group|decay_mult|lr_mult): \d",
)
"""Patterns of `where`: sections of the paper, files of the three codebases, keys of Caffe's train_val.prototxt."""


def rows_of(config: ConfigDict) -> dict[str, Comparison]:
    rows = explain(config, get_model(config.model, config.model.num_classes or 1000))
    return {row.decision.name: row for row in rows}


def with_values(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    config.update_from_flattened_dict(values)
    return config


def value_of(config: ConfigDict, key: str) -> Any:
    return dict(config_lib.flatten(config))[key]


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    return value + 1 if isinstance(value, int) else value + 0.125


@pytest.mark.parametrize("key", KEYS)
def test_each_key_changes_its_rows_and_no_other(key: str) -> None:
    before, after = (with_values(alexnet.get_config("imagenet2012,source"), NEEDS.get(key, {})) for _ in range(2))
    changed_value = OTHER[key] if key in OTHER else another(value_of(before, key))
    with_values(after, {key: changed_value})
    rows_before, rows_after = rows_of(before), rows_of(after)
    changed = {name for name, row in rows_after.items() if row.this_run != rows_before[name].this_run}
    if key in FREE:
        assert not changed and bookkeeping(before) != bookkeeping(after)
        assert len(set(bookkeeping(after)) - set(bookkeeping(before))) == 1
    elif key == "model.preset":
        assert {"layers", "towers", "kernels start from", "normalisation", "edges"} <= changed
    elif key == "model.without_layers":
        assert {"layers", "windows", "kernels start from", "biases start from"} <= changed
    else:
        assert changed == {decision.name for decision in DECISIONS if key in decision.keys}
        assert changed


def test_each_key_is_somewhere() -> None:
    named = {key for decision in DECISIONS for key in decision.keys} | FREE | {"model.preset"}
    assert named == set(KEYS)


@pytest.mark.parametrize(
    ("preset", "unlike"),
    [
        ("paper", {"crops"}),  # 224 pixels would give 54 x 54 outputs here
        ("source", {"stored as", "crops shared by", "order of images", "schedule"}),
        ("caffe", {"image", "order of images", "views of a test image"}),
    ],
)
def test_each_reference_is_its_own_preset(preset: str, unlike: set[str]) -> None:
    rows = rows_of(alexnet.get_config(f"imagenet2012,{preset}"))
    assert {name for name, row in rows.items() if row.agrees(preset) is False} == unlike
    assert set(REFERENCES) == {"paper", "source", "caffe"}


@pytest.mark.parametrize(
    ("choices", "changes", "row", "text"),
    [
        ("source", {}, "towers", "2, which meet in conv3, fc6, fc7, fc8"),
        ("source", {"model.without_layers": ("conv3",)}, "towers", "2, which meet in fc5, fc6, fc7"),
        ("source", {"model.cross_tower": False}, "towers", "2, which meet in fc6, fc7, fc8"),
        ("single_tower", {}, "towers", "1"),
        ("source", {"model.towers": 1}, "normalisation", "k 2, alpha 2e-05, size 5, over all channels"),
        (
            "source",
            {"data.color_noise": 0.25},
            "colour noise",
            "N(0, 0.25) on the standard deviations, image / 1.25, until",
        ),
        (
            "caffe",
            {"batch_size": 512, "optimizer.batch_scaling": "linear"},
            "initial learning rate",
            "0.04 (linear: 0.01 for 128)",
        ),
        ("owt", {}, "dropout", "0.5 after conv5, fc6; outputs scaled in training"),
        ("owt", {}, "windows", "11 x 11 every 4, 5 x 5, 3 x 3, 3 x 3, 3 x 3 (padding 2, 2, 1, 1, 1)"),
        ("run170", {}, "schedule", "down to 1 / 250 in 4 equal steps"),
        ("run170", {}, "learning rate of biases", "2 times that of kernels, divided by 10 halfway"),
        ("owt", {}, "crops", "a random area, resized to 224 (8% to 100 % of the image, aspect ratio up to 1.333)"),
        (
            "source",
            {"data.rotation": 15.0, "data.contrast": 0.4},
            "other augmentation",
            "rotation by up to 15 degrees, c",
        ),
        ("bn", {"optimizer.name": "adamw", "optimizer.clip_norm": 1.0}, "update rule", "AdamW of betas 0.9 and 0.999,"),
        ("modern", {}, "targets", "labels smoothed by 0.1, images mixed by Beta(0.2)"),
    ],
)
def test_what_a_row_says_is_so(choices: str, changes: dict[str, Any], row: str, text: str) -> None:
    config = with_values(alexnet.get_config(f"imagenet2012,{choices}"), changes)
    assert str(rows_of(config)[row].this_run).startswith(text)


def test_the_schedule_of_the_source_by_the_epochs_of_its_notes_is_that_of_the_source() -> None:
    by_hand = {"optimizer.schedule": "step", "optimizer.step_epochs": (25.0, 51.0, 79.0)}
    row = rows_of(with_values(alexnet.get_config("imagenet2012,source"), by_hand))["schedule"]
    assert row.agrees("source") and not row.agrees("paper")


@pytest.mark.parametrize("key", ["data.color_noise_form", "data.mean_form", "data.cropping", "optimizer.schedule"])
def test_a_name_that_does_not_exist_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(UserError, match=f"config.{key}='bogus'"):
        program.main(["--config=configs/alexnet.py", f"--config.{key}=bogus"])


def test_notes_are_shown_but_do_not_count() -> None:
    decision = next(decision for decision in DECISIONS if decision.name == "length")
    assert decision.text("paper") == "90 epochs (roughly)" and decision.text("caffe") == "90 epochs (450,000 steps)"
    assert Comparison(decision, Choice("90 epochs", "evaluated each 7")).agrees("paper")
    assert not Comparison(decision, Choice("91 epochs", "roughly")).agrees("paper")


def test_every_decision_names_a_known_source() -> None:
    for decision in DECISIONS:
        assert bool(decision.where) == bool(decision.references), decision.name
        for source in filter(None, decision.where.split("; ")):
            assert any(re.fullmatch(pattern, source) for pattern in SOURCES), f"{decision.name}: {source}"
    assert len({decision.name for decision in DECISIONS}) == len(DECISIONS)


ENTRY = """[[decision]]
name = "length"
keys = ["epochs"]
describe = "length"
paper = "90 epochs"
paper_note = "roughly"
"""


def test_an_entry_is_read() -> None:
    (decision,) = read_decisions(ENTRY)
    assert decision.text("paper") == "90 epochs (roughly)" and decision.text("caffe") == "not stated"
    assert decision.cost == "not measured"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('describe = "length"', 'describe = "lenght"'),
        ('describe = "length"', 'describe = "scale_learning_rate"'),
        ('describe = "length"', ""),
        ('describe = "length"', 'describe = "length"\ntext = "90 epochs"'),
        ("keys =", "key ="),
        ("name =", "title ="),
        ("paper =", "papers ="),
        ("paper_note", "caffe_note"),
    ],
)
def test_a_typo_in_an_entry_is_found(right: str, wrong: str) -> None:
    assert ENTRY.count(right) == 1
    with pytest.raises(ValueError, match=r"decisions\.toml, "):
        read_decisions(ENTRY.replace(right, wrong))


@pytest.mark.parametrize("choices", ["imagenet2012,source", "imagenet2012,paper", "imagenet2012,caffe", "digits,lenet"])
def test_the_program_needs_no_data(
    choices: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(console._console, "_width", 200)
    program.main([f"--config=configs/alexnet.py:{choices}", "--config.data.dir=nowhere"])
    printed = capsys.readouterr().out
    assert "As paper" in printed and "data.dir='nowhere'" in printed and "#148" in printed
