"""Checks the answers to the exercises of the lessons: `from exercise import check`.

It lies beside the notebooks, whose folder Jupyter puts on Python's path, and adds the project's own folder to it.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def check(answer: object, right: object, tolerance: float = 1e-3) -> None:
    """Prints whether an answer is right; it never raises.

    Args:
      answer: a number or numbers of any kind, or None if there is no answer yet.
      right: the right number or numbers.
      tolerance: by how much an answer may be off, as a fraction of the right number.
    """
    print("Not answered yet." if answer is None else _verdict(answer, np.asarray(right, float), tolerance))


def _verdict(answer: object, right: np.ndarray, tolerance: float) -> str:
    try:
        given = np.asarray(answer, float)
    except Exception:  # an answer may be anything
        return f"Not right: the answer is a {type(answer).__name__}, and should be {_kind(right)}."
    if given.shape != right.shape:
        return f"Not right: the answer is {_kind(given)}, and should be {_kind(right)}."
    wrong = ~np.isclose(given, right, rtol=tolerance, atol=1e-9)
    if not wrong.any():
        return "Right."
    place = tuple(int(index) for index in np.argwhere(wrong)[0])
    if np.isnan(given[place]):
        hint = "is not a number"
    elif given[place] * right[place] < 0:
        hint = "has the wrong sign"
    else:
        hint = "is too large" if given[place] > right[place] else "is too small"
    if right.ndim == 0:
        return f"Not right: it {hint}."
    return f"Not right: {wrong.sum()} of {wrong.size} numbers; the one at {list(place)} {hint}."


def _kind(numbers: np.ndarray) -> str:
    return "one number" if numbers.ndim == 0 else f"an array of shape {numbers.shape}"
