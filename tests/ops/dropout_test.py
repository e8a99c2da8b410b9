"""Masks of dropout, and its two conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.ops.dropout import dropout
from tests.helpers.arrays import normal32


def keys_of(examples: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), examples)


def test_mask_of_an_example_is_the_same_in_any_batch() -> None:
    x, keys = jnp.asarray(normal32(0, 8, 3, 5)), keys_of(8)
    together = dropout(x, keys, 0.5, "2012")
    some = jnp.array([6, 1, 4])
    np.testing.assert_array_equal(dropout(x[some], keys[some], 0.5, "2012"), together[some])


def test_each_key_has_its_own_mask() -> None:
    masks = dropout(jnp.ones((16, 64)), keys_of(16), 0.5, "2012")
    assert len(np.unique(masks, axis=0)) == 16


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_rate_is_the_share_of_dropped_units(rate: float) -> None:
    dropped = dropout(jnp.ones((100, 200)), keys_of(100), rate, "2012") == 0
    deviation = np.sqrt(rate * (1 - rate) / dropped.size)
    assert abs(dropped.mean() - rate) < 5 * deviation


@pytest.mark.parametrize("convention", ["2012", "inverted"])
@pytest.mark.parametrize("training", [True, False])
def test_rate_0_changes_nothing(training: bool, convention: str) -> None:
    x = normal32(0, 4, 10)
    outputs = dropout(jnp.asarray(x), keys_of(4) if training else None, 0.0, convention)
    np.testing.assert_array_equal(outputs, x)


@pytest.mark.parametrize(("convention", "factor"), [("2012", 0.75), ("inverted", 1)])
def test_testing_needs_no_keys(convention: str, factor: float) -> None:
    x = normal32(0, 4, 10)
    np.testing.assert_array_equal(dropout(jnp.asarray(x), None, 0.25, convention), factor * x)
