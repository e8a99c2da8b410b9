"""Uneven classes: the images that balanced sampling draws, and the weights of losses."""

import itertools
from collections import Counter

import numpy as np
import pytest

from alexnet_jax.config import check_value
from alexnet_jax.data.balance import balanced_epoch, loss_weights, sampled_fractions
from alexnet_jax.data.loader import training_order
from alexnet_jax.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.array([0, 1, 3], np.int32), (50, 9, 3)))
NAMES = ("ant", "bee: small", "none at all", "cat")


def test_each_epoch_draws_each_class_equally_often_and_no_image_twice_before_all_others() -> None:
    drawn = Counter[int]()
    for epoch in range(9):
        ids, seen = balanced_epoch(LABELS, 7, epoch)
        assert len(ids) == len(LABELS)
        counts = Counter(LABELS[ids].tolist())
        assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == 3
        for image, before in sorted(zip(ids.tolist(), seen.tolist(), strict=True), key=lambda pair: pair[1]):
            assert before == drawn[image]
            drawn[image] += 1
    for label in (0, 1, 3):
        times = [drawn[image] for image in np.flatnonzero(label == LABELS).tolist()]
        assert max(times) - min(times) <= 1
    orders = [balanced_epoch(LABELS, seed, epoch)[0].tobytes() for seed, epoch in ((7, 0), (7, 1), (8, 0))]
    assert len(set(orders)) == 3


@pytest.mark.parametrize("batch_size", [5, 200])
def test_the_order_is_a_function_of_the_position(batch_size: int) -> None:
    """Whatever the batch, also one of several epochs, and the rows of a process."""
    whole = [balanced_epoch(LABELS, 3, epoch) for epoch in range(20)]
    ids, seen = (np.concatenate(part) for part in zip(*whole, strict=True))
    stream = training_order(len(LABELS), batch_size, 3, start_example=31, rows=slice(1, 4), balanced=LABELS)
    for number, batch in enumerate(itertools.islice(stream, 4)):
        chosen = slice(31 + number * batch_size + 1, 31 + number * batch_size + 4)
        np.testing.assert_array_equal(batch["id"], ids[chosen])
        np.testing.assert_array_equal(batch["seen"], seen[chosen])
        np.testing.assert_array_equal(batch["epoch"], np.arange(20).repeat(len(LABELS))[chosen])


def test_weights_have_a_mean_of_1_over_the_examples() -> None:
    uniform, balanced = (sampled_fractions(LABELS, sampling, 4) for sampling in ("uniform", "balanced"))
    np.testing.assert_allclose(uniform, np.array([50, 9, 0, 3]) / 62)
    np.testing.assert_allclose(balanced, np.array([1, 1, 0, 1]) / 3)
    assert loss_weights("none", uniform, NAMES) is None
    weights = loss_weights("balanced", uniform, NAMES)
    assert weights is not None
    np.testing.assert_allclose(weights, [62 / (3 * 50), 62 / (3 * 9), 0, 62 / (3 * 3)], rtol=1e-6)
    np.testing.assert_allclose(loss_weights("balanced", balanced, NAMES), [1, 1, 0, 1])
    given = loss_weights("cat:4,bee: small:0.5", uniform, NAMES)
    assert given is not None
    np.testing.assert_allclose(given / given[0], [1, 0.5, 1, 4], rtol=1e-6)
    assert np.sum(uniform * given) == pytest.approx(1)


def test_weights_that_cannot_be_meant() -> None:
    fractions = sampled_fractions(LABELS, "uniform", 4)
    with pytest.raises(UserError, match=r"class_weights.*'dog'.*ant, bee"):
        loss_weights("dog:2", fractions, NAMES)
    with pytest.raises(UserError, match=r"class_weights.*twice"):
        loss_weights("ant:1, ant:2", fractions, NAMES)
    with pytest.raises(UserError, match="class_weights"):
        loss_weights("ant:0,bee: small:0,cat:0", fractions, NAMES)
    for text in ("", "even", "ant", "ant:-1", "ant:1,", "ant:nan"):
        with pytest.raises(UserError, match=r"data\.class_weights"):
            check_value("data.class_weights", text)
