"""What the network sees against NumPy and Pillow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import augment
from alexnet_jax.augment import Preprocessing
from alexnet_jax.errors import UserError
from tests.training_setup import setup

SIZE, CROP = 9, 6
IMAGE = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)
PLAIN = Preprocessing(
    crop=CROP,
    cropping="random",
    mirror=False,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    color_noise=0.0,
    color_noise_form="source",
    color_noise_until_epoch=0.0,
    pca_std=(120.0, 40.0, 20.0),
    pca_vectors=np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].tolist(),
)
WINDOWS = [IMAGE[r : r + CROP, c : c + CROP] for r in range(4) for c in range(4)]


def views(preprocessing: Preprocessing, count: int, epoch: int = 0, image: np.ndarray = IMAGE) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    images = jnp.broadcast_to(jnp.asarray(image), (count, *image.shape))
    draw = jax.jit(lambda *batch: augment.training_images(preprocessing, *batch))
    return np.asarray(draw(images, keys, jnp.full(count, epoch, jnp.int32)))


def test_each_view_is_a_window_or_its_mirror_and_all_are_equally_likely() -> None:
    expected = {window.tobytes() for window in WINDOWS} | {window[:, ::-1].tobytes() for window in WINDOWS}
    draws = 6400
    seen = [view.tobytes() for view in views(dataclasses.replace(PLAIN, mirror=True), draws).astype(np.uint8)]
    counts = {view: seen.count(view) for view in expected}
    assert sum(counts.values()) == draws  # nothing but those 32 views
    mean = draws / len(expected)
    assert len(expected) == 32
    assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())


def test_without_mirroring_nothing_is_reflected() -> None:
    assert {view.tobytes() for view in views(PLAIN, 500).astype(np.uint8)} == {window.tobytes() for window in WINDOWS}


@pytest.mark.parametrize(("choices", "count"), [("imagenet2012,source", 2178), ("imagenet2012,caffe", 1800)])
def test_number_of_distinct_views(choices: str, count: int) -> None:
    # The paper counts 32 * 32 * 2 = 2048 for 224 pixels; offsets 0 to 32 make 33 * 33 * 2, and 227 pixels 30 * 30 * 2.
    data = setup(choices)[0].data
    offsets = {
        tuple(jax.random.randint(key, (2,), 0, data.image_size - data.crop + 1).tolist())
        for key in jax.random.split(jax.random.key(0), 400)
    }
    largest = max(max(pair) for pair in offsets)
    assert (largest + 1) ** 2 * 2 == count


def test_normalize() -> None:
    mean, std = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)
    (view,) = views(dataclasses.replace(PLAIN, crop=SIZE, mean=mean, std=std), 1)
    np.testing.assert_allclose(view, (IMAGE - np.array(mean)) / np.array(std), rtol=1e-6)


@pytest.mark.parametrize("form", ["source", "paper"])
def test_color_noise_is_the_formula(form: str) -> None:
    strength = np.array([0.1, 0.0, 0.3], np.float32)
    keys = jax.random.split(jax.random.key(1), 3)
    normals = np.stack([np.asarray(jax.random.normal(key, (3,)), np.float64) for key in keys])
    images = np.random.default_rng(0).normal(0, 50, (3, 4, 4, 3)).astype(np.float32)
    std, vectors = np.array(PLAIN.pca_std), np.array(PLAIN.pca_vectors)
    expected = np.empty(images.shape)
    for n in range(3):
        # Source: V @ (std * randn) * strength, then / (1 + strength). Paper: [p1 p2 p3] [a1 l1, a2 l2, a3 l3]^T with l
        # the variances of pixels in [0, 1], which a grey level is 1/255 of.
        weights = std if form == "source" else (std / 255) ** 2 * 255
        shift = vectors @ (weights * normals[n] * strength[n])
        expected[n] = (images[n] + shift) / (1 + strength[n] if form == "source" else 1)
    noisy = augment.add_color_noise(
        jnp.asarray(images), keys, jnp.asarray(strength), form, PLAIN.pca_std, PLAIN.pca_vectors
    )
    np.testing.assert_allclose(noisy, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(noisy[1], images[1])  # strength 0 is no change


def test_color_noise_has_the_colours_of_the_training_set() -> None:
    # Over many images the shifts' covariance is strength^2 V diag(std^2) V^T, divided by 1.1^2.
    grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
    noisy = dataclasses.replace(PLAIN, color_noise=0.1, mean=(128.0, 128.0, 128.0))
    shifts = views(noisy, 20_000, image=grey)[:, 0, 0]
    vectors = np.array(PLAIN.pca_vectors)
    expected = vectors @ np.diag((0.1 * np.array(PLAIN.pca_std) / 1.1) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(shifts.T), expected, atol=0.05 * expected.max())


def test_color_noise_ends_with_its_epoch() -> None:
    until = dataclasses.replace(PLAIN, color_noise=0.1, color_noise_until_epoch=3.0)
    windows = {window.astype(np.float32).tobytes() for window in WINDOWS}
    assert not {view.tobytes() for view in views(until, 50, epoch=2)} & windows
    assert {view.tobytes() for view in views(until, 50, epoch=3)} <= windows


def test_customary_eigenvalues_are_the_variances_of_the_sources_components() -> None:
    # 0.2175, 0.0188 and 0.0045 in many codes are for pixels in [0, 1]; CC2 measured (121.8, 37.1, 19.7) grey levels.
    std = np.array(setup("imagenet2012,source")[0].data.pca_std)
    np.testing.assert_allclose(std, 255 * np.sqrt([0.2175, 0.0188, 0.0045]), rtol=0.16)


def test_principal_components_are_orthonormal() -> None:
    vectors = np.array(setup("imagenet2012,source")[0].data.pca_vectors)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-6)


def test_a_resized_crop_is_pillows() -> None:
    size, crop, count = 40, 16, 20
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    resized = views(dataclasses.replace(PLAIN, crop=crop, cropping="resized"), count, image=image)
    keys = jax.random.split(jax.random.key(0), count)
    for view, key in zip(resized, keys, strict=True):
        row, column, height, width = (float(side) for side in augment.random_box(jax.random.split(key, 3)[0], size))
        box = (column, row, column + width, row + height)
        for channel in range(3):
            plane = Image.fromarray(image[:, :, channel].astype(np.float32))
            expected = np.asarray(plane.resize((crop, crop), Image.Resampling.BILINEAR, box=box))
            np.testing.assert_allclose(view[:, :, channel], expected, atol=0.02)


def test_random_boxes_stay_inside_and_cover_the_promised_range() -> None:
    size = 200
    boxes = jax.vmap(lambda key: jnp.stack(augment.random_box(key, size)))(jax.random.split(jax.random.key(0), 4000))
    row, column, height, width = np.asarray(boxes).T
    assert min(row.min(), column.min()) == 0
    assert max((row + height).max(), (column + width).max()) == size
    share, ratio = height * width / size**2, width / height
    assert 0.07 < share.min() < 0.1 and 0.9 < share.max() <= 1
    assert 0.73 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.37
    assert abs(np.log(ratio).mean()) < 0.02


@pytest.mark.parametrize("count", [1, 2, 10])
def test_testing_views(count: int) -> None:
    windows = augment.testing_images(PLAIN, jnp.asarray(IMAGE)[None], count)[:, 0]
    corners = [IMAGE[r : r + CROP, c : c + CROP] for r, c in [(1, 1), (0, 0), (0, 3), (3, 0), (3, 3)]]
    expected = corners[: 5 if count == 10 else 1]
    expected += [window[:, ::-1] for window in expected] if count > 1 else []
    np.testing.assert_array_equal(windows, np.stack(expected))


@pytest.mark.parametrize("key", ["cropping", "color_noise_form"])
def test_an_unknown_kind_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"config\.data\.{key}='none' is unknown; there are: "):
        dataclasses.replace(PLAIN, **{key: "none"})
