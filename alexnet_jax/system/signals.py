"""SIGINT (Ctrl-C) and SIGTERM: how a run or a preparation is stopped without loss of work."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from alexnet_jax.errors import Terminated
from alexnet_jax.system import console

STOPPING = "stopping after this step, then saving ... (again: at once, without saving)"


GRACE_SECONDS = 5.0
"""Time in which a signal inside `ends_after_signal` has to be answered."""


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM raise Terminated in the main thread while the context lasts, so that work can be kept.

    Without effect in another thread, where Python does not allow signal handlers to be set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def ends_after_signal() -> Iterator[None]:
    """Ends the process if the context lasts for GRACE_SECONDS after a SIGINT or SIGTERM that Python handles.

    Python raises KeyboardInterrupt only when C code returns, and waits for threads: a decoder can hold back both.
    Without effect outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_over = threading.Event()
    reading, writing = os.pipe()
    if hasattr(os, "set_blocking"):  # Python 3.11 on Windows neither has nor needs it
        os.set_blocking(writing, False)
    previous = signal.set_wakeup_fd(writing)  # written to at once, whatever Python is waiting for
    watch = threading.Thread(target=_end_unless, args=(is_over, reading), daemon=True)
    watch.start()
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(previous)
        os.close(writing)
        watch.join()
        os.close(reading)


def _end_unless(is_over: threading.Event, numbers: int) -> None:
    """Waits for the number of a signal in a pipe, and ends the process unless the event follows in time."""
    while number := os.read(numbers, 1):
        if number[0] in StopSignals.SIGNALS and not is_over.wait(GRACE_SECONDS):
            try:
                console.end_bar()
                name = signal.Signals(number[0]).name
                print(f"error: {name}: ended without waiting longer for work in C code", file=sys.stderr, flush=True)
                sys.stdout.flush()
            finally:
                os._exit(128 + number[0])


class StopSignals:
    """Notes SIGINT or SIGTERM while the context lasts, so that the run can save first; a second one acts at once.

    Without effect outside the main thread: there a run ends with the program.

    Attributes:
      received: the signal, once there was one.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, self._previous[self.received])
        # In a thread: the signal may have come while this one was printing, which must not begin again inside itself.
        threading.Thread(target=console.show, args=(STOPPING,)).start()
