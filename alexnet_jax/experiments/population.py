"""Small networks trained at once: one compiled step for all members of a population.

Members have the same layers; hyperparameters, seed and images are each one's own, and it learns what it would learn
alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array
from ml_collections import ConfigDict

from alexnet_jax.augment import Preprocessing
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.optimizer import make_optimizer
from alexnet_jax.parallel.collectives import ONE_DEVICE, Axes
from alexnet_jax.steps import Batch, make_train_step
from alexnet_jax.train_state import TrainState

IN_A_TURN = 2
"""Members in a turn of the CPU's loop: where one of them keeps a single core busy, the other takes the rest."""


@flax.struct.dataclass
class Member:
    """A network in training and its own hyperparameters.

    Attributes:
      state: as of a network alone; its key is of the member's seed, its learning rates are the member's.
      momentum, weight_decay: scalars in place of those in the optimizer's config.
      dropout_rate: one in place of the model's. In float32, 1 minus some rates (0.067, not 0.1 or 0.5) is rounded
        otherwise than in a network alone: one unit in 8 million is then dropped in one of them and kept in the other.
    """

    state: TrainState
    momentum: Any
    weight_decay: Any
    dropout_rate: Any


Result = tuple[Member, dict[str, Array]]
Members = tuple[Member, ...]
Batches = tuple[Batch, ...]
Results = tuple[Members, tuple[dict[str, Array], ...]]


def make_member_step(
    config: ConfigDict,
    model: AlexNet,
    preprocessing: Preprocessing,
    axes: Axes = ONE_DEVICE,
    label_smoothing: float = 0.0,
) -> Callable[[Member, Batch], Result]:
    """`steps.make_train_step` of one member; `config` is the optimizer's.

    What a member has of its own is traced, so that one program serves all values.
    """

    def member_step(member: Member, batch: Batch) -> Result:
        optimizer = make_optimizer(config, member.state.params, member.momentum, member.weight_decay)
        own_model = model.clone(dropout_rate=member.dropout_rate)
        step = make_train_step(own_model, optimizer, preprocessing, axes, label_smoothing=label_smoothing)
        state, sums = step(member.state, batch)
        return dataclasses.replace(member, state=state), sums

    return member_step


def make_population_step(member_step: Callable[[Member, Batch], Result]) -> Callable[[Members, Batches], Results]:
    """The same step of all members, each with a batch of its own, in one program.

    With all members side by side their convolutions become one in groups, which suits accelerators and is 3 to 4 times
    too slow on a CPU. There members go through a loop.
    """

    def in_a_loop(members: Member, batches: Batch) -> Result:
        _, results = lax.scan(lambda _, own: (None, member_step(*own)), None, (members, batches), unroll=IN_A_TURN)
        return results

    def population_step(members: Members, batches: Batches) -> Results:
        stacked = _stack(members), _stack(batches)
        after, sums = lax.platform_dependent(*stacked, cpu=in_a_loop, default=jax.vmap(member_step))
        return _unstack(after, len(members)), _unstack(sums, len(members))

    return population_step


def _stack(trees: Sequence[Any]) -> Any:
    """One tree for many alike, each array with a leading axis of members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstack(tree: Any, count: int) -> tuple[Any, ...]:
    return tuple(jax.tree.map(lambda leaves, number=number: leaves[number], tree) for number in range(count))
