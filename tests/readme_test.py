"""The commands of README.md are possible."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.cli.flags import _check_keys
from alexnet_jax.cli.main import COMMANDS
from benchmarks import tables
from configs import alexnet
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def commands(program: str) -> list[list[str]]:
    """The words after `program` in every command that README shows."""
    lines = re.findall(rf"{re.escape(program)}([^\n`|#]*)", README)
    assert lines
    return [shlex.split(line.split(" && ")[0].replace("$rate", "0.01")) for line in lines]


@pytest.mark.parametrize("words", commands("python main.py"), ids=" ".join)
def test_main(words: list[str]) -> None:
    file, _, choices = words[0].removeprefix("--config=").partition(":")
    assert (REPOSITORY / file).exists()
    _check_keys(words, words[0].removeprefix("--config="))
    config = alexnet.get_config("" if choices == "CHOICES" else choices)
    for word in words[1:]:
        key, _, value = word.removeprefix("--").partition("=")
        if key.startswith("config."):
            kind = type(dict(config_lib.flatten(config))[key.removeprefix("config.")])
            if kind is type(None):
                kind = int if value.isdigit() else str
            parsed = ast.literal_eval(value) if kind is tuple else kind(value)
            config.update_from_flattened_dict({key.removeprefix("config."): parsed})
        else:
            assert key == "workdir"
    config_lib.check(config.to_dict())


@pytest.mark.parametrize("words", commands("python -m alexnet_jax"), ids=" ".join)
def test_programs(words: list[str]) -> None:
    assert words[0] in COMMANDS


@pytest.mark.parametrize("path", sorted(tables.RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_tables_are_those_of_the_results(path: Path) -> None:
    assert "\n".join(tables.table(path)) in README


def test_the_two_commands_name_files_that_exist() -> None:
    for name in re.findall(r"-r (\S+\.txt)", README):
        assert (REPOSITORY / name).exists()
    assert "&& python main.py --config=configs/alexnet.py\n" in README
    assert "&& python -m pytest\n" in README


def test_the_files_it_names_exist() -> None:
    names = re.findall(r"\((alexnet_jax/\S+|configs/\S+|docs/\S+|results/\S+)\)", README)
    assert names
    assert all((REPOSITORY / name).exists() for name in names)
    pages = README + "".join(path.read_text() for path in (REPOSITORY / "docs").glob("*.md"))
    files = re.findall(r"\b(?:tests|benchmarks|alexnet_jax|configs)/[\w/]+\.py\b", pages)
    assert files and all((REPOSITORY / name).exists() for name in files)
    tree = README.split("## The code")[1]
    told = set(re.findall(r"(\w+\.py|\w+/)(?=[,\s])", tree.split("alexnet_jax/\n")[1]))
    package = REPOSITORY / "alexnet_jax"
    there = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert told == there
