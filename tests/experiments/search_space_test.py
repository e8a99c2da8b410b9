"""Search spaces of sweeps."""

import math
from pathlib import Path

import pytest

from alexnet_jax.cli.flags import config_from_flags
from alexnet_jax.errors import UserError
from alexnet_jax.experiments import search_space
from alexnet_jax.experiments.search_space import Range
from configs import alexnet
from tests.conftest import REPOSITORY

RATE = "optimizer.learning_rate"


def load(tmp_path: Path, text: str) -> search_space.Space:
    path = tmp_path / "space.py"
    path.write_text(text)
    return search_space.load_space(path, alexnet.get_config())


def load_dict(tmp_path: Path, described: str) -> search_space.Space:
    return load(tmp_path, f"def get_space():\n    return {described}\n")


def test_a_space_is_what_its_file_says(tmp_path: Path) -> None:
    space = load_dict(
        tmp_path, f"{{{RATE!r}: {{'log_uniform': (0.001, 0.1)}}, 'data.mirror': {{'values': [True, False]}}}}"
    )
    assert space == {RATE: Range("log_uniform", (0.001, 0.1)), "data.mirror": Range("values", (True, False))}


SPACES = sorted((REPOSITORY / "configs" / "sweeps").glob("[!_]*.py"))


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.name)
def test_the_spaces_at_hand_suit_the_config(path: Path) -> None:
    assert search_space.load_space(path, alexnet.get_config())


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ("{}", "not empty"),
        ("[1]", "must return a dict"),
        ("{'optimizer.lr': {'values': [1.0]}}", "unknown key optimizer.lr; did you mean optimizer.learning_rate?"),
        ("{'optimizer.min_divisions': {'values': [1]}}", "did you mean optimizer.min_drops?"),
        ("{'seed': {'values': [1, 2]}}", "--seeds"),
        (f"{{{RATE!r}: [0.1]}}", "must be a dict of one of values, uniform, log_uniform, int"),
        (f"{{{RATE!r}: {{'normal': (0, 1)}}}}", "must be a dict of one of"),
        (f"{{{RATE!r}: {{'values': []}}}}", "values takes a list"),
        (f"{{{RATE!r}: {{'values': 0.1}}}}", "values takes a list"),
        (f"{{{RATE!r}: {{'values': [0.1, 0.1]}}}}", "must differ"),
        (f"{{{RATE!r}: {{'values': [None]}}}}", "None"),
        (f"{{{RATE!r}: {{'uniform': (0.2, 0.1)}}}}", "the smaller first"),
        (f"{{{RATE!r}: {{'uniform': (0.1,)}}}}", "two numbers"),
        (f"{{{RATE!r}: {{'log_uniform': (0.0, 0.1)}}}}", "above 0"),
        (f"{{{RATE!r}: {{'values': ['fast']}}}}", "another type"),
        ("{'batch_size': {'int': (16.0, 32.0)}}", "two whole numbers"),
        ("{'batch_size': {'values': [0.5]}}", "another type"),
        ("1 / 0", "division by zero"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line_that_names_the_file(described: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_dict(tmp_path, described)
    assert f"--space={tmp_path / 'space.py'}: " in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "reason"), [("x = 1\n", "no get_space()"), ("def get_space(:\n", "syntax")])
def test_a_file_without_a_space(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        load(tmp_path, text)
    with pytest.raises(UserError, match="no such file"):
        search_space.load_space(tmp_path / "none.py", alexnet.get_config())


def test_a_grid_has_all_combinations_and_takes_no_ranges() -> None:
    space = {"a": Range("values", (1, 2)), "b": Range("values", ("x", "y", "z"))}
    combinations = search_space.grid(space)
    assert combinations[:2] == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}] and len(combinations) == 6
    with pytest.raises(UserError, match="c has a range"):
        search_space.grid({**space, "c": Range("int", (1, 9))})


def test_settings_change_a_copy_alone() -> None:
    config = alexnet.get_config()
    first, second = (search_space.apply({RATE: rate, "model.towers": 1}, config) for rate in (0.5, 0.25))
    assert first.optimizer.learning_rate == 0.5 and second.optimizer.learning_rate == 0.25
    assert config.optimizer.learning_rate == 0.01 and config.model.towers is None


def test_settings_as_flags_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        RATE: math.pi / 1e5,
        "batch_size": 7,
        "data.mirror": True,
        "model.activation": "tanh",
        "model.dropout_rate": 0.1,
        "optimizer.step_epochs": (1.5, 3.0),
        "optimizer.learning_rate_multipliers": (("conv1/*", 3.0, 0.0),),
    }
    monkeypatch.chdir(REPOSITORY)
    parsed = config_from_flags("x", ["--config=configs/alexnet.py:digits", *search_space.flags(settings)])
    assert parsed.to_dict() == search_space.apply(settings, alexnet.get_config()).to_dict()
