"""The paper's stochastic gradient descent, and what decides its learning rates.

The rule of paper section 5 and of the 2012 source (CHM src/weights.cu, `Weights::update`):

    v <- 0.9 v - 0.0005 rate w - rate gradient
    w <- w + v

The learning rate sits inside the velocity, so after a division the old velocity is still that of the old rate.
`optax.sgd` keeps the rate outside and differs from the first step after a division on.
"""

import fnmatch
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from alexnet_jax.errors import UserError, check_choice

Params = Any
"""A tree of arrays: {layer: {"kernel", "bias", ...}}."""

Scalar = float | Float[Array, ""]

SCHEDULES = ("plateau", "constant", "step", "dexp", "cosine", "linear")
SMOOTH_SCHEDULES = ("cosine", "linear")
"""Those that change the rate at every step; the others divide it now and then."""


BATCH_SCALINGS: dict[str, Callable[[float], float]] = {"none": lambda _: 1.0, "linear": float, "sqrt": math.sqrt}
"""What the rate is multiplied by for a batch so many times as large. Krizhevsky 2014 derives sqrt and uses linear."""


def scale_learning_rate(config: ConfigDict, batch_size: int) -> ConfigDict:
    """`config.optimizer` with the rate for a batch other than `base_batch_size`, by the rule `batch_scaling`."""
    scaled = config.copy_and_resolve_references()
    scaled.learning_rate *= BATCH_SCALINGS[config.batch_scaling](batch_size / config.base_batch_size)
    return scaled


def describe_learning_rate(config: ConfigDict, batch_size: int) -> str:
    """The first rate, and how the size of the batch made it."""
    rate, rule = scale_learning_rate(config, batch_size).learning_rate, config.batch_scaling
    if rule == "none":
        return f"{rate:g}, whatever the batch"
    return f"{rate:g} = {config.learning_rate:g} for batches of {config.base_batch_size}, scaled by the {rule} rule"


def make_optimizer(
    config: ConfigDict, params: Params, momentum: Scalar | None = None, weight_decay: Scalar | None = None
) -> optax.GradientTransformationExtraArgs:
    """The paper's rule; `update` takes `learning_rates=`, a tree like `params` with one scalar an array.

    Kernels decay by `config.weight_decay` and other parameters by nothing unless `config.decay_biases` (CHM
    src/layer.cu:565: biases have no decay); `config.weight_decay_overrides` names exceptions as (pattern, decay).
    `momentum` and `weight_decay` stand in for those of the config. The state's trace is the paper's velocity v; with
    `config.ema_decay` it holds an average of the parameters too, see `averaged_params`.
    """
    momentum = config.momentum if momentum is None else momentum
    weight_decay = config.weight_decay if weight_decay is None else weight_decay
    decays = _map_names(lambda name: weight_decay if _is_kernel(name) or config.decay_biases else 0.0, params)
    for pattern, decay in config.weight_decay_overrides:
        decays = _override("weight_decay_overrides", pattern, decays, decay)
    rule = (_add_decayed_weights(decays), _scale_by_learning_rates(), optax.trace(decay=momentum), _hold_frozen())
    return optax.chain(*rule, *([_average_params(config.ema_decay)] if config.ema_decay else []))


