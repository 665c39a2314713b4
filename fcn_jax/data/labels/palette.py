"""Colors for labels."""

from __future__ import annotations

VOC_BORDER = (224, 224, 192)
"""RGB color of the void border along outlines in PASCAL VOC's masks."""


def voc_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colors by PASCAL VOC's rule, black first.

    The bits of a label are spread over the high bits of the channels, as in the devkit's
    `VOClabelcolormap`.

    Args:
        count: the number of colors, 0 to 256.

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
