"""What people read on a terminal."""

import pytest

from alexnet_jax.system import console


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5.21, "5.2 s"),
        (3540.0, "59 min"),
        (3599.9, "1 h"),
        (3700.0, "1 h 2 min"),
        (90_061.0, "1 d 1 h"),
        (1e8, "1,157 d 9 h"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text
