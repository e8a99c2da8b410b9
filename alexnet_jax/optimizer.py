"""Stochastic gradient descent with momentum as in the paper, AdamW, and LARS and LAMB for large batches.

The paper's update, of paper section 5 and of the 2012 source (CHM src/weights.cu, `Weights::update`):

    v <- momentum v - weight_decay learning_rate w - learning_rate gradient
    w <- w + v

The learning rate is part of the velocity v, so after a learning-rate drop v still contains the old learning rate.
`optax.sgd` multiplies v by the learning rate instead, and differs from this rule from the first step after a drop.

AdamW (Loshchilov and Hutter 2019), with m and s the moving averages of the gradient and of its square, each divided by
1 - beta^t after t steps:

    w <- w - learning_rate (m / (sqrt(s) + epsilon) + weight_decay w)

LARS (You, Gitman and Ginsburg 2017, arXiv:1708.03888) is the paper's update, and LAMB (You et al. 2020) AdamW, with the
learning rate of each array multiplied by c norm(w) / norm(u), where u is gradient + weight_decay w, or AdamW's bracket,
and c the `trust_coefficient`, for LAMB 1; by 1 if either norm is 0, as that of a bias at the start. This is optax's
form; the code of LARS's authors divides by norm(gradient) + weight_decay norm(w).
"""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from alexnet_jax.errors import UserError

Params = Any
"""A tree of arrays: {layer: {"kernel", "bias", ...}}."""


def make_optimizer(config: ConfigDict, params: Params) -> optax.GradientTransformationExtraArgs:
    """The update rule; `update` takes `learning_rates=`, a tree like `params` with one scalar for each array.

    With `config.clip_norm`, gradients whose global norm is above it are first scaled down to it (Pascanu et al. 2013).
    Weight decay is `config.weight_decay` for kernels and 0 for other parameters (CHM src/layer.cu:565), unless
    `config.decay_biases`; `config.weight_decay_overrides` lists exceptions as (pattern, decay). The paper's state has
    a trace, the velocity v; with `config.ema_decay` the state also holds a moving average of the parameters and of
    `batch_stats=`, which `update` then takes; see `averaged_params`.

    Args:
      config: `config.optimizer`.
      params: the parameters or their shapes; only the names are used.

    Raises UserError for a pattern that matches no parameter.
    """
    overrides = config.weight_decay_overrides
    for pattern, _ in overrides:
        check_pattern("weight_decay_overrides", pattern, params)

    def decay_of(name: str) -> float:
        decays = [decay for pattern, decay in overrides if fnmatch.fnmatch(name, pattern)]
        default = config.weight_decay if is_kernel(name) or config.decay_biases else 0.0
        return decays[-1] if decays else default

    decay, scale = _add_decayed_weights(map_names(decay_of, params)), _scale_by_learning_rates()
    coefficient = {"lars": config.trust_coefficient, "lamb": 1.0}.get(config.name)
    trust = [optax.scale_by_trust_ratio(trust_coefficient=coefficient)] if coefficient else []
    if config.name in ("adamw", "lamb"):
        rule = [_scale_by_adam(config.beta1, config.beta2, config.epsilon), decay, *trust, scale]
    else:
        rule = [decay, *trust, scale, optax.trace(decay=config.momentum)]
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    average = [_average(config.ema_decay)] if config.ema_decay else []
    return optax.chain(*clip, *rule, _hold_frozen(), *average)


def _scale_by_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, whose power of a float and an integer needs JAX's standard promotion of types."""
    adam = optax.scale_by_adam(beta1, beta2, epsilon)

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(updates, state, params)

    return optax.GradientTransformation(adam.init, update)


