"""The notebook of docs/ runs, and what is stored in it is what its cells give."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

TOUR = REPOSITORY / "docs" / "tour.ipynb"
NOTEBOOK = json.loads(TOUR.read_text())
CODE = {cell["id"]: cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}
PLOTS = [name for name, cell in CODE.items() if "plt.show()" in "".join(cell["source"])]


def printed(cell: dict[str, Any]) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def shape_of(text: str) -> str:
    """The text with a # for each number, which training makes a little different on each machine."""
    return " ".join(re.sub(r"-?\d[\d.,]*(e[-+]?\d+)?", "#", text).split())


@pytest.mark.slow
def test_cells_run_and_print_what_is_stored(tmp_path: Path) -> None:
    parts = [f"print('\\n# cell {name}')\n{''.join(cell['source'])}\n" for name, cell in CODE.items()]
    script = tmp_path / "tour.py"
    script.write_text("\n".join(parts))
    virtual_devices = ("XLA_FLAGS", "NPROC")
    environment = {key: value for key, value in os.environ.items() if key not in virtual_devices}
    finished = subprocess.run(
        [sys.executable, str(script)],
        cwd=TOUR.parent,
        env={**environment, "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr
    outputs = dict(re.findall(r"^# cell (\S+)\n(.*?)(?=^# cell |\Z)", finished.stdout, re.DOTALL | re.MULTILINE))
    assert {name: shape_of(text) for name, text in outputs.items()} == {
        name: shape_of(printed(cell)) for name, cell in CODE.items()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["tour.py"]  # the run was cleared away


@pytest.mark.parametrize("name", PLOTS)
def test_picture_is_stored(name: str) -> None:
    pictures = [output["data"] for output in CODE[name]["outputs"] if output["output_type"] == "display_data"]
    assert len(pictures) == 1
    assert pictures[0]["image/png"].startswith("iVBORw0KGgo")  # base64 of PNG's first bytes


def test_stored_outputs_are_clean() -> None:
    assert TOUR.stat().st_size < 2**20
    assert PLOTS
    for number, (name, cell) in enumerate(CODE.items(), start=1):
        assert cell["execution_count"] == number, f"{name} was not run in order"
        assert cell["metadata"] == {}
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data"), name
            assert output.get("name") != "stderr", name
        assert not re.search(r"(?<![\w.])(/\w+){2}|[A-Z]:\\|\x1b", printed(cell)), f"{name} shows a path or colours"


def test_cells_are_plain_python_and_short() -> None:
    for name, cell in CODE.items():
        assert len(cell["source"]) <= 20, name
        assert not any(line.startswith(("%", "!", "?")) for line in cell["source"]), f"{name} needs IPython"
