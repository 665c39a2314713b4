"""Joint transforms: image and mask stay together, sizes are exact, randomness is an argument."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.api import IGNORE_INDEX, Example
from fcn_jax.config import parse
from fcn_jax.config.augment import AugmentConfig
from fcn_jax.data.geometry import crop, flip_left_right, flip_top_bottom, resize
from fcn_jax.data.transforms import Augment
from fcn_jax.errors import ConfigError

sides = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


TABLES = {
    "rotate": {"degrees": 40, "probability": 0.9},
    "crop": {"tries": 3},
    "vertical_flip": {},
    "photometric": {},
    "blur": {},
    "jpeg": {},
    "cutout": {},
}


def tables(**chosen: Any) -> AugmentConfig:
    return parse({"augment": chosen}).augment


ALL = tables(**TABLES)


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
    augment = Augment(
        (out_h, out_w),
        (low, low * more),
        flip,
        strength,
        strength,
        strength,
        strength / 2,
        tables=ALL,
    )
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
    for flip, axis in ((flip_left_right, 1), (flip_top_bottom, 0)):
        once = flip(original)
        assert np.array_equal(once.image, np.flip(original.image, axis))
        assert np.array_equal(once.mask, np.flip(original.mask, axis))
        twice = flip(once)
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
    augment = Augment((16, 16), (0.5, 2.0), True, 0.5, 0.5, 0.5, 0.5, tables=ALL)
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


def test_error_names_all_wrong_values() -> None:
    with pytest.raises(ConfigError) as caught:
        Augment((0, 320), (2.0, 1.0), brightness=1.5, saturation=-0.1, hue=0.6, fill=(0, 0, 256))
    for part in (
        "crop_size = (0, 320)",
        "scale_range = (2.0, 1.0)",
        "brightness = 1.5",
        "saturation = -0.1",
        "hue = 0.6",
        "fill = (0, 0, 256)",
    ):
        assert part in str(caught.value)
    assert "contrast" not in str(caught.value)


def test_switching_a_transform_on_does_not_change_the_random_numbers_of_others() -> None:
    whole = example(60, 80)

    def masks(*names: str) -> np.ndarray:
        augment = Augment(
            (24, 32), (0.5, 2.0), tables=tables(**{name: TABLES[name] for name in names})
        )
        return np.stack([augment(whole, np.random.default_rng(s)).mask for s in range(20)])

    plain = masks()
    assert np.array_equal(masks("photometric", "blur", "jpeg"), plain)
    for name in ("rotate", "vertical_flip", "cutout"):
        assert not np.array_equal(masks(name), plain)
    cut = masks("cutout")
    assert np.array_equal(cut[cut != IGNORE_INDEX], plain[cut != IGNORE_INDEX])
    both, rotated = masks("rotate", "cutout"), masks("rotate")
    holes = (cut == IGNORE_INDEX) & (plain != IGNORE_INDEX)
    assert np.array_equal(both, np.where(holes, IGNORE_INDEX, rotated))


def test_shorter_side_is_drawn_from_its_range() -> None:
    seen = set()

    def resized(factor: float) -> Example:
        assert factor == 1
        return example(30, 41)

    augment = Augment((80, 80), flip=False, tables=tables(resize={"shorter_side": [15, 20]}))
    for seed in range(60):
        mask = augment.from_resized(resized, np.random.default_rng(seed)).mask
        rows, columns = (np.flatnonzero((mask != IGNORE_INDEX).any(axis=a)) for a in (1, 0))
        assert len(columns) == round(41 * len(rows) / 30)
        seen.add(len(rows))
    assert seen == set(range(15, 21))


def test_class_aware_crops_avoid_a_frequent_class() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[70:, 70:] = 1
    whole = Example("x", np.zeros((100, 100, 3), np.uint8), mask)

    def largest(**chosen: Any) -> np.ndarray:
        augment = Augment((30, 30), tables=tables(**chosen))
        shares = [augment(whole, np.random.default_rng(s)).mask.mean() for s in range(50)]
        return np.maximum(shares, 1 - np.array(shares))

    assert (largest() <= 0.75).mean() < 0.4
    assert (largest(crop={"tries": 100}) <= 0.75).mean() > 0.9


@pytest.mark.parametrize("channels", [1, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_geometry_blur_and_cutout_accept_any_channels(channels: int, dtype: Any) -> None:
    mask = example(30, 40).mask
    image = np.repeat(mask[..., None], channels, axis=-1).astype(dtype)
    names = ("rotate", "crop", "vertical_flip", "blur", "cutout")
    augment = Augment((36, 24), (0.5, 2), tables=tables(**{name: TABLES[name] for name in names}))
    for seed in range(8):
        found = augment(Example("x", image, mask), np.random.default_rng(seed))
        assert found.image.shape == (36, 24, channels)
        assert found.image.dtype == dtype
        first = found.image[..., :1]
        # OpenCV computes channels in other orders.
        assert np.abs(found.image - first.astype(float)).max() < (1e-4 if dtype != np.uint8 else 2)


def test_color_transforms_refuse_other_channels_by_their_keys() -> None:
    mask = example(30, 40).mask
    four = Example("im4", np.zeros((30, 40, 4), np.uint8), mask)
    augment = Augment((8, 8), brightness=0.1, hue=0.1, tables=tables(photometric={}, jpeg={}))
    with pytest.raises(ConfigError) as caught:
        augment(four, np.random.default_rng(0))
    assert str(caught.value) == (
        "data.brightness, data.hue, augment.photometric, augment.jpeg: only for RGB images of 8 "
        "bits, and 'im4' has 4 channels of uint8; leave out these settings"
    )
    gray = Example("gray", np.zeros((30, 40, 1), np.uint8), mask)
    Augment((8, 8), tables=tables(jpeg={}))(gray, np.random.default_rng(0))


def test_photograph_is_not_changed_in_place() -> None:
    whole = example(16, 24)
    before = whole.image.copy(), whole.mask.copy()
    augment = Augment((16, 24), flip=False, tables=tables(cutout={"probability": 1}))
    assert (augment(whole, np.random.default_rng(0)).mask == IGNORE_INDEX).any()
    assert np.array_equal(whole.image, before[0])
    assert np.array_equal(whole.mask, before[1])
