"""Distortions, compared with Pillow image by image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from alexnet_jax import distortions
from alexnet_jax.distortions import OPERATIONS, STRENGTHS

SIZE = 24
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
DARK = RNG.integers(40, 99, (SIZE, SIZE, 3), dtype=np.uint8)
FLAT = np.full((SIZE, SIZE, 3), 77, np.uint8)
IMAGES = {"noise": NOISE, "dark": DARK, "flat": FLAT}

OPERATE = jax.jit(distortions.operate)


def operate(image: np.ndarray, operation: str, strength: float, sign: float = 1.0) -> np.ndarray:
    number = jnp.int32(OPERATIONS.index(operation))
    return np.asarray(OPERATE(image.astype(np.float32), number, jnp.float32(strength), jnp.float32(sign)))


def warped_by_pillow(image: np.ndarray, x: tuple[float, ...], y: tuple[float, ...]) -> np.ndarray:
    """Pillow's affine transform about the centre, of the image with its mirror images around it."""
    around = np.pad(image, ((SIZE, SIZE), (SIZE, SIZE), (0, 0)), mode="reflect").astype(np.float32)
    middle = 1.5 * SIZE  # Pillow's pixels have their centres at halves
    coefficients: list[float] = []
    for own, (by_x, by_y, shift) in enumerate((x, y)):
        assert own in (0, 1)
        coefficients += [by_x, by_y, shift + middle - (by_x + by_y) * middle]
    planes = []
    for channel in range(3):
        plane = Image.fromarray(around[:, :, channel])
        planes.append(plane.transform(plane.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR))
    return np.stack(planes, axis=2)[SIZE:-SIZE, SIZE:-SIZE]


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_warps_are_pillows(strength: float, sign: float) -> None:
    shear, shift, angle = 0.99 * sign * strength, SIZE / 7 * sign * strength, np.deg2rad(135 * sign * strength)
    affines = {
        "identity": ((1, 0, 0), (0, 1, 0)),
        "shear_x": ((1, shear, 0), (0, 1, 0)),
        "shear_y": ((1, 0, 0), (shear, 1, 0)),
        "translate_x": ((1, 0, shift), (0, 1, 0)),
        "translate_y": ((1, 0, 0), (0, 1, shift)),
        "rotate": ((np.cos(angle), -np.sin(angle), 0), (np.sin(angle), np.cos(angle), 0)),
    }
    for operation, affine in affines.items():
        expected = warped_by_pillow(NOISE, *affine)
        np.testing.assert_allclose(operate(NOISE, operation, strength, sign), expected, atol=0.02, err_msg=operation)


def test_a_rotation_is_pillows_by_an_angle_up_to_the_one_given() -> None:
    rotate = jax.jit(lambda key: distortions.rotated(jnp.float32(NOISE), key, 20.0))
    angles = []
    for key in jax.random.split(jax.random.key(0), 5):
        angle = np.deg2rad(float(jax.random.uniform(key, minval=-20.0, maxval=20.0)))
        affine = ((np.cos(angle), -np.sin(angle), 0), (np.sin(angle), np.cos(angle), 0))
        np.testing.assert_allclose(rotate(key), warped_by_pillow(NOISE, *affine), atol=0.02)
        angles.append(np.rad2deg(angle))
    assert min(angles) < 0 < max(angles) and np.abs(angles).max() > 10


def test_a_rotation_turns_the_image_anticlockwise_as_pillows_does() -> None:
    turned = np.asarray(distortions.warp(jnp.float32(NOISE), distortions._rotation(90.0)))
    np.testing.assert_allclose(turned, Image.fromarray(NOISE).rotate(90), atol=1e-3)


def enhanced(image: np.ndarray, enhance: Callable[[Image.Image], ImageEnhance._Enhance], factor: float) -> np.ndarray:
    return np.asarray(enhance(Image.fromarray(image)).enhance(factor)).astype(np.float32)


ENHANCED = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("operation", ENHANCED)
def test_blends_are_pillows(name: str, operation: str) -> None:
    for signed in (-1.0, -0.4, 0.0, 0.6, 1.0):
        expected = enhanced(IMAGES[name], ENHANCED[operation], 1 + 0.99 * signed)
        got = operate(IMAGES[name], operation, abs(signed), np.sign(signed) or 1.0)
        assert np.abs(got - expected).max() <= 1.51, signed  # Pillow rounds the mean, and cuts off fractions


@pytest.mark.parametrize("name", IMAGES)
def test_tones_are_pillows(name: str) -> None:
    image = Image.fromarray(IMAGES[name])
    for strength in np.linspace(0, 1, 7):
        bits = 8 - round(6 * strength)
        np.testing.assert_array_equal(operate(IMAGES[name], "posterize", strength), ImageOps.posterize(image, bits))
        inverted = ImageOps.solarize(image, 256 * (1 - strength))
        np.testing.assert_array_equal(operate(IMAGES[name], "solarize", strength), inverted)
    np.testing.assert_array_equal(operate(IMAGES[name], "equalize", 0.5), ImageOps.equalize(image))
    stretched = np.asarray(ImageOps.autocontrast(image)).astype(np.float32)
    assert np.abs(operate(IMAGES[name], "autocontrast", 0.5) - stretched).max() <= 1  # Pillow cuts off fractions
    smoothed = np.asarray(image.filter(ImageFilter.SMOOTH)).astype(np.float32)
    assert np.abs(np.asarray(distortions.smooth(jnp.float32(IMAGES[name]))) - smoothed).max() <= 0.51


def test_brightness_contrast_and_saturation_are_pillows_one_after_the_other() -> None:
    recolour = jax.jit(lambda key: distortions.recoloured(jnp.float32(NOISE), key, 0.4, 1.5, 0.2))
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.0, 2.5), "saturation": (0.8, 1.2)}
    for key in jax.random.split(jax.random.key(0), 5):
        expected = NOISE
        for (operation, (low, high)), own in zip(ranges.items(), jax.random.split(key, 3), strict=True):
            factor = float(jax.random.uniform(own, minval=low, maxval=high))
            expected = enhanced(expected, ENHANCED[operation], factor).astype(np.uint8)
        assert np.abs(np.asarray(recolour(key)) - expected).max() <= 6  # Pillow rounds three times


def test_what_has_no_strength_stays() -> None:
    only_contrast = distortions.recoloured(jnp.float32(FLAT), jax.random.key(0), 0.0, 0.9, 0.0)
    np.testing.assert_array_equal(only_contrast, FLAT)  # its mean grey is its colour


def test_trivial_augment_draws_every_operation_strength_and_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distortions, "operate", lambda _, *drawn: jnp.stack([jnp.float32(value) for value in drawn]))
    draw = jax.vmap(lambda key: distortions.trivially_augmented.__wrapped__(jnp.float32(FLAT), key))
    operations, strengths, signs = np.asarray(draw(jax.random.split(jax.random.key(0), 3000))).T
    assert set(operations) == set(range(14)) and set(signs) == {-1, 1}
    np.testing.assert_allclose(np.unique(strengths), np.arange(STRENGTHS) / 30, rtol=1e-6)
    counts = np.unique(operations, return_counts=True)[1]
    assert np.abs(counts - 3000 / 14).max() < 5 * (3000 / 14) ** 0.5
