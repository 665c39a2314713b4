"""Mean and deviation of channels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.api import Classes, Example, Record, Source
from fcn_jax.data.moments import channel_moments


class Images(Source):
    """A source of given images."""

    classes = Classes(("a",), ((0, 0, 0),))

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Record(str(index), b"", b"")

    def decode(self, record):
        image = self.images[int(record.id)]
        return Example(record.id, image, np.zeros(image.shape[:2], np.uint8))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4))
def test_moments_are_those_of_all_pixels_together(sizes):
    rng = np.random.default_rng(len(sizes))
    images = [rng.normal(1e6, [1e-1, 3.0], (*size, 2)).astype(np.float32) for size in sizes]
    mean, std = channel_moments(Images(images))
    pixels = np.concatenate([image.reshape(-1, 2) for image in images]).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-6, atol=1e-9)


def test_8_bits_do_not_overflow():
    image = np.full((40, 40, 1), 255, np.uint8)
    image[:20] = 253
    assert channel_moments(Images([image])) == (pytest.approx([254.0]), pytest.approx([1.0]))
