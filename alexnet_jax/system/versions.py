"""The command, packages, platform and git revision that a run records; packages that are needed at times."""

import importlib.util
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from alexnet_jax.errors import UserError
from alexnet_jax.system.machine import compute_threads

PROJECT = Path(__file__).resolve().parents[2]
"""The folder with main.py in a checkout; the folder of installed packages if this is one of them."""

LISTED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy", "pillow", "simplejpeg")
"""The packages whose versions may change results."""


def describe_environment(command: list[str]) -> dict[str, Any]:
    """The command, versions of Python and of the packages in LISTED, platform, CPU threads and git revision."""
    return {
        "command": command,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu_threads": compute_threads(),
        "packages": {name: metadata.version(name) for name in LISTED},
        "git": _git_revision(PROJECT) if (PROJECT / "main.py").exists() else None,
    }


def shell_command(command: Sequence[str]) -> str:
    """The recorded words of a command as one line for a shell: `alexnet ...`, or `python ...`."""
    return shlex.join(command if list(command[:1]) == ["alexnet"] else ["python", *command])


def require(extra: str, *modules: str) -> None:
    """Raises UserError for a missing module; it names the command that installs the packages of the extra."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{module} is missing: python -m pip install -r requirements-{extra}.txt")


def _git_revision(folder: Path) -> str | None:
    """The commit of a checkout, with "-dirty" if it has changes; None outside a checkout or without git."""
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
