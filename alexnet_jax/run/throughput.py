"""How fast a run trains, and what part of the time it waits for images."""

import time
from collections.abc import Generator, Iterator
from typing import Any

import jax


class Throughput:
    """Counts the images of training steps since the last pause."""

    def __init__(self) -> None:
        self._has_compiled = False
        self.restart()

    def restart(self) -> None:
        """Counts anew: after a pause."""
        self._began, self._images, self._waited = time.monotonic(), 0, 0.0

    def timed(self, batches: Iterator[Any]) -> Generator[Any]:
        """The same batches; the time that the next one takes to come is noted."""
        while True:
            asked = time.monotonic()
            batch = next(batches)
            self._waited += time.monotonic() - asked
            yield batch

    def add(self, images: int, results: Any) -> None:
        """Counts a step. The first of the process, which compiles, is waited for and not counted."""
        if self._has_compiled:
            self._images += images
        else:
            jax.block_until_ready(results)
            self._has_compiled = True
            self.restart()

    def measured(self) -> dict[str, float]:
        """Seconds, images/s, and the fraction of the time spent waiting for images."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        return {"seconds": seconds, "images_per_second": self._images / seconds, "input_share": self._waited / seconds}