def _add_decayed_weights(decays: Params) -> optax.GradientTransformation:
    """Adds to each array's update its weights times its own decay."""

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        return jax.tree.map(lambda u, w, decay: u + decay * w, updates, params, decays), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _scale_by_learning_rates() -> optax.GradientTransformationExtraArgs:
    """Multiplies each array's update by minus its own learning rate."""

    def update(updates: Params, state: Any, params: Params = None, *, learning_rates: Params) -> tuple[Params, Any]:
        return jax.tree.map(lambda u, rate: -rate * u, updates, learning_rates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _hold_frozen() -> optax.GradientTransformationExtraArgs:
    """A rate of 0 freezes an array at once: the source then skips the update (CHM src/weights.cu)."""

    def update(updates: Params, state: Any, params: Params = None, *, learning_rates: Params) -> tuple[Params, Any]:
        return jax.tree.map(lambda u, rate: jnp.where(rate == 0, 0.0, u), updates, learning_rates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


class AverageState(NamedTuple):
    """The exponential moving average of the parameters after each step, and the number of steps in it."""

    average: Params
    averaged_steps: Any


def _average_params(decay: float) -> optax.GradientTransformation:
    """Keeps average <- d average + (1 - d) params, d = min(decay, (1 + t) / (10 + t)) after t steps.

    So the first parameters are soon forgotten, as in TensorFlow's ExponentialMovingAverage with `num_updates`. It
    stands last in a chain, since it takes the updates for those that the parameters get.
    """

    def init(params: Params) -> AverageState:
        return AverageState(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

    def update(updates: Params, state: AverageState, params: Params = None) -> tuple[Params, AverageState]:
        steps = state.averaged_steps
        kept = jnp.minimum(decay, (1 + steps) / (10 + steps))
        after = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, state.average, after)
        return updates, AverageState(average, steps + 1)

    return optax.GradientTransformation(init, update)


def averaged_params(opt_state: optax.OptState, params: Params) -> Params:
    """The parameters to test with: the average in the optimizer's state, or, where there is none, `params`."""
    return optax.tree.get(opt_state, "average", default=params)


def saved_state(opt_state: optax.OptState) -> dict[str, Any]:
    """The arrays that stand for the optimizer's whole state in a checkpoint; `restored_state` puts them back."""
    names = {"velocity": "trace"} | {name: name for name in AverageState._fields}
    found = {saved: optax.tree.get(opt_state, name) for saved, name in names.items()}
    return {saved: arrays for saved, arrays in found.items() if arrays is not None}


def restored_state(opt_state: optax.OptState, tree: dict[str, Any]) -> optax.OptState:
    """A fresh state with the arrays of a checkpoint of the same config."""
    average = {name: tree[name] for name in AverageState._fields if name in tree}
    return optax.tree.set(opt_state, trace=tree["velocity"], **average)


def make_schedule(config: ConfigDict, epochs: float) -> Callable[[float, float], float]:
    """Returns (epoch, plateau scale) -> the learning rate of kernels.

      plateau: rate * plateau scale; see `Plateau`.
      constant: rate.
      step: rate * factor^k after the k-th of `step_epochs`.
      dexp: rate / dexp_target^(k / (dexp_steps - 1)) in the k-th of `dexp_steps` equal parts of the run, k from 0
        (cuda-convnet's dexp, CHM src/lr.cu; run 170 has target 250 and 4 steps).
      cosine: rate * (1 + cos(pi p)) / 2, p from 0 after `warmup_epochs` to 1 at the end (Loshchilov and Hutter 2017).
      linear: rate * (1 - p).

    In the first `warmup_epochs` any of them is multiplied by a share that grows from 0 to 1 (Goyal et al. 2017).

    Raises UserError for an unknown schedule.
    """
    schedule, rate, factor, step_epochs = config.schedule, config.learning_rate, config.factor, config.step_epochs
    dexp_target, dexp_steps, warmup = config.dexp_target, config.dexp_steps, config.warmup_epochs
    check_choice("config.optimizer.schedule", schedule, SCHEDULES)

    def scheduled_rate(epoch: float, plateau_scale: float) -> float:
        return warmed_up(epoch, warmup) * after_warmup(epoch, plateau_scale)

    def after_warmup(epoch: float, plateau_scale: float) -> float:
        done = min(max((epoch - warmup) / (epochs - warmup), 0.0), 1.0)
        match schedule:
            case "plateau":
                return rate * plateau_scale
            case "step":
                return rate * factor ** sum(epoch >= boundary for boundary in step_epochs)
            case "dexp":
                part = min(int(dexp_steps * epoch / epochs), dexp_steps - 1)
                return rate * dexp_target ** (-part / (dexp_steps - 1))
            case "cosine":
                return rate * (1 + math.cos(math.pi * done)) / 2
            case "linear":
                return rate * (1 - done)
            case _:
                return rate

    return scheduled_rate


def warmed_up(epoch: float, warmup_epochs: float) -> float:
    """The share of its rate that everything learns with at an epoch."""
    return min(epoch / warmup_epochs, 1.0) if warmup_epochs else 1.0


def make_learning_rates(config: ConfigDict, params: Params, epochs: float) -> Callable[[float, float], Params]:
    """Returns (epoch, rate of kernels) -> the rate of each array, as Python floats.

    Biases and other small parameters learn `bias_rate_multiplier` times as fast as `bias_schedule` says:

      same: as kernels.
      constant: as kernels at first (the source's notes only ever divide epsW; CHM layers/layer-params-145.cfg ends at
        epsB=0.02).
      halfway: so until half of the run's `epochs`, then a tenth of it (schedB=dexp[10,2], CHM layer-params-170.cfg).

    The warm-up is of the latter two as well.
    `rate_multipliers` lists (pattern, from epoch, factor); the last that applies wins, and 0 freezes.

    Raises UserError for a pattern that matches nothing.
    """
    first_rate, rules, warmup = config.learning_rate, config.rate_multipliers, config.warmup_epochs
    bias_multiplier, bias_schedule = config.bias_rate_multiplier, config.bias_schedule
    for pattern, _, _ in rules:
        _override("rate_multipliers", pattern, params, None)

    def learning_rates(epoch: float, rate: float) -> Params:
        bias_base = {
            "same": rate,
            "constant": warmed_up(epoch, warmup) * first_rate,
            "halfway": warmed_up(epoch, warmup) * first_rate * (0.1 if epoch >= epochs / 2 else 1.0),
        }[bias_schedule]

        def of(name: str) -> float:
            factors = [factor for pattern, start, factor in rules if epoch >= start and fnmatch.fnmatch(name, pattern)]
            base = rate if _is_kernel(name) else bias_multiplier * bias_base
            return base * factors[-1] if factors else base

        return _map_names(of, params)

    return learning_rates


def _is_kernel(name: str) -> bool:
    return name.endswith("/kernel")


def _map_names(function: Callable[[str], Any], tree: Params) -> Params:
    """The tree with each leaf replaced by function("layer/parameter")."""
    return jax.tree_util.tree_map_with_path(lambda path, _: function(_name(path)), tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _override(key: str, pattern: str, tree: Params, value: Any) -> Params:
    """The tree with a value for the leaves whose name matches; a pattern without a match is an error."""
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    if not fnmatch.filter(names, pattern):
        raise UserError(f"config.optimizer.{key}: {pattern!r} matches no parameter; there are: {', '.join(names)}")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: value if fnmatch.fnmatch(_name(path), pattern) else leaf, tree
    )


PlateauState = dict[str, Any]
"""The fields of `optax.contrib.ReduceLROnPlateauState`, and the number of divisions so far."""


class Plateau:
    """The paper's rule: divide the rate by 10 when the validation error stops improving. Called once an evaluation.

    An error counts as an improvement if it is below the best by more than the relative threshold. When `patience`
    evaluations in a row are none, the rate is multiplied by `factor`, at the least to `minimum_rate`; for `cooldown`
    evaluations after that nothing is counted. `min_divisions` m makes sure of m divisions in a run of `epochs`: the
    k-th comes at the latest after k / (m + 1) of it (the paper's run had 3, after 25, 51 and 79 of 90 epochs).
    """

    def __init__(self, config: ConfigDict, epochs: float):
        self.factor, self.patience, self.epochs = config.factor, config.patience, epochs
        self.min_divisions = config.min_divisions
        self.min_scale = min(config.minimum_rate / config.learning_rate, 1.0)
        # Optax counts; the scale is ours, in double precision. It refuses a threshold of 0 without an absolute one.
        counter = optax.contrib.reduce_on_plateau(
            factor=self.factor, patience=self.patience, rtol=config.threshold, atol=1e-12, cooldown=config.cooldown
        )
        self._begin, self._count = counter.init, jax.jit(counter.update)
        self._cooldown = config.cooldown

    def init(self) -> PlateauState:
        """The state before the first evaluation."""
        return {**self._begin(jnp.zeros(()))._asdict(), "divisions": jnp.zeros((), jnp.int32)}

    def scale(self, state: PlateauState) -> float:
        """What the divisions so far multiply the first rate by."""
        return max(self.factor ** int(state["divisions"]), self.min_scale)

    def update(self, state: PlateauState, error: float, epoch: float) -> tuple[PlateauState, str | None]:
        """The state after an evaluation that found `error`, and the reason if the rate was divided."""
        fields = {name: value for name, value in state.items() if name != "divisions"}
        before = optax.contrib.ReduceLROnPlateauState(**{**fields, "scale": jnp.ones(())})
        _, after = self._count(jnp.zeros(()), before, value=jnp.asarray(error, jnp.float32))
        divisions = done = int(state["divisions"])
        due = min(int(epoch / self.epochs * (self.min_divisions + 1) + 1e-9), self.min_divisions)
        reason = None
        if self.scale(state) > self.min_scale * (1 + 1e-9):  # 0.1^3 is a little more than 0.001
            if after.scale < 1:
                divisions = done + 1
                reason = f"no validation error below {float(before.best_value):.2%} in {self.patience} evaluations"
            if divisions < due:
                divisions = due
                reason = f"division {due} of at least {self.min_divisions} in {self.epochs:g} epochs is due"
                after = after._replace(
                    plateau_count=jnp.zeros_like(after.plateau_count),
                    cooldown_count=jnp.full_like(after.cooldown_count, self._cooldown),
                )
        new = {**after._asdict(), "divisions": jnp.asarray(divisions, jnp.int32)}
        return new, reason
