"""Colors for labels."""

from __future__ import annotations


def voc_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colors, black first, by PASCAL VOC's rule: the label's bits spread over the channels' high bits.

    The devkit's `VOClabelcolormap`.

    Args:
        count: how many, 0 to 256.

    Returns:
        u8 RGB by label.
    """
    colors = []
    for label in range(count):
        rgb = [0, 0, 0]
        for bit in range(8):
            rgb[bit % 3] |= (label >> bit & 1) << (7 - bit // 3)
        colors.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colors)
