"""Axes of arrays on both sides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.verify.layout import best_layout, layouts, layouts_of_another_size

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)


@given(SHAPES)
def test_layouts_are_invertible(shape):
    x = np.arange(np.prod(shape)).reshape(shape)
    moved = np.moveaxis(x, 1, -1) if x.ndim > 1 else x
    for jax in (x, moved):
        found = layouts(x.shape, jax.shape)
        assert found
        for layout in found:
            np.testing.assert_array_equal(layout.to_torch(layout.to_jax(x)), x)


@pytest.mark.parametrize(
    ("torch", "jax", "moved"),
    [
        ((2, 3, 8, 6), (2, 8, 6, 3), True),
        ((2, 8, 6, 3), (2, 8, 6, 3), False),
        ((2, 3, 8, 6), (2, 48, 3), True),
        ((2, 48, 3), (2, 8, 6, 3), False),
        ((2, 3, 7), (2, 7, 3), True),
        ((2, 8, 6, 3), (2, 3, 8, 6), True),
        ((5,), (5,), False),
        ((2, 5, 12), (2, 5, 3, 4), False),
        ((2, 5, 3, 4), (2, 5, 12), False),
        ((2, 12, 5), (2, 5, 3, 4), True),
    ],
)
def test_shapes_decide(torch, jax, moved):
    x = np.random.default_rng(0).standard_normal(torch)
    (layout,) = layouts(torch, jax)
    assert layout.moved == moved
    assert layout.to_jax(x).shape == jax
    np.testing.assert_array_equal(layout.to_torch(layout.to_jax(x)), x)


@pytest.mark.parametrize("moved", [False, True])
def test_values_decide_where_both_fit(moved):
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 4))
    layout = best_layout(x, np.moveaxis(x, 1, -1) if moved else x)
    assert layout.moved == moved


def test_other_shapes_do_not_fit():
    assert layouts((2, 3, 8, 8), (2, 8, 8, 4)) == []
    assert layouts((2, 3, 8, 6), (2, 6, 8, 3)) == []
    assert layouts((2, 3, 8), (2, 6, 2, 2)) == [], "an axis of heads splits the last axis only"
    assert best_layout(np.zeros((2, 3)), np.zeros((3, 2))) is None


def test_finds_the_layout_of_another_size():
    (layout,) = layouts_of_another_size((2, 3, 8, 6), (2, 4, 3, 3))
    assert layout.to_jax(np.zeros((2, 3, 8, 6))).shape == (2, 8, 6, 3)


def test_finds_the_layout_of_another_size_with_channels_second():
    (layout,) = layouts_of_another_size((2, 8, 6, 5), (2, 5, 4, 3))
    assert layout.to_jax(np.zeros((2, 8, 6, 5))).shape == (2, 5, 8, 6)
