"""--help: of the program, of main.py and of every command."""

import re

import pytest

from alexnet_jax.cli import main as program
from alexnet_jax.cli import train
from alexnet_jax.config_keys import KEYS
from alexnet_jax.system import console
from tests.conftest import REPOSITORY

CONFIG = f"--config={REPOSITORY / 'configs' / 'alexnet.py'}"
OF_A_CONFIG = ("train", "sweep", "explain", "figure1", "prepare", "show_batch", "benchmark", "benchmark_input")


def help_of(capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    """What --help of a command prints."""
    with pytest.raises(SystemExit) as left:
        program.main(["alexnet", command, *words, "--help"])
    output, error = capsys.readouterr()
    assert (left.value.code, error) == (0, "")
    return output


@pytest.mark.parametrize(
    ("started_as", "shown"), [("/opt/bin/alexnet", "alexnet"), ("__main__.py", "python -m alexnet_jax")]
)
def test_the_program_lists_its_commands(
    started_as: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [started_as])
    with pytest.raises(SystemExit) as left:
        program.main([started_as, "--help"])
    output, error = capsys.readouterr()
    assert (left.value.code, error) == (0, "")
    usage, *lines = output.splitlines()
    assert usage == f"usage: {shown} COMMAND [...]"
    assert {line.split()[0] for line in lines if line.startswith("  ")} == set(program.COMMANDS)
    assert lines[-1].endswith(f": {shown} COMMAND --help")


@pytest.mark.parametrize("words", [[], ["evalute", "runs/alexnet"], ["--version"]])
def test_without_a_command_that_there_is_the_list_is_an_error(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        program.main(["alexnet", *words])
    output, error = capsys.readouterr()
    assert (left.value.code, output) == (2, "") and " COMMAND [...]\n" in error


@pytest.mark.parametrize("command", program.COMMANDS)
@pytest.mark.parametrize(
    ("started_as", "shown"), [("/opt/bin/alexnet", "alexnet"), ("__main__.py", "python -m alexnet_jax")]
)
def test_every_command_lists_its_options(
    command: str, started_as: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [started_as])
    output = help_of(capsys, command)
    assert output.startswith(f"usage: {shown} {command} ")
    assert "--help" in output and "`" not in output
    assert (f"usage: {shown} {command} --config=FILE.py:CHOICES" in output) == (command in OF_A_CONFIG)
    assert ("[--config.KEY=VALUE ...]" in output) == (command in (*OF_A_CONFIG, "ablate", "convert"))


def test_a_config_may_be_left_out_where_there_is_a_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ablate [--config=FILE.py:CHOICES] " in help_of(capsys, "ablate")


@pytest.mark.parametrize("command", ["train", "sweep", "explain"])
def test_help_beside_a_config_lists_its_keys(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console._console, "width", 300)
    lines = help_of(capsys, command, CONFIG).splitlines()
    for name, key in KEYS.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line.rstrip().endswith(key.comment), line
    defaults = {line.split()[0]: line.split()[1] for line in lines if line.split()[:1] and line.split()[0] in KEYS}
    assert (defaults["batch_size"], defaults["data.name"]) == ("64", "'digits'")


def test_main_py_names_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        train.run(["main.py"], ["-h"])
    assert left.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: python main.py --config=FILE.py:CHOICES [--workdir=FOLDER] [--config.KEY=VALUE")
    assert re.search(r"^  --workdir FOLDER", output, re.MULTILINE) and "--helpfull" in output


def test_help_beside_a_config_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        train.run(["main.py"], ["--config=none.py", "--help"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: --config=none.py: no such file; there is configs/alexnet.py\n"
