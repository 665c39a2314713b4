"""Joint transforms: image and mask stay together, sizes are exact, randomness is an argument."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.api import IGNORE_INDEX, Example
from fcn_jax.data.transforms import Augment, crop, flip_left_right, jitter_colors, resize
from fcn_jax.errors import ConfigError

sides = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def example(height: int, width: int, seed: int = 0) -> Example:
    """Labels 0 to 4 at random, and an image that says the label: its gray is 50 times the label."""
    mask = np.random.default_rng(seed).integers(0, 5, (height, width), np.uint8)
    return Example("x", np.repeat(mask[..., None] * 50, 3, axis=-1), mask)


@given(
    sides,
    sides,
    sides,
    sides,
    st.floats(0.3, 1.5),
    st.floats(1, 3),
    st.booleans(),
    st.floats(0, 1),
    seeds,
)
def test_result_has_the_crop_size_and_no_new_labels(
    height: int,
    width: int,
    out_h: int,
    out_w: int,
    low: float,
    more: float,
    flip: bool,
    strength: float,
    seed: int,
) -> None:
    augment = Augment((out_h, out_w), (low, low * more), flip, strength, strength, strength)
    given_example = example(height, width, seed)
    before = given_example.image.copy(), given_example.mask.copy()
    image, mask = augment(given_example, np.random.default_rng(seed))[1:]
    assert image.shape == (out_h, out_w, 3)
    assert mask.shape == (out_h, out_w)
    assert image.dtype == mask.dtype == np.uint8
    assert image.flags.c_contiguous
    assert mask.flags.c_contiguous
    assert set(np.unique(mask)) <= {*np.unique(given_example.mask), IGNORE_INDEX}
    assert np.array_equal(given_example.image, before[0])
    assert np.array_equal(given_example.mask, before[1])


@given(sides, sides, sides, sides, st.booleans(), seeds)
def test_image_and_mask_move_together(
    height: int, width: int, out_h: int, out_w: int, flip: bool, seed: int
) -> None:
    fill = (7, 7, 7)
    image, mask = Augment((out_h, out_w), flip=flip, fill=fill)(
        example(height, width, seed), np.random.default_rng(seed)
    )[1:]
    assert np.array_equal(image[..., 0], np.where(mask == IGNORE_INDEX, 7, mask * 50))
    assert (mask != IGNORE_INDEX).sum() == min(height, out_h) * min(width, out_w)


@given(sides, sides)
def test_flipping_twice_is_the_identity(height: int, width: int) -> None:
    original = example(height, width)
    twice = flip_left_right(flip_left_right(original))
    assert np.array_equal(twice.image, original.image)
    assert np.array_equal(twice.mask, original.mask)


def test_flip_happens_half_of_the_time() -> None:
    original, rng = example(1, 30), np.random.default_rng(0)
    flipped = sum(
        not np.array_equal(Augment((1, 30))(original, rng).mask, original.mask) for _ in range(400)
    )
    assert 150 < flipped < 250


@given(st.integers(1, 30), st.integers(1, 30))
def test_crop_reaches_every_position_and_both_ends(room: int, size: int) -> None:
    whole = example(size + room, 1)
    firsts = {
        crop(whole, (size, 1), at=(k / (room + 1) + 1e-9, 0)).mask.tobytes()
        for k in range(room + 1)
    }
    assert firsts == {whole.mask[k : k + size].tobytes() for k in range(room + 1)}


@pytest.mark.parametrize("factor", [1 / 3, 0.6, 3.0])
def test_resize_keeps_mask_and_image_aligned(factor: float) -> None:
    def center(weights: np.ndarray) -> float:
        return float(weights.sum(axis=0) @ np.arange(weights.shape[1]) / weights.sum())

    shifts = []
    for left in range(9, 24):
        mask = np.zeros((45, 45), np.uint8)
        mask[:, left : left + 14] = 1
        scaled = resize(Example("x", np.repeat(mask[..., None] * 200, 3, axis=-1), mask), factor)
        shifts.append(
            (center(scaled.image[..., 0].astype(float)) - center(scaled.mask.astype(float)))
            / factor
        )
    assert abs(np.mean(shifts)) < 0.2


def test_same_generator_state_gives_the_same_result() -> None:
    augment = Augment((16, 16), (0.5, 2.0), True, 0.5, 0.5, 0.5)
    first, second = (augment(example(20, 30), np.random.default_rng(5)) for _ in range(2))
    later = augment.from_resized(
        lambda factor: resize(example(20, 30), factor), np.random.default_rng(5)
    )
    other = augment(example(20, 30), np.random.default_rng(6))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.image, later.image)
    assert not np.array_equal(first.image, other.image)


def test_jitter_changes_neither_the_mask_nor_the_geometry() -> None:
    plain = Augment((16, 16), (0.5, 2.0))(example(20, 30), np.random.default_rng(5))
    colored = Augment((16, 16), (0.5, 2.0), True, 0.5, 0.5, 0.5)(
        example(20, 30), np.random.default_rng(5)
    )
    assert np.array_equal(plain.mask, colored.mask)
    assert not np.array_equal(plain.image, colored.image)


@given(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2))
def test_jitter_matches_the_three_steps_in_order(
    brightness: float, contrast: float, saturation: float
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    weights = np.array([0.299, 0.587, 0.114])
    expected = image * brightness
    expected = contrast * expected + (1 - contrast) * (expected @ weights).mean()
    expected = saturation * expected + (1 - saturation) * (expected @ weights)[..., None]
    assert (
        np.abs(
            jitter_colors(image, brightness, contrast, saturation) - np.clip(expected, 0, 255)
        ).max()
        <= 1
    )  # OpenCV counts in 1/1024


def test_error_names_all_wrong_values() -> None:
    with pytest.raises(ConfigError) as caught:
        Augment((0, 320), (2.0, 1.0), brightness=1.5, saturation=-0.1, fill=(0, 0, 256))
    for part in (
        "crop_size = (0, 320)",
        "scale_range = (2.0, 1.0)",
        "brightness = 1.5",
        "saturation = -0.1",
        "fill = (0, 0, 256)",
    ):
        assert part in str(caught.value)
    assert "contrast" not in str(caught.value)
