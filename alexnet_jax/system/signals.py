"""SIGINT (Ctrl-C) and SIGTERM: how a run or a preparation is stopped without loss of work."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from alexnet_jax.errors import Terminated
from alexnet_jax.system import console

STOPPING = "stopping after this step, then saving ... (again: at once, without saving)"


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


class StopSignals:
    """Notes SIGINT or SIGTERM while the context lasts, so that the run can save first; a second one acts at once.

    Attributes:
      received: the signal, once there was one.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
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
