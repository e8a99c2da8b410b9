"""Crops and mirroring on the device against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment

SIZE, CROP = 9, 6
IMAGE = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)


def views(count: int, mirror: bool) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    images = jnp.broadcast_to(jnp.asarray(IMAGE), (count, SIZE, SIZE, 3))
    return np.asarray(augment.random_crop_and_mirror(images, keys, CROP, mirror))


def test_each_view_is_a_window_or_its_mirror_and_all_are_equally_likely() -> None:
    windows = [IMAGE[r : r + CROP, c : c + CROP] for r in range(4) for c in range(4)]
    expected = {window.tobytes() for window in windows} | {window[:, ::-1].tobytes() for window in windows}
    draws = 6400
    seen = [view.tobytes() for view in views(draws, mirror=True)]
    counts = {view: seen.count(view) for view in expected}
    assert sum(counts.values()) == draws  # nothing but those 32 views
    mean = draws / len(expected)
    assert len(expected) == 32
    assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())


def test_without_mirroring_nothing_is_reflected() -> None:
    windows = {IMAGE[r : r + CROP, c : c + CROP].tobytes() for r in range(4) for c in range(4)}
    assert {view.tobytes() for view in views(500, mirror=False)} == windows


def test_center_crop_and_normalize() -> None:
    crops = augment.center_crop(jnp.asarray(IMAGE)[None], 5)
    np.testing.assert_array_equal(crops[0], IMAGE[2:7, 2:7])
    normalized = augment.normalize(crops, (10.0, 20.0, 30.0), (1.0, 2.0, 4.0))
    np.testing.assert_array_equal(normalized[0], (IMAGE[2:7, 2:7] - np.array([10.0, 20, 30])) / np.array([1.0, 2, 4]))
