import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fcn_jax.report import confusion

COUNTS = np.array([[90, 10, 0], [30, 10, 20], [0, 0, 0]])
NAMES = ["road", "car", "<b>"]


def test_rows_are_divided_by_their_sums():
    svg = confusion.matrix(COUNTS, NAMES)
    assert "<title>road predicted as road: 90.0% of its pixels (90)</title>" in svg
    assert "<title>car predicted as road: 50.0% of its pixels (30)</title>" in svg
    cells = re.findall(r"<rect class=(right|wrong) x=(\d+) y=(\d+) .*?fill-opacity=([\d.]+)", svg)
    assert [(kind, float(opacity)) for kind, _, _, opacity in cells] == [
        ("right", 0.9),
        ("wrong", 0.316),  # the square root of 0.1
        ("wrong", 0.707),
        ("right", 0.167),
        ("wrong", 0.577),
    ]
    (_, x0, y0, _), (_, x1, y1, _), (_, x2, y2, _), *_ = cells
    assert x0 == x2 < x1
    assert y0 == y1 < y2
    assert "<b>" not in svg


def test_largest_errors_come_first():
    assert confusion.confusions(COUNTS, NAMES) == [
        ("car", "road", "50.0%", "50.0%"),
        ("car", "<b>", "33.3%", "33.3%"),
        ("road", "car", "10.0%", "16.7%"),
    ]
    assert len(confusion.confusions(COUNTS, NAMES, most=2)) == 2
    assert confusion.confusions(np.diag([3, 4]), ["a", "b"]) == []


@given(arrays(np.int64, (6, 6), elements=st.integers(0, 99)), st.integers(2, 8))
def test_classes_with_few_pixels_are_added_up(counts, most):
    names = list("abcdef")
    kept, labels = confusion.largest(counts, names, most)
    assert kept.sum() == counts.sum()
    assert kept.shape == (len(labels), len(labels))
    assert len(labels) == min(most, 6)
    if most < 6:
        *own, rest = labels
        assert rest == f"{6 - len(own)} other classes"
        indices = [names.index(name) for name in own]
        assert indices == sorted(indices)
        np.testing.assert_array_equal(kept[:-1, :-1], counts[np.ix_(indices, indices)])
        size = counts.sum(0) + counts.sum(1)
        others = [i for i in range(6) if i not in indices]
        assert min(size[indices]) >= max(size[others])
    else:
        np.testing.assert_array_equal(kept, counts)
