"""The commands that a run shows: they can be given where it was started, by the program that started it."""

from pathlib import Path

import pytest

from alexnet_jax.run.run_folder import command_line, next_commands, training_program
from configs import alexnet
from tests.conftest import REPOSITORY

CONFIG = "--config=alexnet.py:digits"


@pytest.mark.parametrize(
    ("program", "shown", "evaluate"),
    [
        (["main.py"], "python main.py", "python -m alexnet_jax evaluate"),
        (["alexnet", "train"], "alexnet train", "alexnet evaluate"),
        (["-m", "alexnet_jax", "train"], "python -m alexnet_jax train", "python -m alexnet_jax evaluate"),
    ],
    ids=" ".join,
)
def test_what_can_be_done_next_is_done_by_the_same_program(program: list[str], shown: str, evaluate: str) -> None:
    commands = next_commands([*program, CONFIG, "--workdir=my run"], alexnet.get_config(), Path("my run"))
    assert commands == {
        "continue": f"{shown} {CONFIG} '--workdir=my run' --config.epochs=60",
        "evaluate": f"{evaluate} 'my run'",
        "override": f"{shown} {CONFIG} --config.optimizer.learning_rate=0.005 --workdir=runs/another",
    }


def test_the_command_that_evaluates_names_the_folder_of_prepared_images_if_it_is_not_the_default() -> None:
    config = alexnet.get_config()
    config.data.prepared_dir = "my data"
    config.max_steps = 600_000
    assert next_commands(["main.py"], config, Path("a"), "max_steps")["continue"].endswith("max_steps=1200000")
    assert next_commands(["main.py"], config, Path("a"))["evaluate"].endswith(" evaluate a '--prepared-dir=my data'")


def test_a_change_replaces_the_flag_that_was_given() -> None:
    changed = command_line(["main.py", CONFIG, "--config.epochs=3"], "--config.epochs=6")
    assert changed == f"python main.py {CONFIG} --config.epochs=6"


def test_training_is_started_by_main_py_in_a_checkout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert training_program() == ["main.py"]
    (tmp_path / "main.py").touch()  # of another project
    monkeypatch.chdir(tmp_path)
    assert training_program() == ["alexnet", "train"]
