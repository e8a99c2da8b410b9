"""The paper's stochastic gradient descent.

The rule of paper section 5 and of the 2012 source (CHM src/weights.cu, `Weights::update`):

    v <- momentum v - weight_decay learning_rate w - learning_rate gradient
    w <- w + v

The learning rate sits inside the velocity, so after a drop the old velocity still has the old learning rate.
`optax.sgd` keeps the learning rate outside and differs from the first step after a drop on.
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
    """The paper's rule; `update` takes `learning_rates=`, a tree like `params` with one scalar an array.

    Kernels decay by `config.weight_decay` and other parameters by nothing unless `config.decay_biases` (CHM
    src/layer.cu:565: biases have no decay); `config.weight_decay_overrides` names exceptions as (pattern, decay).
    The state's trace is the paper's velocity v; with `config.ema_decay` the state holds an average of the parameters
    too, see `averaged_params`.

    Args:
      config: `config.optimizer`.
      params: the parameters or their shapes: only the names are used.
    """
    overrides = config.weight_decay_overrides
    for pattern, _ in overrides:
        check_pattern("weight_decay_overrides", pattern, params)

    def decay_of(name: str) -> float:
        decays = [decay for pattern, decay in overrides if fnmatch.fnmatch(name, pattern)]
        default = config.weight_decay if is_kernel(name) or config.decay_biases else 0.0
        return decays[-1] if decays else default

    decays = map_names(decay_of, params)
    rule = (
        _add_decayed_weights(decays),
        _scale_by_learning_rates(),
        optax.trace(decay=config.momentum),
        _hold_frozen(),
    )
    return optax.chain(*rule, *([_average_params(config.ema_decay)] if config.ema_decay else []))


def _add_decayed_weights(decays: Params) -> optax.GradientTransformation:
    """Adds to each array's update its weights times its own decay."""

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        return jax.tree.map(lambda u, w, decay: u + decay * w, updates, params, decays), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _scale_by_learning_rates() -> optax.GradientTransformationExtraArgs:
    """Multiplies each array's update by minus its own learning rate."""

    def update(updates: Params, state: Any, params: Params = None, *, learning_rates: Params) -> tuple[Params, Any]:
        return jax.tree.map(lambda u, learning_rate: -learning_rate * u, updates, learning_rates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _hold_frozen() -> optax.GradientTransformationExtraArgs:
    """A learning rate of 0 freezes an array at once: the source then skips the update (CHM src/weights.cu)."""

    def update(updates: Params, state: Any, params: Params = None, *, learning_rates: Params) -> tuple[Params, Any]:
        return jax.tree.map(
            lambda u, learning_rate: jnp.where(learning_rate == 0, 0.0, u), updates, learning_rates
        ), state

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


def restored_state(opt_state: optax.OptState, tree: Mapping[str, Any]) -> optax.OptState:
    """A fresh state with the arrays of a checkpoint of the same config."""
    average = {name: tree[name] for name in AverageState._fields if name in tree}
    return optax.tree.set(opt_state, trace=tree["velocity"], **average)


def is_kernel(name: str) -> bool:
    """Whether a parameter named "layer/parameter" is a kernel."""
    return name.endswith("/kernel")


def map_names(function: Callable[[str], Any], tree: Params) -> Params:
    """The tree with each leaf replaced by function("layer/parameter")."""
    return jax.tree_util.tree_map_with_path(lambda path, _: function(_name(path)), tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_pattern(key: str, pattern: str, tree: Params) -> None:
    """Raises UserError if a pattern of `config.optimizer.KEY` matches no parameter."""
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    if not fnmatch.filter(names, pattern):
        raise UserError(f"config.optimizer.{key}: {pattern!r} matches no parameter; there are: {', '.join(names)}")
