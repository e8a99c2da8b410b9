"""What the README and the pages of docs/ say can be done, and what they name is there."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.cli.flags import _check_keys, find_config
from alexnet_jax.cli.main import COMMANDS
from benchmarks import tables
from configs import alexnet
from docs import make_configuration
from tests.conftest import REPOSITORY

PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"))
}
README = PAGES["README.md"]
RESULTS = PAGES["docs/results.md"]
ALL = "\n".join(PAGES.values())
WITHOUT_CODE = {name: re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE) for name, text in PAGES.items()}


def commands(program: str) -> list[list[str]]:
    """The words after `program` in every command that the pages show, each once."""
    lines = re.findall(rf"(?<![\w./-]){re.escape(program)} ([^\n`|#]*)", ALL)
    assert lines
    return [shlex.split(line) for line in dict.fromkeys(line.split(" && ")[0].strip() for line in lines)]


@pytest.mark.parametrize("words", [*commands("python main.py"), *commands("alexnet train")], ids=" ".join)
def test_main(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    source = find_config(words[0].removeprefix("--config=")).removesuffix(":CHOICES")
    file, _, choices = source.partition(":")
    assert Path(file).exists()
    _check_keys(words, source)
    config = alexnet.get_config(choices)
    for word in words[1:]:
        key, _, value = word.removeprefix("--").partition("=")
        if key.startswith("config."):
            kind = type(dict(config_lib.flatten(config))[key.removeprefix("config.")])
            if kind is type(None):
                kind = int if value.isdigit() else str
            parsed = ast.literal_eval(value) if kind in (tuple, bool) else kind(value)
            config.update_from_flattened_dict({key.removeprefix("config."): parsed})
        else:
            assert key in ("workdir", "help")
    config_lib.check(config.to_dict())


@pytest.mark.parametrize("words", commands("python -m alexnet_jax"), ids=" ".join)
def test_programs(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command exists, and so do its flags: keys of the config, or those that its --help names."""
    monkeypatch.chdir(REPOSITORY)
    command, *rest = words
    assert command in COMMANDS or command == "COMMAND"
    flags = [word.partition("=")[0] for word in rest if word.startswith("--") and not word.startswith("--config")]
    if flags:
        with pytest.raises(SystemExit) as left:
            importlib.import_module(f"alexnet_jax.cli.{command}").main(["--help"])
        assert left.value.code == 0
        assert set(flags) <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    sources = [word.removeprefix("--config=") for word in rest if word.startswith("--config=")]
    _check_keys(rest, sources[0] if sources else "configs/alexnet.py")


def test_modules_that_are_run_exist() -> None:
    for name in re.findall(r"python -m ((?:benchmarks|docs)\.\w+)", ALL):
        assert importlib.util.find_spec(name), name


@pytest.mark.parametrize("path", sorted(tables.RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_tables_are_those_of_the_results(path: Path) -> None:
    assert "\n".join(tables.table(path)) in RESULTS


def tables_of(page: str) -> list[list[str]]:
    """The rows of each table of a page."""
    return [found.strip().splitlines() for found in re.findall(r"(?:^\|.*\|\n)+", PAGES[page], re.MULTILINE)]


def test_every_table_of_results_and_every_mean_comes_from_a_file() -> None:
    measured = {line for path in tables.RESULTS.glob("*.json") for line in tables.table(path)}
    assert all(set(rows) <= measured for rows in tables_of("docs/results.md"))
    for name, page in PAGES.items():
        if name != "CHANGELOG.md":
            means = {line for line in page.splitlines() if re.search(r"\d ?%? ± \d", line)}
            assert means <= measured, name


def test_results_tell_by_which_code_they_were_made(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    results, code = tmp_path / "small_sets.json", tmp_path / "benchmarks" / "small_sets.py"
    code.parent.mkdir()
    git("init", "-q")
    for text in ("1", "2"):
        code.write_text(text)
        git("add", ".")
        git("commit", "-qm", text)
    new, old = git("rev-parse", "HEAD"), git("rev-parse", "HEAD~1")
    for revision, said in {
        new: r"^$",
        old: rf"^1 files .* {old[:7]}: benchmarks/small_sets.py",
        f"{new}-dirty": "^made by uncommitted code",
        "0" * 40: "not in this repository",
    }.items():
        results.write_text(json.dumps({"git": revision}))
        assert re.search(said, tables.changes(results, tmp_path)), revision
    assert {tables._kind(path) for path in tables.RESULTS.glob("*.json")} <= tables.CODE.keys()


def test_the_results_in_the_readme_are_rows_of_those_tables() -> None:
    rows = re.findall(r"^\|.*\|$", README.split("\n## Results\n")[1].split("\n## ")[0], re.MULTILINE)
    measured = {line for path in tables.RESULTS.glob("*.json") for line in tables.table(path)}
    assert len(rows) > 2 and set(rows) <= measured


def test_the_two_commands_name_files_that_exist() -> None:
    for name in re.findall(r"-[rc] (\S+\.txt)", ALL):
        assert (REPOSITORY / name).exists()
    top = README.split("## Install")[0]
    assert "    python -m pip install -r requirements.txt && python main.py --config=configs/alexnet.py\n" in top
    assert "    python -m pip install -r requirements-test.txt && python -m pytest\n" in top


def links(page: str) -> Iterator[tuple[Path, str]]:
    """The file and the heading of each link to a file, as the page is read in its own folder."""
    for target in re.findall(r"\]\(([^)\s]+)\)", WITHOUT_CODE[page]):
        if not re.match(r"https?:", target):
            name, _, heading = target.partition("#")
            yield ((REPOSITORY / page).parent / name).resolve() if name else REPOSITORY / page, heading


def headings(path: Path) -> set[str]:
    """What links call the headings of a page."""
    text = WITHOUT_CODE[path.relative_to(REPOSITORY).as_posix()]
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    for path, heading in links(page):
        assert path.exists(), path
        assert not heading or heading in headings(path), (path, heading)


def test_the_files_that_are_named_exist() -> None:
    files = re.findall(r"\b(?:tests|benchmarks|alexnet_jax|configs)/[\w/]+\.(?:py|toml)\b", ALL)
    assert files and all((REPOSITORY / name).exists() for name in files)


def test_every_page_is_in_the_site_and_the_readme_and_says_what_it_is_for() -> None:
    pages = {name.removeprefix("docs/").removesuffix(".md") for name in PAGES if name.startswith("docs/")} - {"index"}
    trees = re.findall(r"```{toctree}\n([^`]*)```", PAGES["docs/index.md"])
    assert {line for line in "".join(trees).splitlines() if line and not line.startswith(":")} == pages
    pages -= {"contributing", "changes"}  # which stand for files beside the README
    linked = {path.stem for path, _ in links("README.md") if path.suffix == ".md"}
    assert pages <= linked
    for page in pages:
        assert "\n\nAfter this page you " in PAGES[f"docs/{page}.md"][:120], page


def test_the_tree_is_that_of_the_package() -> None:
    rows = re.findall(r"^ {6}(\S.*?) {2,}", PAGES["docs/architecture.md"], re.MULTILINE)
    told = {name for row in rows for name in row.split(", ")}
    package = REPOSITORY / "alexnet_jax"
    there = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert told == there


def test_the_page_of_keys_is_up_to_date() -> None:
    """If it is not, run `python -m docs.make_configuration`."""
    assert PAGES["docs/configuration.md"] == make_configuration.page()
