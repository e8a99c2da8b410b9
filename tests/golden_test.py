"""One training step of the 2012 network, compared with recorded losses and norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.steps import make_train_step
from alexnet_jax.train_state import create_train_state, init_variables
from tests.helpers.training_setup import setup

pytestmark = pytest.mark.cpu_kernels

# Loss of the batch before the step, and the norm of each kernel's first velocity, learning rate * (gradient + decay).
GOLDEN = {
    "loss": 2.299232,
    "conv1": 8.810607e-05,
    "conv2": 1.271487e-04,
    "conv3": 1.510623e-04,
    "conv4": 1.343017e-04,
    "conv5": 1.210918e-04,
    "fc6": 3.431541e-04,
    "fc7": 5.672109e-04,
    "fc8": 1.044849e-02,
}

UPDATE = (
    "One step of training computes something else than it did. If you meant that (another initialisation, other random "
    "draws, another formula), put the new numbers into GOLDEN and say so in the commit; if not, you found a bug."
)


def test_one_step() -> None:
    config, model, optimizer, preprocessing = setup("source,smoke")
    generator = np.random.default_rng(2012)
    batch = {
        "image": jnp.asarray(generator.integers(0, 256, (8, 72, 72, 3), dtype=np.uint8)),
        "label": jnp.arange(8, dtype=jnp.int32),
        "id": jnp.arange(100, 108, dtype=jnp.int32),
        "epoch": jnp.full(8, 3, jnp.int32),
    }
    state = create_train_state(init_variables(model, config.data.crop, seed=0), optimizer, seed=0)
    state = state.replace(learning_rates=jax.tree.map(lambda _: jnp.float32(0.01), state.params))
    after, sums = jax.jit(make_train_step(model, optimizer, preprocessing))(state, batch)
    steps = jax.tree.map(lambda new, old: float(jnp.linalg.norm((new - old).ravel())), after.params, state.params)
    measured = {"loss": float(sums["loss_sum"]) / 8} | {layer: steps[layer]["kernel"] for layer in steps}
    assert measured == pytest.approx(GOLDEN, rel=1e-4), UPDATE
