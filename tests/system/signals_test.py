"""Ctrl-C: a run answers at once, and a second one is not held back."""

import signal
import time

import pytest

from alexnet_jax.system.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_answered_at_once(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    shown = ""
    with StopSignals() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received == number
        assert signal.getsignal(number) == before  # the next one acts as it would without
        deadline = time.monotonic() + 5
        while "\n" not in shown and time.monotonic() < deadline:
            time.sleep(0.001)
            shown += capsys.readouterr().out
    assert shown.startswith("stopping after this step, then saving ...")
    assert signal.getsignal(number) == before
