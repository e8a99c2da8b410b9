"""Whether a run has started to learn, told from its training losses alone."""

import math
import statistics
from collections import deque

import numpy as np

WINDOW = 100
"""Steps over which the loss is averaged, or a fifth of those allowed if that is fewer."""

STARTED, STANDARD_ERRORS = 0.99, 4
"""A run has started once its mean loss is below this fraction of chance, and by so many standard errors."""


class StartWatch:
    """Watches training losses until they show that images have told something about labels.

    Predictions that have nothing to do with the image cost at least the entropy of the labels: ln(classes) if all are
    equally frequent. So a mean loss that is below it by more than chance explains is learning, however slow; 0.99
    asks little more, and a run that has once started is never suspected again.

    Attributes:
      chance: the entropy of the labels, in nats.
      after: steps that a run may take to start; 0 for any number.
      started_at: the step by which it had; None so far.
      mean: of the last losses.
      first, highest: losses since the watch began.
    """

    def __init__(self, labels: np.ndarray, after: int):
        frequencies = np.bincount(labels) / len(labels)
        frequencies = frequencies[frequencies > 0]
        self.chance = float(-np.sum(frequencies * np.log(frequencies)))
        self.after = after
        self.started_at: int | None = None
        self.first, self.highest, self.mean = math.nan, -math.inf, math.nan
        self._window = min(WINDOW, max(2, after // 5)) if after else WINDOW
        self._recent: deque[float] = deque(maxlen=self._window)

    def is_stuck(self, step: int, loss: float) -> bool:
        """Takes the loss of a step; true if the run should have started by now."""
        if self.started_at is not None:
            return False
        self.first = loss if math.isnan(self.first) else self.first
        self.highest = max(self.highest, loss)
        self._recent.append(loss)
        if len(self._recent) < self._window:
            return False
        self.mean = statistics.fmean(self._recent)
        error = statistics.stdev(self._recent) / math.sqrt(self._window)
        if self.mean < min(STARTED * self.chance, self.chance - STANDARD_ERRORS * error):
            self.started_at = step
        return self.started_at is None and 0 < self.after <= step

    def text(self, step: int) -> str:
        """That the run is stuck, in words."""
        return (
            f"nothing is learned: the mean training loss is {self.mean:.4f} after {step:,} steps, "
            f"guessing has {self.chance:.4f}"
        )
