"""Configs by name: those that ship are found from any folder, unless there is such a file in it."""

from pathlib import Path

import pytest

from alexnet_jax.cli.flags import config_from_flags, find_config, find_configs, find_file
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("alexnet.py", f"{CONFIGS}/alexnet.py"),
        ("alexnet.py:digits,smoke", f"{CONFIGS}/alexnet.py:digits,smoke"),
        ("configs/alexnet.py:tfds:mnist", f"{CONFIGS}/alexnet.py:tfds:mnist"),
        ("cifar10_figure1.py", f"{CONFIGS}/cifar10_figure1.py"),
        ("sweeps/rates.py", f"{CONFIGS}/sweeps/rates.py"),
        ("none.py:digits", "none.py:digits"),
        ("alexnet", "alexnet"),
        ("rates.py", "rates.py"),
        ("../alexnet_jax/train.py", "../alexnet_jax/train.py"),
        ("/alexnet.py", "/alexnet.py"),
        (":digits", ":digits"),
        ("", ""),
    ],
)
def test_a_config_that_ships_is_found_by_its_name(text: str, found: str) -> None:
    assert find_config(text) == found


@pytest.mark.parametrize("name", ["alexnet.py", "configs/alexnet.py"])
def test_a_file_that_is_there_goes_first(name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
    assert find_file(Path(name)) == Path(name)


def test_the_value_of_config_alone_is_replaced() -> None:
    others = ["--workdir=alexnet.py", "--config.data.dir=alexnet.py", "alexnet.py", "--configs=alexnet.py"]
    alone = ["--config=alexnet.py:digits", "-config=alexnet.py", "--config", "alexnet.py:digits", "--config"]
    assert find_configs([*others, *alone]) == [
        *others,
        f"--config={CONFIGS}/alexnet.py:digits",
        f"-config={CONFIGS}/alexnet.py",
        "--config",
        f"{CONFIGS}/alexnet.py:digits",
        "--config",
    ]


@pytest.mark.parametrize("words", [["--config=alexnet.py:digits,lenet"], ["--config", "alexnet.py:digits,lenet"]])
def test_programs_read_the_config_that_ships(words: list[str]) -> None:
    config = config_from_flags("test", [*words, "--config.epochs=3"])
    assert (config.data.name, config.model.preset, config.epochs) == ("digits", "lenet", 3)


def test_a_config_made_of_another_is_read_in_any_folder() -> None:
    assert config_from_flags("test", ["--config=cifar10_figure1.py"]).stop_at_train_error == 0.25
