"""The confusion matrix as inline SVG, and the most frequent confusions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

_MOST = 30
"""Classes of a drawn matrix. Others are added up."""
_WITH_NUMBERS = 12
_LONGEST = 18
"""Letters of a name that are shown."""


def largest(
    counts: np.ndarray, names: Sequence[str], most: int = _MOST
) -> tuple[np.ndarray, list[str]]:
    """Return the matrix of the classes with most pixels, in their order; others are one class.

    Args:
        counts: i64[K,K], pixels by true class (rows) and predicted class.
        names: K names.
        most: largest number of classes of the result.
    """
    if len(names) <= most:
        return counts, list(names)
    order = np.argsort(-(counts.sum(0) + counts.sum(1)), kind="stable")
    kept, rest = np.sort(order[: most - 1]), order[most - 1 :]
    groups = np.zeros((most, len(names)), np.int64)
    groups[np.arange(most - 1), kept] = 1
    groups[-1, rest] = 1
    return groups @ counts @ groups.T, [*(names[k] for k in kept), f"{len(rest)} other classes"]


def matrix(counts: np.ndarray, names: Sequence[str]) -> str:
    """Draw a matrix; each row is divided by its sum.

    Args:
        counts: i64[K,K].
        names: K names.

    Returns:
        An `<svg>` element. Cells have the classes `right` and `wrong`. They are more opaque the
        larger their share, those of errors by its square root.
    """
    size = len(names)
    cell = max(18, min(44, 420 // size))
    side = cell * size
    short = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    left, whole = 16 + 7 * max(map(len, short)), 18 + 7 * max(map(len, short)) + side
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    parts = [
        f'<svg class=confusion viewBox="0 0 {whole} {whole}" role=img '
        f'aria-label="confusion matrix" style="max-width:{whole}px;min-width:{0.6 * whole:.0f}px">'
        f"<rect class=frame x={left} y={left} width={side} height={side} />"
    ]
    for index, name in enumerate(map(escape, short)):
        middle, edge = left + cell * (index + 0.5), left - 6
        parts.append(
            f"<text x={edge} y={middle:.0f} dy=4 text-anchor=end>{name}</text>"
            f'<text transform="translate({middle + 4:.0f} {edge}) rotate(-90)">{name}</text>'
        )
    for row in range(size):
        for column in range(size):
            share = shares[row, column]
            if share < 0.0005:
                continue
            kind = "right" if row == column else "wrong"
            opacity = share if kind == "right" else share**0.5
            x, y = left + cell * column, left + cell * row
            title = (
                f"{names[row]} predicted as {names[column]}: {share:.1%} of its pixels "
                f"({counts[row, column]:,})"
            )
            parts.append(
                f"<g><title>{escape(title)}</title><rect class={kind} x={x} y={y} "
                f"width={cell} height={cell} fill-opacity={opacity:.3f} />"
            )
            if size <= _WITH_NUMBERS:
                shade = "light" if opacity > 0.6 else "dark"
                parts.append(
                    f"<text class={shade} x={x + cell / 2:.0f} y={y + cell / 2:.0f} dy=4 "
                    f"text-anchor=middle>{100 * share:.0f}</text>"
                )
            parts.append("</g>")
    return "".join([*parts, "</svg>"])


def confusions(
    counts: np.ndarray, names: Sequence[str], most: int = 8
) -> list[tuple[str, str, str, str]]:
    """Return the errors with most pixels, the largest first.

    Returns:
        True class, predicted class, share of the true class's pixels, share of all wrong pixels.
    """
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    total, rows = max(int(wrong.sum()), 1), []
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        row, column = divmod(int(flat), len(names))
        pixels = int(wrong[row, column])
        if pixels:
            share = pixels / int(counts[row].sum())
            rows.append((names[row], names[column], f"{share:.1%}", f"{pixels / total:.1%}"))
    return rows
