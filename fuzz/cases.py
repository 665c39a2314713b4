"""Fuzz cases, and the register of the mutations that make them."""

from __future__ import annotations

import dataclasses
import importlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES = ("images", "masks", "folders", "weights", "settings", "checkpoints", "commands")
"""Modules of this package; each one registers its mutations when it is imported."""

SHARES = {
    "images": 27,
    "masks": 18,
    "folders": 17,
    "weights": 14,
    "settings": 17,
    "checkpoints": 4,
    "commands": 3,
}
"""Percentages of the cases. Checkpoints and commands take a quarter of a second or more each."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One case: a mutation and the seed of all its randomness."""

    family: str
    mutation: str
    seed: int

    def __str__(self) -> str:
        return f"{self.family}:{self.mutation}:{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """Parse the result of `str`. Raises `ValueError` if the text is not a case."""
        family, mutation, seed = text.split(":")
        if mutation not in mutations(family):
            raise ValueError(
                f"{family} has no mutation '{mutation}'; known are {', '.join(mutations(family))}"
            )
        return cls(family, mutation, int(seed))

    def rng(self) -> np.random.Generator:
        """Return the random numbers of the case."""
        return np.random.default_rng(
            [zlib.crc32(f"{self.family}:{self.mutation}".encode()), self.seed]
        )


class WrongError(Exception):
    """A fault that the result does not show, such as a deleted input; the message describes it."""


class UndetectableError(Exception):
    """A wrong result that cannot be detected: the changed file is as valid as the original."""


@dataclasses.dataclass(kw_only=True)
class Trial:
    """A prepared call and its expected result.

    Attributes:
        call: calls the product; its result goes to `right`.
        right: returns the problem with a result, or None; raises `UndetectableError` with a reason
            if no program could detect the problem. If `right` is None, the input must be rejected.
        refusable: whether an error is also correct. Valid input of a documented kind must be read.
        names: words such as the name of the file; an error must contain one of them.
        outputs: paths that may be created or changed, with everything below them.
        partial: whether an error may leave files at `outputs`.
    """

    call: Callable[[], Any]
    right: Callable[[Any], str | None] | None = None
    refusable: bool = True
    names: Sequence[str] = ()
    outputs: Sequence[Path] = ()
    partial: bool = False


Mutation = Callable[[np.random.Generator, Path], Trial]
"""(random numbers, an empty folder) -> the trial."""

_REGISTER: dict[str, dict[str, tuple[Mutation, int]]] = {family: {} for family in FAMILIES}


def mutation(family: str, weight: int = 1) -> Callable[[Mutation], Mutation]:
    """Register a mutation under the name of its function.

    Args:
        family: one of `FAMILIES`.
        weight: the mutation's share of the family's cases, relative to the others.
    """

    def register(make: Mutation) -> Mutation:
        _REGISTER[family][make.__name__.replace("_", "-")] = make, weight
        return make

    return register


def mutations(family: str) -> dict[str, tuple[Mutation, int]]:
    """Return name -> (mutation, weight). Raises `ValueError` for an unknown family."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family '{family}'; known are {', '.join(FAMILIES)}")
    importlib.import_module(f"fuzz.{family}")
    return _REGISTER[family]


def plan(family: str, count: int, seed: int) -> Iterator[Case]:
    """Yield the cases of a family: first one of every mutation, then shares by weight.

    Args:
        family: one of `FAMILIES`.
        count: the number of cases.
        seed: the first seed of each mutation; further cases have the next seeds.
    """
    weighted = {name: weight for name, (_, weight) in mutations(family).items()}
    taken = dict.fromkeys(weighted, 0)
    for _ in range(count):
        name = min(weighted, key=lambda name: taken[name] / weighted[name])
        yield Case(family, name, seed + taken[name])
        taken[name] += 1


def numbers(count: int) -> dict[str, int]:
    """Return the number of cases of each family; their sum is at least `count`."""
    return {family: -(-count * share // 100) for family, share in SHARES.items()}
