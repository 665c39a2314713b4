"""The crop is chosen by its most frequent class."""

import numpy as np
import pytest

from fcn_jax.api import IGNORE_INDEX
from fcn_jax.config.augment import CropConfig
from fcn_jax.data.augment.class_crop import choose, largest_share


@pytest.mark.parametrize(
    ("labels", "share"),
    [
        ([0, 0, 0, 1], 0.75),
        ([0, 1, IGNORE_INDEX, IGNORE_INDEX], 0.5),
        ([7], 1.0),
        ([IGNORE_INDEX] * 3, 2.0),
        ([254, 254, 3], 2 / 3),
    ],
)
def test_share_leaves_out_ignored_pixels(labels, share):
    assert largest_share(np.array([labels], np.uint8)) == pytest.approx(share)
    assert largest_share(np.array([labels] * 2, np.uint8)[::2]) == pytest.approx(share)


class Windows:
    """Windows in turn, whatever the place, and the places that were asked for."""

    def __init__(self, *shares):
        self.places = []
        self._masks = iter([np.array([[0] * s + [1] * (10 - s)], np.uint8) for s in shares])

    def __call__(self, place):
        self.places.append(place)
        return next(self._masks)


def chosen(windows, **settings):
    return choose(windows, (0.1, 0.2), CropConfig(**settings), np.random.default_rng(0))


def test_keeps_the_first_place_if_it_fits():
    windows = Windows(7)
    assert chosen(windows) == (0.1, 0.2)
    assert windows.places == [(0.1, 0.2)]


def test_stops_at_the_first_place_that_fits():
    windows = Windows(10, 9, 6, 5)
    assert chosen(windows) == windows.places[2]
    assert len(windows.places) == 3


def test_takes_the_smallest_share_after_the_last_try():
    windows = Windows(10, 9, 8, 9)
    assert chosen(windows, tries=4, max_class_share=0.5) == windows.places[2]
    assert len(windows.places) == 4
