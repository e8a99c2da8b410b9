"""Augmentation and normalisation, compared with NumPy and Pillow."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import augment, distortions, resizing
from alexnet_jax.augment import Preprocessing
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import make_preprocessing
from alexnet_jax.ops.platforms import fast_compilation
from configs import alexnet
from tests.helpers.training_setup import plausible_statistics, setup

SIZE, CROP = 9, 6
IMAGE = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)
PLAIN = Preprocessing(
    crop=CROP,
    cropping="random",
    resized_min_area=0.08,
    resized_max_aspect=4 / 3,
    mirror=False,
    rotation=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    trivial_augment=False,
    random_erasing=0.0,
    mean=np.zeros(3, np.float32),
    mean_form="channel",
    std=(1.0, 1.0, 1.0),
    color_noise=0.0,
    color_noise_form="source",
    color_noise_until_epoch=0.0,
    mixup=0.0,
    cutmix=0.0,
    pca_std=np.array([120.0, 40.0, 20.0], np.float32),
    pca_vectors=np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].astype(np.float32),
)
MEANS = {
    "channel": np.array([10.0, 20.0, 30.0], np.float32),
    **dict.fromkeys(
        ("image_centre", "image_crop"), np.random.default_rng(2).uniform(0, 255, IMAGE.shape).astype(np.float32)
    ),
}
PLACES = list(itertools.product(range(SIZE - CROP + 1), range(SIZE - CROP + 1), (False, True)))
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
    assert sum(counts.values()) == draws  # no view but those 32
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


def with_mean(form: str, **changes: object) -> Preprocessing:
    return dataclasses.replace(PLAIN, mean=MEANS[form], mean_form=form, **changes)


def reference(form: str, row: int, column: int, mirrored: bool) -> np.ndarray:
    """The mean subtracted as in CHM convdata_jpeg.py for image_centre and Caffe data_transformer.cpp for image_crop."""
    seen = np.empty((CROP, CROP, 3))
    border = (SIZE - CROP) // 2
    for y, x in itertools.product(range(CROP), range(CROP)):
        from_row, from_column = row + y, column + (CROP - 1 - x if mirrored else x)
        mean = {
            "channel": lambda: MEANS["channel"],
            "image_centre": lambda y=y, x=x: MEANS["image_centre"][border + y, border + x],
            "image_crop": lambda r=from_row, c=from_column: MEANS["image_crop"][r, c],
        }[form]()
        seen[y, x] = IMAGE[from_row, from_column].astype(np.float64) - mean
    return seen


@pytest.mark.parametrize("form", MEANS)
@pytest.mark.parametrize("mirror", [False, True])
def test_the_mean_is_subtracted_as_its_form_says(form: str, mirror: bool) -> None:
    std = np.array([1.0, 2.0, 4.0])
    places = [place for place in PLACES if mirror or not place[2]]
    expected = np.stack([reference(form, *place) for place in places]) / std
    drawn = views(with_mean(form, mirror=mirror, std=tuple(std)), 400)
    fits = np.abs(drawn[:, None] - expected[None]).max(axis=(2, 3, 4)) < 1e-3
    assert (fits.sum(axis=1) == 1).all()  # each view is the crop at one place,
    assert fits.any(axis=0).all()  # and no place is left out


@pytest.mark.parametrize("form", MEANS)
@pytest.mark.parametrize("count", [1, 2, 10])
def test_testing_views_are_those_of_their_places(form: str, count: int) -> None:
    places = [(1, 1), (0, 0), (0, 3), (3, 0), (3, 3)][: 5 if count == 10 else 1]
    expected = np.stack([reference(form, *p, m) for m in (False, True)[: min(count, 2)] for p in places])
    expected /= np.array([1.0, 2.0, 4.0])
    other = IMAGE[::-1, :, ::-1].copy()  # the images of a batch do not mix
    batch = jnp.stack([jnp.asarray(IMAGE), jnp.asarray(other), jnp.asarray(IMAGE)])
    p = with_mean(form, std=(1.0, 2.0, 4.0))
    seen = jax.jit(lambda images: augment.testing_images(p, images, count))(batch)
    assert seen.shape == (count, 3, CROP, CROP, 3) and seen.dtype == jnp.float32
    for number in (0, 2):
        np.testing.assert_allclose(seen[:, number], expected, rtol=1e-5, atol=1e-4)
    alone = augment.testing_images(p, jnp.asarray(other)[None], count)
    np.testing.assert_allclose(seen[:, 1], alone[:, 0], rtol=1e-5, atol=1e-4)


def test_the_whole_image_loses_the_whole_mean_image() -> None:
    for form in ("image_centre", "image_crop"):
        (view,) = views(with_mean(form, crop=SIZE), 1)
        np.testing.assert_allclose(view, IMAGE - MEANS[form], rtol=1e-5, atol=1e-4)


def test_a_resized_crop_loses_the_centre_of_the_mean_image() -> None:
    plain = views(dataclasses.replace(PLAIN, cropping="resized", mirror=True), 50)
    centred = views(with_mean("image_centre", cropping="resized", mirror=True), 50)
    centre = MEANS["image_centre"][1 : 1 + CROP, 1 : 1 + CROP]
    np.testing.assert_allclose(centred, plain - centre[None], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("mean_form", ["channel", "image_centre", "image_crop"])
def test_the_central_window_is_that_of_testing(mean_form: str) -> None:
    centre = with_mean(mean_form, cropping="centre")
    expected = np.asarray(augment.testing_images(centre, jnp.asarray(IMAGE)[None], views=1))[0, 0]
    for view in views(centre, 5):
        np.testing.assert_allclose(view, expected, rtol=1e-6)


def test_the_mean_image_at_a_resized_crop_is_refused() -> None:
    with pytest.raises(UserError, match=r"mean_form='image_crop'.*config\.data\.cropping='random'"):
        with_mean("image_crop", cropping="resized")


@pytest.mark.parametrize("mean_form", ["image_centre", "image_crop"])
@pytest.mark.parametrize("noise_form", ["source", "paper"])
def test_color_noise_comes_after_the_mean_image_and_before_the_division(mean_form: str, noise_form: str) -> None:
    p = with_mean(mean_form, mirror=True)
    noisy = dataclasses.replace(p, color_noise=0.1, color_noise_form=noise_form, std=(1.0, 2.0, 4.0))
    keys = jax.random.split(jax.random.key(0), 20)
    strength = jnp.full(20, 0.1, jnp.float32)
    color_keys = jax.vmap(lambda key: jax.random.split(key, 3)[2])(keys)
    centred = jnp.asarray(views(p, 20))
    shifted = augment.add_color_noise(centred, color_keys, strength, noise_form, p.pca_std, p.pca_vectors)
    np.testing.assert_allclose(views(noisy, 20), shifted / np.array([[[[1.0, 2.0, 4.0]]]]), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("form", ["source", "paper"])
def test_color_noise_is_the_formula(form: str) -> None:
    strength = np.array([0.1, 0.0, 0.3], np.float32)
    keys = jax.random.split(jax.random.key(1), 3)
    normals = np.stack([np.asarray(jax.random.normal(key, (3,)), np.float64) for key in keys])
    images = np.random.default_rng(0).normal(0, 50, (3, 4, 4, 3)).astype(np.float32)
    std, vectors = PLAIN.pca_std.astype(np.float64), PLAIN.pca_vectors.astype(np.float64)
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
    noisy = dataclasses.replace(PLAIN, color_noise=0.1, mean=np.full(3, 128.0))
    shifts = views(noisy, 20_000, image=grey)[:, 0, 0]
    vectors = PLAIN.pca_vectors
    expected = vectors @ np.diag((0.1 * PLAIN.pca_std / 1.1) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(shifts.T), expected, atol=0.05 * expected.max())


def test_color_noise_ends_with_its_epoch() -> None:
    until = dataclasses.replace(PLAIN, color_noise=0.1, color_noise_until_epoch=3.0)
    windows = {window.astype(np.float32).tobytes() for window in WINDOWS}
    assert not {view.tobytes() for view in views(until, 50, epoch=2)} & windows
    assert {view.tobytes() for view in views(until, 50, epoch=3)} <= windows


def test_the_papers_form_takes_the_customary_eigenvalues() -> None:
    # 0.2175, 0.0188 and 0.0045 in many codes are the variances of pixels in [0, 1], which a grey level is 1/255 of.
    eigenvalues = np.array([0.2175, 0.0188, 0.0045])
    std = (255 * np.sqrt(eigenvalues)).astype(np.float32)
    keys, vectors = jax.random.split(jax.random.key(1), 1), np.eye(3, dtype=np.float32)
    shift = augment.add_color_noise(jnp.zeros((1, 1, 1, 3)), keys, jnp.full(1, 0.1), "paper", std, vectors)
    factors = 0.1 * np.asarray(jax.random.normal(keys[0], (3,)))
    np.testing.assert_allclose(shift[0, 0, 0] / 255, factors * eigenvalues, rtol=1e-5)


@pytest.mark.parametrize("accelerators", [False, True])
def test_a_resized_crop_is_pillows(accelerators: bool) -> None:
    size, crop, count = 40, 16, 20
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    with fast_compilation(accelerators):
        resized = views(dataclasses.replace(PLAIN, crop=crop, cropping="resized"), count, image=image)
    keys = jax.random.split(jax.random.key(0), count)
    for view, key in zip(resized, keys, strict=True):
        row, column, height, width = (
            float(side) for side in resizing.random_box(jax.random.split(key, 3)[0], size, (0.08, 1.0), 4 / 3)
        )
        box = (column, row, column + width, row + height)
        for channel in range(3):
            plane = Image.fromarray(image[:, :, channel].astype(np.float32))
            expected = np.asarray(plane.resize((crop, crop), Image.Resampling.BILINEAR, box=box))
            np.testing.assert_allclose(view[:, :, channel], expected, atol=0.02)


def test_mirrored_crops_on_accelerators_are_those_of_the_cpu() -> None:
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8))
    keys, mirror = jax.random.split(jax.random.key(0), 4), jnp.arange(4) % 2 == 0
    crop = functools.partial(resizing.resized_crops, crop=9, min_area=0.08, max_aspect=4 / 3)
    with fast_compilation(False):
        expected = jax.jit(lambda *batch: crop(*batch))(images, keys, mirror)
    with fast_compilation():
        np.testing.assert_allclose(jax.jit(lambda *batch: crop(*batch))(images, keys, mirror), expected, atol=0.01)


@pytest.mark.slow
def test_distortions_come_before_the_mean_and_the_crop() -> None:
    plain = dataclasses.replace(PLAIN, crop=SIZE, mean=MEANS["image_crop"], mean_form="image_crop")
    p = dataclasses.replace(plain, rotation=30.0, brightness=0.3, contrast=0.3, saturation=0.3, trivial_augment=True)
    keys = jax.random.split(jax.random.key(0), 6)
    fold_in = jax.random.fold_in
    for view, key in zip(views(p, 6), keys, strict=True):
        image = distortions.rotated(jnp.float32(IMAGE), fold_in(key, 3), 30.0)
        image = distortions.recoloured(image, fold_in(key, 4), 0.3, 0.3, 0.3)
        image = distortions.trivially_augmented(image, fold_in(key, 5))
        np.testing.assert_allclose(view, image - MEANS["image_crop"], atol=1e-3)


def test_erased_boxes_are_of_the_promised_sizes_and_number() -> None:
    erased = np.asarray(augment.erase_boxes(jnp.ones((4000, 40, 40, 3)), keys_of(4000), 0.3)) == 0
    boxes = erased[erased.any(axis=(1, 2, 3))]
    assert 0.27 < len(boxes) / 4000 < 0.33
    rows, columns = boxes.any(axis=(2, 3)), boxes.any(axis=(1, 3))
    heights, widths = rows.sum(axis=1), columns.sum(axis=1)
    np.testing.assert_array_equal(boxes, (rows[:, :, None] & columns[:, None, :])[..., None].repeat(3, axis=3))
    assert ((np.diff(rows.astype(int), axis=1) == 1).sum(axis=1) <= 1).all()  # one piece
    share, ratio = heights * widths / 1600, widths / heights
    assert 0.015 < share.min() < 0.03 and 0.3 < share.max() < 0.35
    assert 0.25 < ratio.min() < 0.35 and 2.9 < ratio.max() < 3.8


def test_what_is_erased_is_the_mean() -> None:
    p = dataclasses.replace(with_mean("channel", std=(2.0, 2.0, 2.0)), crop=SIZE, random_erasing=1.0)
    plain = views(dataclasses.replace(p, random_erasing=0.0), 20)
    erased = views(p, 20)
    assert (erased == 0).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(erased[erased != 0], plain[erased != 0])


def keys_of(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), count)


def test_cutmix_takes_a_box_of_the_partner_and_its_area_of_the_label() -> None:
    p = dataclasses.replace(PLAIN, crop=32, cutmix=1.0)
    images = jnp.arange(1.0, 401.0).reshape(-1, 1, 1, 1) * jnp.ones((400, 32, 32, 3))
    mixed, weights = (np.asarray(array) for array in augment.mix(p, images, keys_of(400)))
    numbers = np.arange(400)
    own, other = (mixed[:, :, :, 0] == (names + 1)[:, None, None] for names in (numbers, numbers ^ 1))
    assert (own | other).all() and (mixed == mixed[..., :1]).all()
    np.testing.assert_allclose(weights, own.mean(axis=(1, 2)), rtol=1e-6)
    rows, columns = other.any(axis=2), other.any(axis=1)
    np.testing.assert_array_equal(other, rows[:, :, None] & columns[:, None, :])
    assert weights.min() >= 0.5 and weights.max() == 1
    drawn = np.asarray(augment.mixup_weights(keys_of(400), 1.0))
    assert abs(weights.mean() - drawn.mean()) < 0.12  # more of the own image: boxes hang over


def test_mixup_and_cutmix_take_turns() -> None:
    images = jnp.arange(1.0, 401.0).reshape(-1, 1, 1, 1) * jnp.ones((400, 8, 8, 3))
    both = dataclasses.replace(PLAIN, crop=8, cutmix=1.0, mixup=0.4)
    mixed, weights = augment.mix(both, images, keys_of(400))
    alone, alone_weights = augment.mix(dataclasses.replace(both, cutmix=0.0), images, keys_of(400))
    is_mixup = np.asarray((mixed == alone).all(axis=(1, 2, 3)) & (weights == alone_weights))
    assert 0.4 < is_mixup.mean() < 0.6
    np.testing.assert_array_equal(mixed[~is_mixup] % 1, np.zeros((int((~is_mixup).sum()), 8, 8, 3)))


@pytest.mark.parametrize("form", ["channel", "image_centre"])
def test_the_picture_of_a_crop_is_the_image_itself(form: str) -> None:
    p = dataclasses.replace(with_mean(form, std=(2.0, 3.0, 4.0)), cropping="centre")
    np.testing.assert_array_equal(augment.visible(p, jnp.asarray(views(p, 1)))[0], IMAGE[1:7, 1:7])


def test_random_boxes_stay_inside_and_cover_the_promised_range() -> None:
    size = 200
    boxes = jax.vmap(lambda key: jnp.stack(resizing.random_box(key, size, (0.08, 1.0), 4 / 3)))(
        jax.random.split(jax.random.key(0), 4000)
    )
    row, column, height, width = np.asarray(boxes).T
    assert min(row.min(), column.min()) == 0
    assert max((row + height).max(), (column + width).max()) == size
    share, ratio = height * width / size**2, width / height
    assert 0.07 < share.min() < 0.1 and 0.9 < share.max() <= 1
    assert 0.73 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.37
    assert abs(np.log(ratio).mean()) < 0.02


@pytest.mark.parametrize("key", ["cropping", "color_noise_form", "mean_form"])
def test_an_unknown_kind_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"config\.data\.{key}='none'"):
        dataclasses.replace(PLAIN, **{key: "none"})


MEASURED = dataclasses.replace(plausible_statistics(72), mean_image=np.full((72, 72, 3), 5, np.float32))


def test_what_the_config_leaves_open_is_as_measured() -> None:
    data = alexnet.get_config("synthetic,bn,smoke").data
    p = make_preprocessing(data, MEASURED)
    for name in ("mean", "pca_std", "pca_vectors"):
        np.testing.assert_array_equal(getattr(p, name), np.array(getattr(MEASURED, name), np.float32))
        assert getattr(p, name).dtype == np.float32
    for form in ("image_centre", "image_crop"):
        data.mean_form = form
        np.testing.assert_array_equal(make_preprocessing(data, MEASURED).mean, MEASURED.mean_image)


def test_what_the_config_says_counts_more_than_what_was_measured() -> None:
    data = alexnet.get_config("synthetic,bn,smoke").data
    given = {"mean": (1.0, 2.0, 3.0), "pca_std": (3.0, 2.0, 0.0), "pca_vectors": ((0.0, 1.0, 0.0),) * 3}
    given |= {"std": (4.0, 5.0, 6.0), "crop": 60, "mirror": False, "color_noise": 0.2, "color_noise_until_epoch": 2.0}
    given |= {"color_noise_form": "paper", "cropping": "resized"}
    data.update(given)
    p = make_preprocessing(data, MEASURED)
    for name, value in given.items():
        np.testing.assert_array_equal(getattr(p, name), value)


@pytest.mark.parametrize("form", ["image_centre", "image_crop"])
def test_a_colour_where_a_mean_image_is_meant_is_refused(form: str) -> None:
    data = alexnet.get_config("synthetic,bn,smoke").data
    data.update({"mean": (1.0, 2.0, 3.0), "mean_form": form})
    with pytest.raises(UserError, match=rf"config\.data\.mean .*mean_form='{form}'"):
        make_preprocessing(data, MEASURED)
