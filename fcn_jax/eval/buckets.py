"""Which array an image is put into, so that few compiled programs serve images of many sizes."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class Buckets:
    """Array sizes in use, opened as images need them.

    The first is the first image's own size: data of one size waste nothing. Later ones are rounded
    up, and an image goes into an open one that is not much too large. Once there are `most`, any
    that holds the image will do, and where none does, one is opened that is half as high and wide
    again as all before: so the number grows with the logarithm of the largest image, not with the
    number of sizes.
    """

    def __init__(self, most: int = 4, step: int = 64, waste: float = 1.6) -> None:
        """Set the bounds.

        Args:
            most: how many are opened for a good fit.
            step: height and width are rounded up to multiples of it, in pixels; two strides of the
                network's deepest feature at least.
            waste: largest ratio of the array's area to the image's that counts as a good fit, above
                1.
        """
        self.most, self.step, self.waste = most, step, waste
        self.sizes: list[tuple[int, int]] = []

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the array for an image of that size."""
        holding = [(h, w) for h, w in self.sizes if h >= height and w >= width]
        best = min(holding, key=lambda size: size[0] * size[1], default=None)
        few = len(self.sizes) < self.most
        if best and (not few or best[0] * best[1] <= self.waste * height * width):
            return best
        if not self.sizes:
            # Below two strides, two maps of a skip head can have one shape, and `nn.valid` would
            # refuse to tell them apart by it.
            size = (max(height, self.step), max(width, self.step))
        elif few:
            size = (self._rounded(height), self._rounded(width))
        else:
            size = (
                self._rounded(1.5 * max(height, *(h for h, _ in self.sizes))),
                self._rounded(1.5 * max(width, *(w for _, w in self.sizes))),
            )
        self.sizes.append(size)
        _log.info(
            "program %d is compiled, for images of up to %dx%d pixels", len(self.sizes), *size
        )
        return size

    def _rounded(self, length: float) -> int:
        return int(-(-length // self.step) * self.step)
