"""The drawn scenes: fixed by their seed, of all classes, with a void border of the right width."""

import cv2
import numpy as np
import pytest

from fcn_jax.api import IGNORE_INDEX
from fcn_jax.data.datasets.shapes import SHAPES_CLASSES, draw_scene


def test_scene_follows_from_its_seed() -> None:
    image, mask = draw_scene(3)
    again = draw_scene(3)
    other = draw_scene(4)
    assert image.shape == (192, 192, 3)
    assert mask.shape == (192, 192)
    assert image.dtype == mask.dtype == np.uint8
    assert np.array_equal(image, again[0])
    assert np.array_equal(mask, again[1])
    assert not np.array_equal(mask, other[1])


@pytest.mark.parametrize("size", [(64, 64), (70, 201)])
def test_scene_can_have_any_size(size: tuple[int, int]) -> None:
    image, mask = draw_scene(0, size)
    assert image.shape == (*size, 3)
    assert mask.shape == size


def test_every_class_is_common_and_background_is_at_most_three_quarters() -> None:
    counts = np.sum(
        [np.bincount(draw_scene(seed)[1].ravel(), minlength=256) for seed in range(60)], axis=0
    )
    shares = counts / counts.sum()
    assert counts[len(SHAPES_CLASSES) : IGNORE_INDEX].sum() == 0
    assert 0.5 < shares[0] < 0.75
    assert (shares[1 : len(SHAPES_CLASSES)] > 0.02).all()
    assert 0.03 < shares[IGNORE_INDEX] < 0.1


def test_void_separates_labels_and_is_narrow() -> None:
    for seed in range(5):
        mask = draw_scene(seed)[1]
        for first, second in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            touching = (first != second) & (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
            assert not touching.any()
        # Nothing of the void is left after peeling off two pixels: it is at most four wide, where
        # outlines cross.
        assert (
            cv2.erode((mask == IGNORE_INDEX).astype(np.uint8), np.ones((7, 7), np.uint8)).sum()
            < 0.001 * mask.size
        )
