"""Colors against plain definitions, torchvision and mmsegmentation's steps."""

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.config.augment import PhotometricConfig
from fcn_jax.data.augment.colors import (
    jitter_colors,
    photometric,
    random_photometric,
    shift_hue,
)
from fcn_jax.pytorch.reference import import_torchvision

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)


@given(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2))
def test_jitter_matches_the_three_steps_in_order(brightness, contrast, saturation):
    weights = np.array([0.299, 0.587, 0.114])
    expected = IMAGE * brightness
    expected = contrast * expected + (1 - contrast) * (expected @ weights).mean()
    expected = saturation * expected + (1 - saturation) * (expected @ weights)[..., None]
    found = jitter_colors(IMAGE, brightness, contrast, saturation)
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 1  # OpenCV counts in 1/1024


def in_hsv(image, change):
    """Apply `change` to hue, saturation and value, each 0 to 1, of every pixel."""
    pixels = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel)))
        for pixel in (image.reshape(-1, 3) / 255).tolist()
    ]
    return np.reshape(pixels, image.shape) * 255


@pytest.mark.parametrize("turn", [-0.5, -0.11, 0.03, 0.25, 0.5])
def test_hue_matches_the_definition(turn):
    expected = in_hsv(IMAGE, lambda h, s, v: ((h + turn) % 1, s, v))
    # Hue and saturation are rounded to 8 bits.
    assert np.abs(shift_hue(IMAGE, turn) - expected).max() <= 10
    assert np.abs(shift_hue(IMAGE, turn) - expected).mean() <= 1.5
    assert np.array_equal(jitter_colors(IMAGE, 1, 1, 1, turn), shift_hue(IMAGE, turn))


def test_hue_keeps_grays():
    grays = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=-1)
    assert np.array_equal(shift_hue(grays, 0.3), grays)


@pytest.mark.needs_torch
def test_hue_matches_torchvision():
    torch = pytest.importorskip("torch")
    import_torchvision()
    from torchvision.transforms.v2 import functional

    for turn in (-0.2, 0.1, 0.5):
        theirs = functional.adjust_hue(torch.from_numpy(IMAGE).permute(2, 0, 1), turn)
        difference = shift_hue(IMAGE, turn) - theirs.permute(1, 2, 0).numpy().astype(int)
        assert np.abs(difference).mean() <= 1.5


NEUTRAL = {
    "brightness": 0.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "hue": 0,
    "contrast_last": False,
}


def converted(image, alpha=1.0, beta=0.0):
    """mmsegmentation's `PhotoMetricDistortion.convert`."""
    changed = image.astype(np.float32) * alpha + beta
    return np.clip(changed, 0, 255).astype(np.uint8)


@given(st.floats(-40, 40), st.floats(0.4, 1.6), st.booleans())
def test_brightness_and_contrast_are_those_of_mmsegmentation(brightness, contrast, last):
    expected = converted(converted(IMAGE, beta=brightness), alpha=contrast)
    found = photometric(
        IMAGE,
        **{**NEUTRAL, "brightness": brightness, "contrast": contrast, "contrast_last": last},
    )
    assert np.array_equal(found, expected)


@settings(max_examples=30)
@given(st.floats(0.4, 1.6), st.integers(-18, 18))
def test_saturation_and_hue_match_the_definition(saturation, hue):
    expected = in_hsv(
        IMAGE, lambda h, s, v: ((h + hue / 180) % 1, min(1, int(s * 255 * saturation) / 255), v)
    )
    found = photometric(IMAGE, **{**NEUTRAL, "saturation": saturation, "hue": hue})
    assert np.abs(found - expected).max() <= 10  # the hue is rounded to 2 degrees
    assert np.abs(found - expected).mean() <= 2


def test_contrast_is_applied_before_or_after_the_saturation():
    change = {**NEUTRAL, "contrast": 1.6, "saturation": 1.5}
    early, late = (photometric(IMAGE, **{**change, "contrast_last": last}) for last in (0, 1))
    between = photometric(IMAGE, **{**NEUTRAL, "saturation": 1.5})
    assert np.array_equal(late, converted(between, alpha=1.6))
    assert np.array_equal(
        early, photometric(converted(IMAGE, alpha=1.6), **{**NEUTRAL, "saturation": 1.5})
    )
    assert not np.array_equal(early, late)


def test_neutral_parameters_return_the_image():
    assert photometric(IMAGE, **NEUTRAL) is IMAGE
    assert jitter_colors(IMAGE, 1, 1, 1) is IMAGE


def test_random_parameters_stay_in_their_ranges():
    gray = np.full((1, 1, 3), 100, np.uint8)
    only_brightness = PhotometricConfig(
        brightness_delta=20, contrast_range=(1, 1), saturation_range=(1, 1), hue_delta=0
    )
    rng = np.random.default_rng(0)
    found = [int(random_photometric(gray, only_brightness, rng)[0, 0, 0]) for _ in range(400)]
    assert min(found) in (80, 81)
    assert max(found) in (119, 120)
    assert 150 < found.count(100) < 260  # half of the time nothing changes
    only_contrast = only_brightness.model_copy(
        update={"brightness_delta": 0.0, "contrast_range": (0.5, 2.0)}
    )
    found = [int(random_photometric(gray, only_contrast, rng)[0, 0, 0]) for _ in range(400)]
    assert 50 <= min(found) < 55
    assert 190 < max(found) <= 200
