import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.eval.buckets import Buckets

SIDES = st.integers(1, 2000)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=60))
def test_an_image_fits_and_the_number_is_bounded(images):
    buckets = Buckets()
    for height, width in images:
        outer = buckets.fit(height, width)
        assert outer[0] >= height
        assert outer[1] >= width
    # Each one past `most` is half as high and wide again as all before: 2000 is reached from 64 in
    # 9 steps.
    assert len(buckets.sizes) <= buckets.most + 9


def test_images_of_one_size_waste_nothing():
    buckets = Buckets()
    assert {buckets.fit(360, 480) for _ in range(10)} == {(360, 480)}


def test_photographs_of_fifty_sizes_share_six_programs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        buckets = Buckets()
        for _ in range(50):
            short, long = rng.integers(280, 380), rng.integers(380, 520)
            buckets.fit(*((short, long) if rng.random() < 0.6 else (long, short)))
        assert len(buckets.sizes) <= 6


def test_a_small_image_is_not_put_into_a_large_array_while_there_is_room():
    buckets = Buckets()
    buckets.fit(1000, 1000)
    assert buckets.fit(100, 130) == (128, 192)
    assert buckets.fit(120, 140) == (128, 192)
