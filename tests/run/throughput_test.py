"""Images/s: of the last seconds of training, whatever comes between."""

import itertools
from collections.abc import Iterator

import pytest

from alexnet_jax.run import throughput as throughput_lib
from alexnet_jax.run.throughput import RECENT_SECONDS, Throughput
from tests.system.console_test import Clock

BATCH, STEP_SECONDS = 128, 0.64  # 200 images/s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput_lib, "time", clock)
    return clock


@pytest.fixture
def throughput(clock: Clock) -> Throughput:
    """After the first step."""
    throughput = Throughput()
    throughput.restart()
    clock.now += 17.0
    throughput.add(BATCH, ())
    return throughput


def train(throughput: Throughput, clock: Clock, steps: int, seconds: float = STEP_SECONDS) -> float:
    """Gives steps to the devices and waits for each; returns the images/s after the last."""
    speed = 0.0
    for _ in range(steps):
        throughput.add(BATCH, ())
        clock.now += seconds
        speed = throughput.recent()
    return speed


def test_the_seconds_of_the_compilation_are_told_and_not_counted(
    capsys: pytest.CaptureFixture[str], throughput: Throughput, clock: Clock
) -> None:
    assert capsys.readouterr().out == "compiled the training step in 17.0 s\n"
    assert throughput.recent() == 0
    assert train(throughput, clock, 1) == pytest.approx(200)


def test_the_compilation_is_announced_where_there_is_no_bar(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    throughput = Throughput()
    for batch in itertools.islice(throughput.timed(iter(range(3))), 3):
        if batch == 0:
            assert capsys.readouterr().out == "compiling the training step ...\n"
            throughput.add(BATCH, ())
            capsys.readouterr()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("steps_before", [1, 5, 100])
def test_a_pause_does_not_count(steps_before: int, throughput: Throughput, clock: Clock) -> None:
    train(throughput, clock, steps_before)
    for pause in (3600.0, 0.001):
        clock.now += pause
        throughput.restart()
        assert train(throughput, clock, 1) == pytest.approx(200)
        assert throughput.measured()["images_per_second"] == pytest.approx(200)


def test_the_speed_is_that_of_the_last_seconds(throughput: Throughput, clock: Clock) -> None:
    train(throughput, clock, 1000, seconds=0.01)
    speed = train(throughput, clock, round(1.5 * RECENT_SECONDS / STEP_SECONDS))
    assert speed == pytest.approx(200)
    assert throughput.measured()["images_per_second"] > 1000  # of all since the last pause
    assert len(throughput._done) < 30  # what is older is forgotten


def test_the_fraction_of_the_time_spent_waiting(throughput: Throughput, clock: Clock) -> None:
    def batches() -> Iterator[int]:
        while True:
            clock.now += 1.0
            yield BATCH

    throughput.restart()
    for images in itertools.islice(throughput.timed(batches()), 5):
        throughput.add(images, ())
        clock.now += 3.0
    assert throughput.measured()["input_share"] == pytest.approx(0.25)
