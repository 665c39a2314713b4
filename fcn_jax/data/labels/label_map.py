"""Label maps: which label each stored value and each color of a mask stands for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping

from fcn_jax.plugins.api import IGNORE_INDEX

Color = tuple[int, int, int]
"""RGB, 0 to 255."""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMap:
    """The labels of the stored values and colors of a dataset's masks.

    Attributes:
        num_classes: the number of classes; their labels are 0 to `num_classes - 1`.
        values: stored gray value or palette index (0 to 65535) -> label, or `IGNORE_INDEX`.
        colors: RGB color -> label or `IGNORE_INDEX`; None if the classes have no colors.
        assumed_void: whether stored 255 is void only because the dataset does not say otherwise.
        listed: whether the map comes from a class list that the user can edit.
    """

    num_classes: int
    values: Mapping[int, int]
    colors: Mapping[Color, int] | None = None
    assumed_void: bool = True
    listed: bool = True

    @classmethod
    def of(
        cls,
        num_classes: int,
        *,
        void: Iterable[int] = (IGNORE_INDEX,),
        palette: Mapping[Color, int] | None = None,
    ) -> LabelMap:
        """The map of masks whose stored values are the labels.

        Args:
            num_classes: the number of classes; stored 0 to `num_classes - 1` are their labels.
            void: stored values, and labels in `palette`, that become `IGNORE_INDEX`.
            palette: RGB color -> label, for masks in colors.
        """
        ignored = dict.fromkeys(void, IGNORE_INDEX)
        values = {value: value for value in range(num_classes)} | ignored
        colors = palette and {c: ignored.get(label, label) for c, label in palette.items()}
        return cls(num_classes, values, colors, assumed_void=IGNORE_INDEX in ignored, listed=False)


@functools.lru_cache
def as_label_map(labels: int | LabelMap) -> LabelMap:
    """The map itself; for a number of classes, the map of masks that store the labels."""
    return labels if isinstance(labels, LabelMap) else LabelMap.of(labels)
