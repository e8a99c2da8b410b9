"""Learning rates: schedules over epochs, the paper's plateau rule, and multipliers of single parameters."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.config import check_value
from alexnet_jax.optimizer import Params, check_pattern, is_kernel, map_names

SMOOTH_SCHEDULES = ("cosine", "linear", "quadratic")
"""Schedules that change the learning rate at every step; the others lower it in a few drops."""

BATCH_SCALINGS: dict[str, Callable[[float], float]] = {"none": lambda _: 1.0, "linear": float, "sqrt": math.sqrt}
"""Factors on the learning rate by the ratio of batch sizes. Krizhevsky 2014 derives sqrt and uses linear."""


def scaled_learning_rate(config: ConfigDict, batch_size: int) -> float:
    """The learning rate of `config.optimizer`, given for `base_batch_size`, scaled to another size of batch."""
    return config.learning_rate * BATCH_SCALINGS[config.batch_scaling](batch_size / config.base_batch_size)


class Plateau(NamedTuple):
    """The state of the plateau rule after the evaluations so far. A checkpoint holds it.

    Attributes:
      best_value: the lowest validation error that counted as an improvement, in [0, 1].
      plateau_count: evaluations since then, or since the last drop.
      cooldown_count: coming evaluations that do not count, after a drop.
      divisions: learning-rate drops so far.
      restarts: how often the schedule has started anew; what is above counts from the last time.
    """

    best_value: float = math.inf
    plateau_count: int = 0
    cooldown_count: int = 0
    divisions: int = 0
    restarts: int = 0


@dataclasses.dataclass(frozen=True)
class StepLearningRates:
    """The learning rates of one step.

    Attributes:
      kernels: learning rate of kernels without a multiplier.
      by_parameter: learning rate of each array, {layer: {parameter: float}}.
      before: `kernels` of the step before.
      change: the reason if a schedule with drops has just lowered `kernels`, or the schedule has started anew; else
        None.
    """

    kernels: float
    by_parameter: Params
    before: float
    change: str | None


class LearningRates:
    """Decides the learning rate of every parameter from the epoch and the validation errors so far.

    The learning rate of kernels is r, `config.learning_rate` scaled for the batch by `config.batch_scaling`, times:

      plateau: factor^drops, at least minimum_learning_rate / r; see `observe`.
      constant: 1.
      step: factor^k after the k-th of `step_epochs`.
      dexp: 1 / dexp_target^(k / (dexp_steps - 1)) in the k-th of `dexp_steps` equal intervals of the run, k from 0
        (cuda-convnet's dexp, CHM src/lr.cu; run 170 has target 250 and 4 intervals).
      cosine: (1 + cos(pi p)) / 2, p from 0 after `warmup_epochs` to 1 at the end (Loshchilov and Hutter 2017).
      linear: 1 - p.
      quadratic: (1 - p)^2, Caffe's "poly" of power 2 (You et al. 2017).

    In the first `warmup_epochs` it is also multiplied by a factor that grows from 0 to 1 (Goyal et al. 2017).

    At each of `restart_epochs` all this starts anew, as if the run began there and ended at the next of them.

    The learning rate of biases and other small parameters is `bias_learning_rate_multiplier` times, by `bias_schedule`:

      same: the learning rate of kernels.
      constant: the first learning rate of kernels, r (the source's notes only ever divide epsW; CHM
        layers/layer-params-145.cfg ends at epsB=0.02).
      halfway: r in the first half of the run, r / 10 in the second (schedB=dexp[10,2], CHM layer-params-170.cfg).

    `learning_rate_multipliers` lists (pattern, from epoch, factor); the last that applies to a parameter multiplies its
    learning rate, and 0 freezes it.

    Attributes:
      plateau: state of the plateau rule.
    """

    def __init__(self, config: ConfigDict, batch_size: int, epochs: float, params: Params):
        """Starts before the first epoch.

        Args:
          config: `config.optimizer`.
          batch_size: images a step, over all devices.
          epochs: length of the run.
          params: the parameters or their shapes; only the names are used.

        Raises UserError for an unknown schedule or a pattern that matches no parameter.
        """
        check_value("optimizer.schedule", config.schedule)
        for pattern, _, _ in config.learning_rate_multipliers:
            check_pattern("learning_rate_multipliers", pattern, params)
        self._config, self._params = config, params
        self._first = scaled_learning_rate(config, batch_size)
        self._lowest = min(config.minimum_learning_rate / self._first, 1.0)
        self._bounds = (0.0, *config.restart_epochs, epochs)
        self.plateau = Plateau()
        self._reason: str | None = None
        self._before = self.of_kernels(0.0)

    def at(self, epoch: float) -> StepLearningRates:
        """The learning rates of the step that begins at an epoch. To be called in the order of steps."""
        change = None
        restarts = sum(restart <= epoch for restart in self._config.restart_epochs)
        if restarts > self.plateau.restarts:
            self.plateau = Plateau(restarts=restarts)
            change = f"the schedule starts anew, epoch {epoch:.2f}"
        kernels, before = self.of_kernels(epoch), self._before
        if kernels < before and change is None and self._config.schedule not in SMOOTH_SCHEDULES:
            change = self._reason or f"{self._config.schedule} schedule, epoch {epoch:.2f}"
        self._before, self._reason = kernels, None
        by_parameter = map_names(lambda name: self._of_parameter(name, epoch, kernels), self._params)
        return StepLearningRates(kernels, by_parameter, before, change)

    def of_kernels(self, epoch: float) -> float:
        """The learning rate of kernels at an epoch, which is not before the last restart."""
        c, warmup = self._config, self._config.warmup_epochs
        epoch, epochs = self._since_restart(epoch)
        done = min(max((epoch - warmup) / (epochs - warmup), 0.0), 1.0)
        match c.schedule:
            case "plateau":
                factor = self._plateau_factor()
            case "step":
                factor = c.factor ** sum(epoch >= boundary for boundary in c.step_epochs)
            case "dexp":
                interval = min(int(c.dexp_steps * epoch / epochs), c.dexp_steps - 1)
                factor = c.dexp_target ** (-interval / (c.dexp_steps - 1))
            case "cosine":
                factor = (1 + math.cos(math.pi * done)) / 2
            case "linear":
                factor = 1 - done
            case "quadratic":
                factor = (1 - done) ** 2
            case _:
                factor = 1.0
        return self._warm_up(epoch) * (self._first * factor)

    def observe(self, error: float, epoch: float, is_at_chance: bool = False, last_step: float = math.inf) -> bool:
        """Updates the plateau rule with an evaluation; with the schedule "plateau" this may lower the learning rate.

        The paper's rule: divide the learning rate by 10 when the validation error stops improving. Here an error is an
        improvement if it is below the best one by more than the relative `threshold`. After `patience` evaluations in
        a row without improvement the learning rate is multiplied by `factor`, and the next `cooldown` evaluations do
        not count. `min_drops` m enforces at least m drops in a run: the k-th comes at the latest after k / (m + 1)
        of its epochs (the paper's run had 3, after 25, 51 and 79 of 90 epochs). A network that has not started to learn
        gets no drop: it would need more steps still.

        Args:
          error: the validation error, in [0, 1].
          epoch: when it was measured.
          is_at_chance: whether the training loss is still at chance level.
          last_step: the epoch at which the last step began. Before a restart it belongs to the schedule that ended.

        Returns:
          Whether there is no drop only because the training loss is at chance level.
        """
        c, (best, stalled, cooldown, drops, restarts) = self._config, self.plateau
        if last_step < self._bounds[restarts]:
            return False
        improved = error < (1 - c.threshold) * best
        stalled = 0 if improved or cooldown else stalled + 1
        cooldown = max(cooldown - 1, 0)
        is_above_minimum = self._plateau_factor() > self._lowest * (1 + 1e-9)  # 0.1^3 is a little more than 0.001
        epoch, epochs = self._since_restart(epoch)
        due = min(int(epoch / epochs * (c.min_drops + 1) + 1e-9), c.min_drops)
        is_withheld = is_at_chance and is_above_minimum and (stalled == c.patience or drops < due)
        can_drop = is_above_minimum and not is_at_chance
        if stalled == c.patience:
            stalled, cooldown = 0, c.cooldown
            if can_drop:
                drops += 1
                self._reason = f"no validation error below {best:.2%} in {c.patience} evaluations"
        if can_drop and drops < due:
            stalled, cooldown, drops = 0, c.cooldown, due
            latest = due * epochs / (c.min_drops + 1)
            self._reason = f"drop {due} of at least {c.min_drops}, due by epoch {latest:.4g} of {epochs:g}"
        self.plateau = Plateau(error if improved else best, stalled, cooldown, drops, restarts)
        return is_withheld

    def state(self) -> dict[str, np.ndarray]:
        """The state of the plateau rule as the arrays that a checkpoint holds."""
        return {name: np.asarray(value) for name, value in self.plateau._asdict().items()}

    def restore(self, state: dict[str, Any], epoch: float) -> None:
        """Continues at an epoch from the `state` that a checkpoint holds; earlier ones have no "restarts"."""
        counts = {name: int(state[name]) for name in Plateau._fields[1:] if name in state}
        self.plateau = Plateau(float(state["best_value"]), **counts)
        self._before = self.of_kernels(epoch)

    def has_fallen_for_good(self, epoch: float) -> bool:
        """Whether drops have lowered the learning rate, and more epochs would not raise it."""
        return self._config.schedule in ("plateau", "step") and self.of_kernels(epoch) < self._first

    def _since_restart(self, epoch: float) -> tuple[float, float]:
        """The epochs since the schedule last started, and those from there to its next start or the end of the run."""
        start, end = self._bounds[self.plateau.restarts : self.plateau.restarts + 2]
        return epoch - start, end - start

    def describe(self) -> str:
        """The first learning rate in words, and how it was scaled to the batch."""
        c = self._config
        if c.batch_scaling == "none":
            return f"{self._first:g} for any batch size"
        return (
            f"{self._first:g} = {c.learning_rate:g} for batches of {c.base_batch_size}, "
            f"scaled by the {c.batch_scaling} rule"
        )

    def _plateau_factor(self) -> float:
        """The plateau rule's factor on the first learning rate."""
        return max(self._config.factor**self.plateau.divisions, self._lowest)

    def _warm_up(self, epoch: float) -> float:
        """The factor of the warm-up, from 0 to 1, so many epochs after the schedule has started."""
        return min(epoch / self._config.warmup_epochs, 1.0) if self._config.warmup_epochs else 1.0

    def _of_parameter(self, name: str, epoch: float, kernels: float) -> float:
        """The learning rate of the parameter "layer/parameter" at an epoch, where that of kernels is `kernels`."""
        c = self._config
        since, epochs = self._since_restart(epoch)
        if is_kernel(name):
            base = kernels
        elif c.bias_schedule == "same":
            base = c.bias_learning_rate_multiplier * kernels
        else:
            lowered = c.bias_schedule == "halfway" and since >= epochs / 2
            base = c.bias_learning_rate_multiplier * (self._warm_up(since) * self._first * (0.1 if lowered else 1.0))
        factors = [
            factor
            for pattern, start, factor in c.learning_rate_multipliers
            if epoch >= start and fnmatch.fnmatch(name, pattern)
        ]
        return base * factors[-1] if factors else base
