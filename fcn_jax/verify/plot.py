"""Plots of a report as inline SVG, whose colors follow the page's style."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fcn_jax.verify.criterion import Comparison, Section

_LEFT, _TOP, _HEIGHT = 52, 22, 210
_STEP = 13
"""Smallest distance of two tensors, in pixels."""

_WIDTH = 1000
_LABELS = 150
"""Height of the names below the axis, in pixels."""


def errors(section: Section) -> str:
    """The errors of a section's tensors against their limits, on a logarithmic axis.

    Args:
        section: at least one comparison; they are drawn in its order.

    Returns:
        An `<svg>` element. Its parts have the classes `jax`, `torch`, `limit` and `failed`.
    """
    comparisons = section.comparisons
    step = max(_STEP, (_WIDTH - _LEFT - 10) / len(comparisons))
    width = round(_LEFT + step * len(comparisons) + 10)
    low, high = _range(comparisons)

    def y(value: float) -> str:
        # An error of 0 is drawn at the bottom, a fault at the top.
        power = high if math.isnan(value) else math.log10(min(max(value, 1e-30), 1e30))
        share = (min(max(power, low), high) - low) / (high - low)
        return f"{_TOP + _HEIGHT * (1 - share):.1f}"

    parts = [
        f'<svg class=plot role=img aria-label="errors of {_escape(section.title)}" '
        f'viewBox="0 0 {width} {_TOP + _HEIGHT + _LABELS}" style="min-width:{width * 0.7:.0f}px">'
    ]
    for power in range(low, high + 1):
        parts.append(
            f"<line class=grid x1={_LEFT} x2={width - 5} y1={y(10.0**power)} y2={y(10.0**power)} />"
            f"<text x={_LEFT - 6} y={y(10.0**power)} dy=4 text-anchor=end>1e{power}</text>"
        )
    path = []
    for number, c in enumerate(comparisons):
        left, middle = _LEFT + step * number, _LEFT + step * (number + 0.5)
        path.append(f"{'M' if number == 0 else 'L'}{left:.1f} {y(c.limit)}H{left + step:.1f}")
        title = f"<title>{_escape(str(c))}</title>"
        if not c.equal:
            parts.append(
                f"<rect class=failed x={left:.1f} y={_TOP} width={step:.1f} height={_HEIGHT}>"
                f"{title}</rect>"
            )
        parts.append(
            f"<circle class=torch cx={middle:.1f} cy={y(c.reference_error)} r=3>{title}</circle>"
            f"<circle class=jax cx={middle:.1f} cy={y(c.error)} r=3>{title}</circle>"
            f'<text class=name transform="translate({middle + 3:.1f} {_TOP + _HEIGHT + 8}) '
            f'rotate(-90)" text-anchor=end>{_escape(_short(c.name))}</text>'
        )
    parts.append(f'<path class=limit d="{"".join(path)}" />')
    parts += _legend(section.factor)
    return "".join([*parts, "</svg>"])


def _range(comparisons: Iterable[Comparison]) -> tuple[int, int]:
    """Powers of ten below and above all errors and limits that can be drawn."""
    drawn = [
        value
        for c in comparisons
        for value in (c.error, c.reference_error, c.limit)
        if math.isfinite(value) and value > 0
    ]
    low = math.floor(math.log10(max(min(drawn, default=1e-7), 1e-9)))
    high = math.ceil(math.log10(min(max(drawn, default=1e-6), 1e2)))
    return low, max(high, low + 1)


def _legend(factor: float) -> list[str]:
    entries = (
        ("jax", "JAX"),
        ("torch", "PyTorch, worst run"),
        ("limit", f"allowed: {factor:g} times PyTorch's"),
    )
    parts, x = [], _LEFT
    for kind, text in entries:
        mark = f"<circle class={kind} cx={x + 6} cy=8 r=4 />"
        if kind == "limit":
            mark = f'<path class={kind} d="M{x} 8h14" />'
        parts.append(f"{mark}<text x={x + 18} y=12>{text}</text>")
        x += 40 + 7 * len(text)
    return parts


def _short(name: str) -> str:
    """A name without the prefix that most names share; the end of a long one."""
    name = name.removeprefix("backbone.")
    return name if len(name) <= 26 else f"...{name[-24:]}"


def _escape(text: str) -> str:
    table = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
    return "".join(table.get(character, character) for character in text)
