import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fcn_jax.report import charts
from fcn_jax.report.charts import Curve, chart


def paths(svg, kind="line"):
    """The points of each drawn path of a kind, by segments."""
    found = re.findall(rf'<path class="{kind} c\d[^"]*" d="([^"]*)"', svg)
    return [
        [
            [tuple(map(float, point.split())) for point in segment.split("L")]
            for segment in path.split("M")[1:]
        ]
        for path in found
    ]


def test_curves_are_drawn_at_the_place_of_their_values():
    drawn = chart("x", [Curve(0, "a", [0, 5, 10], [0.0, 5.0, 10.0])])
    (((left, bottom), (middle, half), (right, top)),) = paths(drawn.svg)[0]
    assert (left, right) == (drawn.data["left"], drawn.data["right"])
    assert middle == pytest.approx((left + right) / 2)
    assert half == pytest.approx((bottom + top) / 2, abs=0.11)
    assert drawn.data["top"] <= top < bottom <= drawn.data["bottom"]
    assert drawn.last == [(0, "a", "10")]
    assert not drawn.data["log"]


@example([1.0, 5e-324])
@given(
    st.lists(
        st.none() | st.floats(-1e6, 1e6) | st.floats(1e-12, 1e12), min_size=1, max_size=30
    ).filter(lambda values: any(v is not None for v in values))
)
def test_scripts_find_points_where_they_are_drawn(values):
    """The page's script computes places from the data by the formula that is repeated here."""
    drawn = chart("x", [Curve(0, "a", list(range(1, len(values) + 1)), values)])
    data = drawn.data
    drawn_points = [point for segment in paths(drawn.svg)[0] for point in segment]
    known = [
        (s, v) for s, v in zip(data["curves"][0]["steps"], values, strict=True) if v is not None
    ]
    assert len(drawn_points) == len(known)
    for (step, value), (left, top) in zip(known, drawn_points, strict=True):
        scaled = math.log10(value) if data["log"] else value
        share = (scaled - data["low"]) / (data["high"] - data["low"])
        across = (step - data["first"]) / (data["last"] - data["first"])
        assert left == pytest.approx(
            data["left"] + across * (data["right"] - data["left"]), abs=0.06
        )
        assert top == pytest.approx(
            data["bottom"] - share * (data["bottom"] - data["top"]), abs=0.06
        )
        assert data["top"] - 0.1 <= top <= data["bottom"] + 0.1


def test_undefined_values_are_gaps():
    drawn = chart("x", [Curve(0, "a", [1, 2, 3, 4], [1.0, None, 2.0, 3.0])])
    assert [len(segment) for segment in paths(drawn.svg)[0]] == [1, 2]
    assert drawn.data["curves"][0]["values"] == [1.0, None, 2.0, 3.0]
    assert chart("x", [Curve(0, "a", [1], [None]), Curve(1, "b", [], [])]) is None


def test_runs_have_colors_of_their_own():
    curves = [Curve(run, str(run), [1, 2], [1.0, 2.0]) for run in (0, 3, 9)]
    svg = chart("x", curves).svg
    assert re.findall(r'class="(line[^"]*)"', svg) == ["line c0", "line c3", "line c1 dashed"]


def test_wide_ranges_have_a_logarithmic_axis():
    drawn = chart("x", [Curve(0, "a", [1, 2, 3], [1e-4, 1e-2, 1.0])])
    assert drawn.data["log"]
    ((_, first), (_, second), (_, third)) = paths(drawn.svg)[0][0]
    assert first - second == pytest.approx(second - third, abs=0.11)
    assert re.findall(r"text-anchor=end>([^<]+)<", drawn.svg) == [
        *("0.0001", "0.001", "0.01", "0.1", "1"),
    ]
    assert not chart("x", [Curve(0, "a", [1, 2], [0.0, 1.0])]).data["log"]


def test_single_value_is_a_dot():
    svg = chart("x", [Curve(2, "a", [7], [0.5])]).svg
    assert svg.count('<circle class="dot c2"') == 1


def test_small_differences_are_not_drawn_as_large_ones():
    drawn = chart("x", [Curve(0, "a", [1, 2], [0.5183, 0.5186])])
    assert drawn.data["high"] - drawn.data["low"] > 0.02


def test_charts_share_the_axis_of_the_longest_run():
    drawn = chart("x", [Curve(0, "a", [1, 2], [0.0, 1.0])], steps=50)
    assert (drawn.data["first"], drawn.data["last"]) == (0, 50)
    steps = re.findall(r"text-anchor=middle>([^<]+)<", drawn.svg)
    assert steps == ["0", "20", "40"]
    short = chart("x", [Curve(0, "a", [1, 2], [0.0, 1.0])], steps=2).svg
    assert re.findall(r"text-anchor=middle>([^<]+)<", short) == ["0", "1", "2"]


def test_noisy_curves_are_smoothed_over_the_raw_values():
    values = [1.0 + (-1) ** i for i in range(200)]
    drawn = chart("x", [Curve(0, "a", list(range(200)), values)], noisy=True)
    raw, smooth = (paths(drawn.svg, kind)[0][0] for kind in ("raw", "line"))
    assert raw[0] == smooth[0]
    assert raw[-1] == smooth[-1], "means are centered, over fewer values at the ends"

    def spread(points):
        tops = [top for _, top in points[50:150]]
        return max(tops) - min(tops)

    assert spread(smooth) < spread(raw) / 5
    rising = chart(
        "x", [Curve(0, "a", list(range(200)), [float(i) for i in range(200)])], noisy=True
    )
    assert paths(rising.svg, "raw") == paths(rising.svg), "a straight line does not move"
    assert paths(chart("x", [Curve(0, "a", [1, 2], [1.0, 2.0])], noisy=True).svg, "raw") == []


def test_long_curves_are_means_over_equal_numbers_of_records():
    drawn = chart("x", [Curve(0, "a", list(range(1, 1001)), [float(i) for i in range(1000)])])
    (curve,) = drawn.data["curves"]
    assert drawn.means
    assert curve["steps"][:2] == [3, 6]
    assert curve["values"][:2] == [1.0, 4.0]
    assert curve["steps"][-1] == 1000
    assert len(curve["steps"]) <= 400


def test_title_is_escaped():
    assert "<b>" not in chart("<b>", [Curve(0, "a", [1], [1.0])]).svg


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_numbers_within_the_range(low, width):
    high = low + width
    if high <= low:
        return
    ticks = charts._ticks(low, high, 5)
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert 1 <= len(ticks) <= 12


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (1e-5, "1e-5"), (20000, "20000"), (0.5, "0.5"), (0, "0")],
)
def test_numbers_are_short(value, text):
    assert charts.number(value) == text
