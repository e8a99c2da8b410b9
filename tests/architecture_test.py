"""Who may import whom, read from the syntax tree."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

CORE = ["distortions", "resizing", "augment", "metrics", "optimizer", "schedules", "run_plan", "train_state", "steps"]
CORE += ["checkpoint", "experiment"]
TOOLS = ["run", "diagnosis", "fidelity", "inference", "train", "experiments", "cli", "__main__"]
ORDER = ["errors", "config_keys", "config", "system", "parallel", "ops", "models", "data", *CORE, *TOOLS]
"""What each package, or module at the top, may import: itself and those before it."""

DEVICE_NAMES = {"pmap", "Mesh", "NamedSharding", "shard_map"}
HEAVY = {"tensorflow", "torch", "optuna", "matplotlib", "sklearn", "onnx", "onnxruntime"}
PACKAGE = REPOSITORY / "alexnet_jax"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for imported in imports(path):
        parts = imported.split(".")
        assert parts[0] not in {"configs", "main", "tests"}
        if parts[0] == "alexnet_jax" and parts[1] != "load_run":
            assert ORDER.index(parts[1]) <= ORDER.index(own), f"{path} imports {imported}"


def test_only_devices_knows_pmap_and_meshes() -> None:
    """By whichever form of import: `jax.pmap`, or `from jax import pmap`."""
    for path in MODULES:
        attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        found = (attributes | {imported.rsplit(".", 1)[-1] for imported in imports(path)}) & DEVICE_NAMES
        assert not found or path.relative_to(PACKAGE).as_posix() == "parallel/devices.py", (path, found)


def test_the_top_of_the_package_is_the_core() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 18


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    assert not {imported.split(".")[0] for imported in imports(path, top_level_only=True)} & HEAVY


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").rglob("*.py")), ids=lambda path: path.name)
def test_configs_import_the_defaults_and_ml_collections_alone(path: Path) -> None:
    others = {imported for imported in imports(path) if imported != "alexnet_jax.config.default_config"}
    assert {imported.split(".")[0] for imported in others} <= {"ml_collections", "pathlib", "runpy", "typing"}


def test_a_config_is_read_without_jax() -> None:
    code = "import sys, configs.alexnet; sys.exit(bool({'jax', 'flax', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_no_default_hides_in_code() -> None:
    """A config is asked for its keys, never for a key or something else."""
    for path in [*MODULES, REPOSITORY / "main.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "get":
                assert not ast.unparse(node.value).endswith("config"), f"{path}:{node.lineno}"


def test_files_stay_short() -> None:
    for path in [*MODULES, REPOSITORY / "main.py"]:
        assert len(path.read_text().splitlines()) <= (60 if path.name == "main.py" else 400), path


def test_functions_fit_on_a_screen() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def test_importing_the_training_loop_loads_nothing_heavy() -> None:
    code = f"import sys, alexnet_jax.train; sys.exit(bool({HEAVY!r} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