def _add_decayed_weights(decays: Params) -> optax.GradientTransformation:
    """Adds decay * weights to the update of each array, each with its own decay."""

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        return jax.tree.map(lambda u, w, decay: u + decay * w, updates, params, decays), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _scale_by_learning_rates() -> optax.GradientTransformationExtraArgs:
    """Multiplies the update of each array by minus its own learning rate."""

    def update(
        updates: Params, state: Any, params: Params = None, *, learning_rates: Params, **_: Any
    ) -> tuple[Params, Any]:
        return jax.tree.map(lambda u, learning_rate: -learning_rate * u, updates, learning_rates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _hold_frozen() -> optax.GradientTransformationExtraArgs:
    """Freezes an array whose learning rate is 0, in spite of its velocity, as the source does (CHM src/weights.cu)."""

    def update(
        updates: Params, state: Any, params: Params = None, *, learning_rates: Params, **_: Any
    ) -> tuple[Params, Any]:
        return jax.tree.map(
            lambda u, learning_rate: jnp.where(learning_rate == 0, 0.0, u), updates, learning_rates
        ), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


class AverageState(NamedTuple):
    """The exponential moving averages of parameters and of batch statistics, and the number of steps they average."""

    average: Params
    average_stats: Any
    averaged_steps: Any


def _average(decay: float) -> optax.GradientTransformationExtraArgs:
    """Keeps average <- d average + (1 - d) params, d = min(decay, (1 + t) / (10 + t)) after t steps.

    So the initial parameters are soon forgotten, as in TensorFlow's ExponentialMovingAverage with `num_updates`. Batch
    statistics are averaged alike, as timm's ModelEmaV3 does, since those of the last parameters do not fit the average.
    It must be last in a chain, since it takes its input for the final update of the parameters.
    """

    def init(params: Params) -> AverageState:
        return AverageState(jax.tree.map(jnp.copy, params), {}, jnp.zeros((), jnp.int32))

    def update(
        updates: Params, state: AverageState, params: Params = None, *, batch_stats: Any = None, **_: Any
    ) -> tuple[Params, AverageState]:
        steps = state.averaged_steps
        kept = jnp.minimum(decay, (1 + steps) / (10 + steps))

        def mix(average: Any, new: Any) -> Any:
            return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, average, new)

        after = optax.apply_updates(params, updates)
        stats = state.average_stats if batch_stats is None else mix(state.average_stats, batch_stats)
        return updates, AverageState(mix(state.average, after), stats, steps + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def with_batch_stats(opt_state: optax.OptState, batch_stats: Any) -> optax.OptState:
    """A first state of the optimizer whose average of batch statistics, if it keeps one, begins with these."""
    if optax.tree.get(opt_state, "average_stats") is None:
        return opt_state
    return optax.tree.set(opt_state, average_stats=jax.tree.map(jnp.copy, batch_stats))


def averaged_params(opt_state: optax.OptState, params: Params) -> Params:
    """The parameters to evaluate with: the moving average in the optimizer's state, or `params` if there is none."""
    return optax.tree.get(opt_state, "average", default=params)


def averaged_stats(opt_state: optax.OptState, batch_stats: Any) -> Any:
    """The batch statistics to evaluate with, those of `averaged_params`; `batch_stats` if there is no average."""
    return optax.tree.get(opt_state, "average_stats", default=batch_stats)


_SAVED = {
    "velocity": "trace",
    **{"first_moment": "mu", "second_moment": "nu", "adam_steps": "count"},
    **{name: name for name in AverageState._fields},
}
"""The names of the optimizer's arrays in a checkpoint, and in the optimizer's state."""


def saved_state(opt_state: optax.OptState) -> dict[str, Any]:
    """The arrays of the optimizer's state that a checkpoint holds, by name; `restored_state` is the inverse."""
    found = {saved: optax.tree.get(opt_state, name) for saved, name in _SAVED.items()}
    return {saved: arrays for saved, arrays in found.items() if arrays is not None}


def restored_state(opt_state: optax.OptState, tree: Mapping[str, Any]) -> optax.OptState:
    """A new optimizer state with the arrays of `saved_state` from a checkpoint of the same config.

    Older checkpoints have no averaged batch statistics; their average begins with the last ones.
    """
    if "average" in tree:
        tree = {"average_stats": tree.get("batch_stats", {}), **tree}
    return optax.tree.set(opt_state, **{name: tree[saved] for saved, name in _SAVED.items() if saved in tree})


def is_kernel(name: str) -> bool:
    """Whether the name of a parameter, "layer/parameter", is that of a kernel."""
    return name.endswith("/kernel")


def map_names(function: Callable[[str], Any], tree: Params) -> Params:
    """A tree of the same structure whose leaves are function("layer/parameter")."""
    return jax.tree_util.tree_map_with_path(lambda path, _: function(_name(path)), tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_pattern(key: str, pattern: str, tree: Params) -> None:
    """Raises UserError if a pattern in `config.optimizer.KEY` matches no parameter of the tree."""
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    if not fnmatch.filter(names, pattern):
        raise UserError(f"config.optimizer.{key}: {pattern!r} matches no parameter; there are: {', '.join(names)}")
