"""How fast a run trains, and which fraction of the time it waits for images."""

import collections
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax

from alexnet_jax.system import console

RECENT_SECONDS = 10.0
"""The time over which `Throughput.recent` averages."""


class Throughput:
    """Counts images and seconds of training; evaluations, saves and the compilation are left out."""

    def __init__(self) -> None:
        self._has_compiled = False
        self._total, self._done = 0, collections.deque([(0.0, 0)])
        self.restart()

    def restart(self) -> None:
        """Counts from zero and starts the clock: after a pause."""
        self._began, self._images, self._waited = time.monotonic(), 0, 0.0
        self._trained_before = self._done[-1][0]

    def timed(self, batches: Iterator[Any]) -> Generator[Any]:
        """The same batches; the time that each takes to arrive is counted as waiting."""
        while True:
            asked = time.monotonic()
            batch = next(batches)
            self._waited += time.monotonic() - asked
            if not self._has_compiled and not console.draws_bars():
                console.show("compiling the training step ...")
            yield batch

    def add(self, images: int, results: Any) -> None:
        """Counts a step that was given to the devices. The first, which compiles, is waited for and not counted."""
        if self._has_compiled:
            self._images, self._total = self._images + images, self._total + images
        else:
            jax.block_until_ready(results)
            self._has_compiled = True
            seconds = time.monotonic() - self._began - self._waited
            console.show(f"compiled the training step in {console.duration(seconds)}")
            self.restart()

    def measured(self) -> dict[str, float]:
        """Since the last pause: seconds, images/s, and the fraction of the time spent waiting for images."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        return {"seconds": seconds, "images_per_second": self._images / seconds, "input_share": self._waited / seconds}

    def recent(self) -> float:
        """Images/s of the last seconds of training, 0.0 in the beginning; called when the counted steps are done."""
        now = self._trained_before + time.monotonic() - self._began
        self._done.append((now, self._total))
        while len(self._done) > 2 and self._done[1][0] < now - RECENT_SECONDS:
            self._done.popleft()
        began, before = self._done[0]
        return (self._total - before) / max(now - began, 1e-9)
