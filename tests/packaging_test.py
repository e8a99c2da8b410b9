"""The package can be installed: what its wheel holds, what it says it needs, and that it works far from a checkout."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture_test import MODULES, imports
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = ("database", "export", "tfds", "test")
REQUIREMENTS = {
    "requirements.txt": PROJECT["dependencies"],
    **{f"requirements-{extra}.txt": PROJECT["optional-dependencies"][extra] for extra in EXTRAS},
}
"""Files of pins -> the bounds in pyproject.toml that they are for."""


def run(*command: str | Path, cwd: Path) -> str:
    """What a program prints that sees nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the project, because building leaves files behind, by the setuptools that is installed."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("alexnet_jax", "configs", "tests", "benchmarks"):
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "main.py"):
        shutil.copy(REPOSITORY / name, source)
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    run(sys.executable, "-m", "pip", "wheel", *offline, f"--wheel-dir={output}", source, cwd=source)
    (built,) = output.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_with_its_tables_and_configs_and_nothing_else(wheel: Path) -> None:
    code = [
        path for suffix in ("py", "toml", "html", "txt") for path in (REPOSITORY / "alexnet_jax").rglob(f"*.{suffix}")
    ]
    configs = (REPOSITORY / "configs").rglob("*.py")
    expected = {str(path.relative_to(REPOSITORY)) for path in code}
    expected |= {f"alexnet_jax/{path.relative_to(REPOSITORY)}" for path in configs}
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == expected


def pins(name: str) -> Iterator[Requirement]:
    """The requirements of a file, and of those that it includes, for this version of Python."""
    for line in (REPOSITORY / name).read_text().splitlines():
        words = line.partition("#")[0].strip()
        if words.startswith("-r "):
            yield from pins(words.removeprefix("-r "))
        elif words and ((pin := Requirement(words)).marker is None or pin.marker.evaluate()):
            yield pin


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_what_is_pinned_satisfies_the_bounds_of_the_package(name: str) -> None:
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins(name)}
    for bound in map(Requirement, REQUIREMENTS[name]):
        if bound.name != PROJECT["name"]:
            assert pinned[canonicalize_name(bound.name)] in bound.specifier, bound


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("uv"), reason="uv is not installed")
def test_the_pins_and_what_an_accelerator_needs_can_be_installed_together() -> None:
    """By uv, which resolves for other versions of Python, too, and downloads no wheels; pip takes gigabytes of them."""
    needed = {"gpu": "jax-cuda13-plugin", "tpu": "libtpu"}
    command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "-c", "requirements.txt"]
    command += ["--python-platform", "x86_64-manylinux_2_31", "pyproject.toml"]
    started = {
        (version, extra): subprocess.Popen(
            [
                *command,
                "--python-version",
                version,
                "--extra",
                extra,
                *["benchmarks/requirements.txt"][: extra == "gpu"],
            ],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for version in ("3.11", "3.12")
        for extra in needed
    }
    printed_by = {key: (process.communicate()[0], process.returncode) for key, process in started.items()}
    for (version, extra), (printed, status) in printed_by.items():
        assert status == 0, (version, extra)
        versions = dict(line.split("==") for line in printed.split())
        assert needed[extra] in versions and versions.get("jax-cuda13-plugin", versions["jax"]) == versions["jax"]
        assert not [name for name in versions if "cu12" in name or "cuda12" in name], "two versions of CUDA"


def test_every_import_is_of_a_declared_dependency() -> None:
    declared = {canonicalize_name(Requirement(text).name) for bounds in REQUIREMENTS.values() for text in bounds}
    by_name = packages_distributions()
    imported = {name.split(".")[0] for path in MODULES for name in imports(path)}
    for name in imported - sys.stdlib_module_names - {"alexnet_jax", "tensorflow"}:  # which is not in every test
        assert declared & {canonicalize_name(distribution) for distribution in by_name[name]}, name


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment with the wheel, which sees the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    return folder / "bin"


@pytest.mark.slow
def test_the_installed_program_trains_the_digits_in_any_folder(installed: Path, tmp_path: Path) -> None:
    config = "--config=alexnet.py:digits,smoke"
    printed = run(installed / "alexnet", "train", config, "--workdir=my run", cwd=tmp_path)
    assert "test error: top-1" in printed
    assert f"continue  alexnet train {config} '--workdir=my run' --config.max_steps=" in printed
    assert "evaluate  alexnet evaluate 'my run'" in printed
    versions = json.loads((tmp_path / "my run" / "versions.json").read_text())
    assert versions["command"] == ["alexnet", "train", config, "--workdir=my run"]
    assert versions["git"] is None
    again = run(installed / "python", "-m", "alexnet_jax", "train", config, "--workdir=my run", cwd=tmp_path)
    assert "is finished already" in again and f"python -m alexnet_jax train {config}" in again
    code = "import alexnet_jax; print(alexnet_jax.__file__, alexnet_jax.load_run('my run').outputs)"
    origin, outputs = run(installed / "python", "-c", code, cwd=tmp_path).split(maxsplit=1)
    assert Path(origin).is_relative_to(installed.parent)
    assert outputs.startswith("('0', '1', '2'")


def test_the_installed_program_lists_its_commands_and_the_flags_of_training(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run([installed / "alexnet", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: alexnet COMMAND")
    assert {"train", "evaluate", "predict"} <= {line.split()[0] for line in done.stdout.splitlines() if line}
    usage = run(installed / "alexnet", "train", "--help", cwd=tmp_path)
    assert usage.startswith("usage: alexnet train ") and "--workdir" in usage and "--config.KEY" in usage


@pytest.mark.slow
def test_the_configs_can_be_imported_and_read_in_any_folder(installed: Path, tmp_path: Path) -> None:
    code = "from alexnet_jax.configs import alexnet; print(alexnet.get_config('digits,lenet').model.preset)"
    assert run(installed / "python", "-c", code, cwd=tmp_path) == "lenet\n"
    table = run(installed / "alexnet", "explain", "--config=cifar10_figure1.py:digits,lenet", cwd=tmp_path)
    assert "decisions" in table
