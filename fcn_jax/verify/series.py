"""Groups of tensors with equal places in repeated blocks, such as `layer*.*.conv*.bn`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from fcn_jax.verify.criterion import Comparison

_NUMBER = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Series:
    """Tensors whose names differ in numbers only, and which all pass, fail or are inconclusive.

    Attributes:
        comparisons: at least one, in the order in which the network computes them.
    """

    comparisons: tuple[Comparison, ...]

    @property
    def name(self) -> str:
        """The tensor's name; of several, with "*" for the numbers that differ."""
        names = [comparison.name for comparison in self.comparisons]
        numbers = zip(*map(_NUMBER.findall, names), strict=True)
        shown = iter([every[0] if len(set(every)) == 1 else "*" for every in numbers])
        return _NUMBER.sub(lambda _: next(shown), names[0])

    @property
    def equal(self) -> bool:
        """Whether all pass; otherwise all fail."""
        return self.comparisons[0].equal

    @property
    def worst(self) -> Comparison:
        """The tensor with the largest error in units of its limit."""
        return max(self.comparisons, key=lambda comparison: comparison.excess)

    def __str__(self) -> str:
        """One line for a list of failures."""
        if len(self.comparisons) == 1:
            return str(self.comparisons[0])
        first = self.comparisons[0].name
        return f"{self.name}: {len(self.comparisons)} tensors from {first} on; worst {self.worst}"


def grouped(comparisons: Iterable[Comparison]) -> list[Series]:
    """Group tensors into series, in the order of their first tensors."""
    found: dict[tuple[str, bool, bool], list[Comparison]] = {}
    for comparison in comparisons:
        key = (_NUMBER.sub("*", comparison.name), comparison.equal, comparison.inconclusive)
        found.setdefault(key, []).append(comparison)
    return [Series(tuple(members)) for members in found.values()]
