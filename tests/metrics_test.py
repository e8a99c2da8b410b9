"""Sums of loss and correct predictions, compared with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import metrics
from alexnet_jax.metrics import classification_sums


def random_batch(seed: int, classes: int, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels and a mask; with ties most logits have equals."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(64, classes)).astype(np.float32)
    logits = np.round(logits) + np.float32(0) if ties else logits  # + 0: top_k puts -0 behind 0
    return logits, rng.integers(classes, size=64).astype(np.int32), rng.random(64) < 0.7


def sums_of(logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """classification_sums as Python numbers."""
    return metrics.add({}, classification_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask)))


def reference_sums(logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The sums by sorting in float64; a stable sort keeps the lower of equal classes first."""
    logits, labels = logits.astype(np.float64)[mask], labels[mask]
    order = np.argsort(-logits, axis=1, kind="stable")
    losses = np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(len(labels)), labels]
    return {
        "loss_sum": losses.sum(),
        "top1_correct": np.any(order[:, :1] == labels[:, None], axis=1).sum(),
        "top5_correct": np.any(order[:, :5] == labels[:, None], axis=1).sum(),
        "count": mask.sum(),
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 5, 6, 10, 1000])
def test_sums_equal_those_by_sorting(classes: int, ties: bool) -> None:
    for seed in range(5):
        batch = random_batch(seed, classes, ties)
        assert sums_of(*batch) == pytest.approx(reference_sums(*batch), rel=1e-5)


@pytest.mark.parametrize("k", [1, 5])
def test_ties_are_broken_as_by_top_k(k: int) -> None:
    logits, labels, _ = random_batch(0, 10, ties=True)
    for row, label in zip(logits, labels, strict=True):
        in_top_k = label in jax.lax.top_k(row, k)[1]
        assert sums_of(row[None], label[None], np.array([True]))[f"top{k}_correct"] == in_top_k


@pytest.mark.parametrize(
    ("label", "top1_correct", "top5_correct"), [(0, 1, 1), (1, 0, 1), (4, 0, 1), (5, 0, 0), (9, 0, 0)]
)
def test_of_equal_logits_the_lower_class_wins(label: int, top1_correct: int, top5_correct: int) -> None:
    sums = sums_of(np.zeros((1, 10), np.float32), np.array([label]), np.array([True]))
    assert (sums["top1_correct"], sums["top5_correct"]) == (top1_correct, top5_correct)


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
@pytest.mark.parametrize("only_the_label", [False, True])
def test_nan_is_never_right(classes: int, only_the_label: bool) -> None:
    logits = np.full((classes, classes), np.nan, np.float32)
    if only_the_label:
        logits = np.where(np.eye(classes, dtype=bool), logits, np.float32(0))
    sums = sums_of(logits, np.arange(classes), np.ones(classes, bool))
    assert (sums["top1_correct"], sums["top5_correct"], sums["count"]) == (0, 0, classes)
    assert np.isnan(sums["loss_sum"])


def test_nan_of_another_class_makes_an_example_wrong() -> None:
    logits = np.array([[9, 1, 1, np.nan, 1, 1]], np.float32)
    sums = sums_of(logits, np.array([0]), np.array([True]))
    assert (sums["top1_correct"], sums["top5_correct"]) == (0, 0)


def test_masked_examples_do_not_count_even_if_they_are_nan() -> None:
    logits, labels, mask = random_batch(0, 10, ties=False)
    spoilt = np.where(mask[:, None], logits, np.float32(np.nan))
    assert sums_of(spoilt, labels, mask) == sums_of(logits, labels, mask)


def test_nothing_counts_under_an_empty_mask() -> None:
    logits, labels, mask = random_batch(0, 10, ties=False)
    assert set(sums_of(logits, labels, np.zeros_like(mask)).values()) == {0}


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_labels_may_be_any_signed_integers(dtype: type) -> None:
    logits, labels, mask = random_batch(0, 10, ties=False)
    assert sums_of(logits, labels.astype(dtype), mask) == sums_of(logits, labels, mask)


def test_counts_are_int32_and_the_loss_float32() -> None:
    sums = classification_sums(*(jnp.asarray(array) for array in random_batch(0, 10, ties=False)))
    assert {name: value.dtype.name for name, value in sums.items()} == {
        "loss_sum": "float32",
        "top1_correct": "int32",
        "top5_correct": "int32",
        "count": "int32",
    }


@pytest.mark.parametrize("cuts", [[], [32], [1], [63], [10, 11, 50], list(range(1, 64))])
def test_sums_add_up_however_the_batch_is_cut(cuts: list[int]) -> None:
    batch = random_batch(0, 10, ties=True)
    totals: dict[str, float] = {}
    for logits, labels, mask in zip(*(np.split(array, cuts) for array in batch), strict=True):
        totals = metrics.add(totals, classification_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask)))
    assert totals == pytest.approx(sums_of(*batch), rel=1e-6)


def test_totals_are_in_double_precision() -> None:
    """The spacing of float32 near 1e8 is 8."""
    assert metrics.add({"loss_sum": 1e8}, {"loss_sum": jnp.float32(0.25)}) == {"loss_sum": 1e8 + 0.25}


@pytest.mark.parametrize(("classes", "top5_error"), [(2, None), (5, None), (6, 0.25), (1000, 0.25)])
def test_summary_leaves_out_top5_where_it_says_nothing(classes: int, top5_error: float | None) -> None:
    totals = {"loss_sum": 6.0, "top1_correct": 2, "top5_correct": 6, "count": 8}
    assert metrics.summarize(totals, classes) == {
        "loss": 0.75,
        "top1_error": 0.75,
        "top5_error": top5_error,
        "count": 8,
    }


def test_the_interval_is_wilsons() -> None:
    for wrong, count in ((0, 10), (3, 17), (118, 360), (50, 50)):
        low, high = metrics.confidence_interval(wrong, count)
        assert 0 <= low <= wrong / count <= high <= 1
        for bound in (low, high):
            if 0 < bound < 1:  # where the error is 1.96 of its own standard deviations from the measured one
                assert abs(wrong / count - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / count) ** 0.5)
    assert metrics.confidence_interval(0, 10)[1] > 0.25
