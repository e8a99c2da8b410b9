"""Ctrl-C: a run answers at once, a second one is not held back, and nothing that hangs outlives it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from alexnet_jax.system import signals
from alexnet_jax.system.signals import StopSignals, ends_after_signal, raise_on_sigterm
from tests.conftest import REPOSITORY


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_a_signal_that_is_not_answered_in_time_ends_the_process(
    number: signal.Signals, seconds: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("whoever started the tests ignores this signal, which processes inherit")
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.02 if seconds else 5.0)
    with pytest.raises(KeyboardInterrupt), raise_on_sigterm(), ends_after_signal():
        try:
            signal.raise_signal(number)
        finally:
            time.sleep(seconds)  # as a thread that is waited for
    assert ended == ([128 + number] if seconds else [])
    assert capsys.readouterr().err.startswith(f"error: {number.name}" if seconds else "")
    assert signal.set_wakeup_fd(-1) == -1


HANGS = """
import hashlib, threading
from alexnet_jax.system import signals
signals.GRACE_SECONDS = 0.1
with signals.raise_on_sigterm(), signals.ends_after_signal():
    threading.Timer(0.2, print, ["ready"], {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C code
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_c_code_does_not_outlive_a_signal(number: signal.Signals) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"whatever started the tests ignores {number.name}, and so do the processes that they start")
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HANGS], cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number and err.startswith(f"error: {number.name}") and err.count("\n") == 1
