"""The lessons of docs/lessons/ run, what is stored in them is what their cells give, and their exercises have answers.

The solutions lie in tests/lesson_solutions/, a file for each lesson: by the name of an exercise's cell, the lines that
replace its `answer = None`.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from docs.lessons.exercise import check
from tests.conftest import REPOSITORY

LESSONS = {path.stem: path for path in sorted((REPOSITORY / "docs" / "lessons").glob("*.ipynb"))}
PAGE = (REPOSITORY / "docs" / "lessons.md").read_text()
OPEN = "answer = None  # replace None\n"


def cells(name: str, kind: str = "code") -> dict[str, dict[str, Any]]:
    notebook = json.loads(LESSONS[name].read_text())
    return {cell["id"]: cell for cell in notebook["cells"] if cell["cell_type"] == kind}


def solutions(name: str) -> dict[str, str]:
    return tomllib.loads((REPOSITORY / "tests" / "lesson_solutions" / f"{name}.toml").read_text())


def printed(cell: dict[str, Any]) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def shape_of(text: str) -> str:
    """The text with a # for each number, which training makes a little different on each machine."""
    return " ".join(re.sub(r"-?\d[\d.,]*(e[-+]?\d+)?", "#", text).split())


@pytest.mark.slow
@pytest.mark.parametrize("name", LESSONS)
def test_cells_run_and_print_what_is_stored(name: str, tmp_path: Path) -> None:
    answers = solutions(name)
    script, expected = "", {}
    for cell_name, cell in cells(name).items():
        source = "".join(cell["source"])
        if cell_name in answers:
            source = source.replace(OPEN, answers[cell_name].strip() + "\n")
        script += f"print('\\n# cell {cell_name}')\n{source}\n\n"
        expected[cell_name] = "Right." if cell_name in answers else shape_of(printed(cell))
    virtual_devices = ("XLA_FLAGS", "NPROC")
    environment = {key: value for key, value in os.environ.items() if key not in virtual_devices}
    finished = subprocess.run(
        [sys.executable, "-"],
        input=script,
        cwd=LESSONS[name].parent,
        env={**environment, "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr
    outputs = re.findall(r"^# cell (\S+)\n(.*?)(?=^# cell |\Z)", finished.stdout, re.DOTALL | re.MULTILINE)
    assert {cell_name: shape_of(text) for cell_name, text in outputs} == expected
    assert not list(tmp_path.iterdir())  # what the lesson wrote was cleared away


@pytest.mark.parametrize("name", LESSONS)
def test_stored_outputs_are_clean(name: str) -> None:
    assert LESSONS[name].stat().st_size < 2**20
    for number, (cell_name, cell) in enumerate(cells(name).items(), start=1):
        assert cell["execution_count"] == number, f"{cell_name} was not run in order"
        assert cell["metadata"] == {}
        outputs = cell["outputs"]
        assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}, cell_name
        assert not any(output.get("name") == "stderr" for output in outputs), cell_name
        pictures = [output["data"]["image/png"] for output in outputs if "data" in output]
        assert len(pictures) == "".join(cell["source"]).count("plt.show()"), cell_name
        assert all(picture.startswith("iVBORw0KGgo") for picture in pictures)  # base64 of PNG's first bytes
        assert not re.search(r"(?<![\w.])(/\w+){2}|[A-Z]:\\|\x1b", printed(cell)), f"{cell_name}: a path or colours"


@pytest.mark.parametrize("name", LESSONS)
def test_cells_are_plain_python_and_short(name: str) -> None:
    for cell_name, cell in cells(name).items():
        assert len(cell["source"]) <= 20, cell_name
        assert not any(line.startswith(("%", "!", "?")) for line in cell["source"]), f"{cell_name} needs IPython"


@pytest.mark.parametrize("name", LESSONS)
def test_exercises_are_asked_open_and_solved(name: str) -> None:
    exercises = {key: cell for key, cell in cells(name).items() if key.startswith("exercise-")}
    assert list(exercises) == [f"exercise-{number}" for number in range(1, len(exercises) + 1)]
    assert 2 <= len(exercises) <= 4
    assert list(solutions(name)) == list(exercises)
    text = "".join("".join(cell["source"]) for cell in cells(name, "markdown").values())
    for number, cell in enumerate(exercises.values(), start=1):
        assert f"**Exercise {number}.**" in text
        assert cell["source"][0] == OPEN
        assert cell["source"][-1].startswith("check(answer, ")
        assert printed(cell) == "Not answered yet.\n"


def test_the_page_lists_the_lessons() -> None:
    assert re.findall(r"^\| \[.*?\]\(lessons/(.*)\.ipynb\)", PAGE, re.MULTILINE) == list(LESSONS)


def test_every_section_of_the_report_has_lessons_and_tests_that_exist() -> None:
    rows = [re.split(r" *\| *", line)[1:5] for line in PAGE.split("| report |")[1].splitlines()[2:]]
    assert {section[0] for section, *_ in rows} >= set("123456")
    taught = {
        f"{name[0]}.{number}"
        for name in LESSONS
        for cell in cells(name, "markdown").values()
        for number in re.findall(r"^## (\d)\.", "".join(cell["source"]), re.MULTILINE)
    }
    code = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("*_test.py"))
    for section, lessons, _, tests in rows:
        named = re.findall(r"\d\.\d", lessons)
        assert named and set(named) <= taught, section
        assert tests and all(f"def {name}(" in code for name in re.findall(r"`(\w+)`", tests)), section


@pytest.mark.parametrize(
    ("answer", "right", "verdict"),
    [
        (None, 1, "Not answered yet."),
        (0.25, 1 / 4, "Right."),
        (3, 3.001, "Right."),
        (jnp.ones(3), np.ones(3), "Right."),
        ([[1, 2], [3, 4]], jnp.array([[1.0, 2.0], [3.0, 4.0]]), "Right."),
        (3, 4, "Not right: it is too small."),
        (-4, 4, "Not right: it has the wrong sign."),
        (float("nan"), 4, "Not right: it is not a number."),
        ([1, 5, 9], [1, 2, 3], "Not right: 2 of 3 numbers; the one at [1] is too large."),
        ([1, 2], 3, "Not right: the answer is an array of shape (2,), and should be one number."),
        (1, [1, 2], "Not right: the answer is one number, and should be an array of shape (2,)."),
        ("sigmoid", 1, "Not right: the answer is a str, and should be one number."),
        ([[1], [2, 3]], [1, 2], "Not right: the answer is a list, and should be an array of shape (2,)."),
        (check, 1, "Not right: the answer is a function, and should be one number."),
    ],
)
def test_check(answer: object, right: object, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(answer, right)
    assert capsys.readouterr().out == verdict + "\n"
