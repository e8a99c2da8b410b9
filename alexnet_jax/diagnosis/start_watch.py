"""Detects from training losses whether a run has started to learn."""

import math
import statistics
from collections import deque

import numpy as np

WINDOW = 100
"""Steps over which the loss is averaged; a fifth of the steps allowed if that is fewer."""

STARTED, STANDARD_ERRORS = 0.99, 4
"""A run has started once its mean loss is below this fraction of chance level, and this many standard errors below."""


class StartWatch:
    """Watches training losses until they are significantly below chance level.

    Predictions that do not depend on the image have a cross-entropy of at least the entropy of the classes' shares in
    the loss, which is ln(classes) if all are equal. A mean loss significantly below it shows learning, however slow. A
    run that has started is not watched any longer.

    Attributes:
      chance: chance level, that entropy in nats.
      after: steps within which a run must start; 0: no limit.
      started_at: the step at which it was found to have started; None so far.
      mean: mean of the latest losses.
      first, highest: the first and the highest loss seen.
    """

    def __init__(self, shares: np.ndarray, after: int):
        """Shares: fraction of the training loss that each class makes up, if none is predicted better, [classes]."""
        shares = shares[shares > 0]
        self.chance = float(-np.sum(shares * np.log(shares)))
        self.after = after
        self.started_at: int | None = None
        self.first, self.highest, self.mean = math.nan, -math.inf, math.nan
        self._window = min(WINDOW, max(2, after // 5)) if after else WINDOW
        self._recent: deque[float] = deque(maxlen=self._window)

    def is_stuck(self, step: int, loss: float) -> bool:
        """Adds the loss of a step; returns whether the run is stuck: not started after `after` steps."""
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

    def is_at_chance(self, loss: float) -> bool:
        """Whether a loss, the mean over many steps, is still that of predictions that do not depend on the image."""
        return loss >= STARTED * self.chance

    def text(self, step: int) -> str:
        """The error message of a run that is stuck at a step."""
        return (
            f"the run does not learn: its mean training loss is {self.mean:.4f} after {step:,} steps, "
            f"chance level is {self.chance:.4f}"
        )
