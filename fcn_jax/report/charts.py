"""Curves as inline SVG, whose colors follow the page's style."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 26
_POINTS = 400
"""Points of a curve. Longer ones are drawn by means over equal numbers of records."""
_NOISY = 40
"""Curves of a noisy value with more points are drawn smoothed, over the raw values."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A value of a run over its steps.

    Attributes:
        run: number of the run on the page.
        name: name of the run.
        steps: steps, rising.
        values: finite values, or None for gaps; as many as steps.
    """

    run: int
    name: str
    steps: Sequence[int]
    values: Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        title: what it shows.
        svg: an `<svg>` element; curves have the classes `line` and `c0`, `c1` ... of their run.
        data: what the page's script needs to show values, ready for JSON.
        last: name of each run and its last value.
        means: whether points are means of several records.
    """

    title: str
    svg: str
    data: dict[str, Any]
    last: list[tuple[int, str, str]]
    means: bool


def chart(
    title: str, curves: Sequence[Curve], *, steps: int = 1, noisy: bool = False
) -> Chart | None:
    """Draw the curves of a value; None if there is no value.

    The axis is logarithmic if all values are above 1e-300 and differ by a factor of more than 100.

    Args:
        title: what the values are.
        curves: at most one of each run.
        steps: the axis goes from 0 to this step, or farther if a curve does.
        noisy: draw long curves smoothed, over the raw values.
    """
    drawn = [_shortened(curve) for curve in curves if any(v is not None for v in curve.values)]
    if not drawn:
        return None
    values = [value for curve in drawn for value in curve.values if value is not None]
    first, last = 0, max(steps, *(curve.steps[-1] for curve in drawn))
    log = min(values) > 1e-300 and max(values) > 100 * min(values)
    low, high, ticks = _axis(min(values), max(values), log)

    def x(step: float) -> float:
        return _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        share = (_scaled(value, log) - low) / (high - low)
        return _TOP + (1 - min(max(share, 0.0), 1.0)) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg class=chart viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img tabindex=0 '
        f'aria-label="{escape(title)} over steps">'
    ]
    for tick in ticks:
        at = y(tick)
        parts.append(
            f"<line class=grid x1={_LEFT} x2={_WIDTH - _RIGHT} y1={at:.1f} y2={at:.1f} />"
            f"<text x={_LEFT - 6} y={at:.1f} dy=4 text-anchor=end>{number(tick)}</text>"
        )
    for tick in _ticks(first, last, 4):
        if tick != round(tick):
            continue
        parts.append(
            f"<text x={x(tick):.1f} y={_HEIGHT - 8} text-anchor=middle>{number(tick)}</text>"
        )
    for curve in drawn:
        points = [
            (x(step), None if value is None else y(value))
            for step, value in zip(curve.steps, curve.values, strict=True)
        ]
        if noisy and len(points) > _NOISY:
            smooth = [None if v is None else y(v) for v in _smoothed(curve.values)]
            parts.append(_path(points, curve.run, "raw"))
            points = [(left, v) for (left, _), v in zip(points, smooth, strict=True)]
        parts.append(_path(points, curve.run, "line"))
        if sum(v is not None for _, v in points) == 1:  # a path with one point shows nothing
            parts += [
                f'<circle class="dot c{curve.run % 8}" cx={left:.1f} cy={v:.1f} r=3 />'
                for left, v in points
                if v is not None
            ]
    parts.append("</svg>")
    return Chart(
        title=title,
        svg="".join(parts),
        data={
            **{"left": _LEFT, "right": _WIDTH - _RIGHT, "top": _TOP, "bottom": _HEIGHT - _BOTTOM},
            **{"width": _WIDTH, "first": first, "last": last, "low": low, "high": high, "log": log},
            "curves": [
                {
                    "run": curve.run,
                    "name": curve.name,
                    "steps": list(curve.steps),
                    "values": [None if v is None else float(f"{v:.6g}") for v in curve.values],
                }
                for curve in drawn
            ],
        },
        last=[
            (
                curve.run,
                curve.name,
                number(next(v for v in reversed(curve.values) if v is not None)),
            )
            for curve in drawn
        ],
        means=any(len(curve.values) > _POINTS for curve in curves),
    )


def _last(values: Sequence[float | None]) -> float:
    return next(value for value in reversed(values) if value is not None)


def number(value: float) -> str:
    """Return a number with four digits, without trailing zeros; whole numbers in full."""
    if value == round(value) and abs(value) < 1e7:
        return f"{value:.0f}"
    text = f"{value:.4g}"
    if "e" in text:
        mantissa, _, power = text.partition("e")
        return f"{mantissa}e{int(power)}"
    return text


def _scaled(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _axis(low: float, high: float, log: bool) -> tuple[float, float, list[float]]:
    """Return the ends of an axis, scaled, and its ticks."""
    if log:
        bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = max(1, (top - bottom) // 5)
        return bottom, top, [10.0**power for power in range(bottom, top + 1, every)]
    least = max(abs(low), abs(high)) / 20 or 1.0  # small differences are not drawn as large ones
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    ticks = _ticks(low, high, 5)
    margin = (high - low) * 0.04
    return min(low - margin, ticks[0]), max(high + margin, ticks[-1]), ticks


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers between two numbers."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * index for index in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


def _path(points: Iterable[tuple[float, float | None]], run: int, kind: str) -> str:
    parts, pen = [], "M"
    for left, top in points:
        if top is None:
            pen = "M"
            continue
        parts.append(f"{pen}{left:.1f} {top:.1f}")
        pen = "L"
    dashed = " dashed" if run >= 8 else ""
    return f'<path class="{kind} c{run % 8}{dashed}" d="{"".join(parts)}" />'


def _smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Return centered means over a twelfth of the values; over fewer at the ends."""
    most = len(values) // 24
    result: list[float | None] = []
    for index, value in enumerate(values):
        half = min(most, index, len(values) - 1 - index)  # a lopsided mean would be biased
        known = [v for v in values[index - half : index + half + 1] if v is not None]
        result.append(None if value is None else sum(known) / len(known))
    return result


def _shortened(curve: Curve) -> Curve:
    """Return means over equal numbers of records if there are many."""
    every = math.ceil(len(curve.values) / _POINTS)
    if every <= 1:
        return curve
    steps, values = [], list[float | None]()
    for first in range(0, len(curve.values), every):
        known = [v for v in curve.values[first : first + every] if v is not None]
        steps.append(curve.steps[min(first + every, len(curve.steps)) - 1])
        values.append(sum(known) / len(known) if known else None)
    return dataclasses.replace(curve, steps=steps, values=values)
