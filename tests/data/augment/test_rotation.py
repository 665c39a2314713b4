"""A rotated crop is what a viewer rotates, and masks stay with their images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.api import IGNORE_INDEX, Example
from fcn_jax.data.augment.rotation import rotated_crop
from fcn_jax.data.geometry import crop

sides = st.integers(1, 24)


def smooth(height, width, channels=3):
    """A picture that bilinear interpolation reproduces: a plane in each channel."""
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * (2 + c) + columns * (3 - c % 3) for c in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


@given(sides, sides, sides, sides, st.floats(0, 0.99), st.floats(0, 0.99))
def test_no_rotation_is_a_crop(height, width, out_h, out_w, top, left):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = rng.integers(0, 5, (height, width), np.uint8)
    expected = crop(Example("x", image, mask), (out_h, out_w), at=(top, left), fill=(1, 2, 3))
    origin = tuple(
        int(place * (abs(have - wanted) + 1)) * (1 if have >= wanted else -1)
        for have, wanted, place in zip((height, width), (out_h, out_w), (top, left), strict=True)
    )
    rotated = rotated_crop(image, mask, (out_h, out_w), origin=origin, degrees=0, fill=(1, 2, 3))
    assert np.array_equal(rotated[0], expected.image)
    assert np.array_equal(rotated[1], expected.mask)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("side", [1, 8, 9])
def test_quarter_turns_are_exact_and_counterclockwise(side, turns):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (side, side, 3), np.uint8)
    mask = rng.integers(0, 5, (side, side), np.uint8)
    rotated = rotated_crop(image, mask, (side, side), origin=(0, 0), degrees=90 * turns)
    assert np.array_equal(rotated[1], np.rot90(mask, turns))
    assert np.abs(rotated[0].astype(int) - np.rot90(image, turns)).max() <= 1


@pytest.mark.parametrize("degrees", [-33.0, 7.5, 120.0])
def test_matches_a_definition_in_numpy_and_pillow(degrees):
    image = smooth(40, 40)
    mask = np.random.default_rng(0).integers(0, 5, (5, 5), np.uint8).repeat(8, 0).repeat(8, 1)
    found, labels = rotated_crop(image, mask, (40, 40), origin=(0, 0), degrees=degrees, fill=0)
    # Where the pixels of the result lie in the image, y downwards.
    angle = np.deg2rad(degrees)
    y, x = np.mgrid[:40, :40] - 19.5
    row = np.sin(angle) * x + np.cos(angle) * y + 19.5
    column = np.cos(angle) * x - np.sin(angle) * y + 19.5
    inside = (row > 0) & (row < 39) & (column > 0) & (column < 39)
    expected = np.stack([row * (2 + c) + column * (3 - c) for c in range(3)], axis=-1)
    assert np.abs(found - expected)[inside].max() <= 1
    beyond = (row < -1) | (row > 40) | (column < -1) | (column > 40)
    assert not found[beyond].any()
    assert (labels[beyond] == IGNORE_INDEX).all()
    pillow = Image.fromarray(mask).rotate(degrees, Image.Resampling.NEAREST, fillcolor=255)
    assert (labels == np.asarray(pillow)).mean() > 0.99  # ties may be rounded to the other side
    colors = Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR)
    assert np.abs(found.astype(int) - np.asarray(colors))[inside].max() <= 2


@given(sides, sides, st.integers(-8, 8), st.integers(-8, 8), st.floats(-180, 180))
def test_labels_stay_among_those_of_the_mask(height, width, top, left, degrees):
    mask = np.random.default_rng(0).integers(3, 6, (height, width), np.uint8)
    image = np.repeat(mask[..., None] * 40, 3, axis=-1)
    _, labels = rotated_crop(image, mask, (12, 9), origin=(top, left), degrees=degrees)
    assert set(np.unique(labels)) <= {*np.unique(mask), IGNORE_INDEX}


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_rotate_independently(channels, dtype):
    image = smooth(21, 17, channels).astype(dtype)
    mask = np.zeros((21, 17), np.uint8)
    options = {"size": (15, 11), "origin": (2, 4), "degrees": 25.0}
    found, _ = rotated_crop(image, mask, fill=tuple(range(channels)), **options)
    assert found.shape == (15, 11, channels)
    assert found.dtype == dtype
    for c in range(channels):
        alone, _ = rotated_crop(image[..., c : c + 1], mask, fill=c, **options)
        assert np.array_equal(found[..., c], alone[..., 0])


def test_corners_show_what_lies_around_the_window():
    image, mask = smooth(60, 60), np.zeros((60, 60), np.uint8)
    _, labels = rotated_crop(image, mask, (20, 20), origin=(20, 20), degrees=45.0)
    assert not labels.any()
