"""A planted fault: what is changed in a program, and where it should be found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from fcn_jax.verify.program import Patch, Program, Value

Find = Callable[[Program], "list[Mutant]"]
"""A kind of fault: all that can be planted in a program, one at a time."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault that a port might have.

    Attributes:
        kind: the kind of fault, such as "eps".
        what: what is changed, in a few words.
        layers: paths of the modules that hold the fault; a report that names one of them is right.
        arguments: changed leaves or inputs by name, as functions of all arguments.
        patches: changed equations by index.
        equivalent: why the change cannot have an effect; "" if it can.
    """

    kind: str
    what: str
    layers: tuple[str, ...]
    arguments: Mapping[str, Callable[[Mapping[str, Any]], Any]] = dataclasses.field(
        default_factory=dict
    )
    patches: Mapping[int, Patch] = dataclasses.field(default_factory=dict)
    equivalent: str = ""

    def changed(self, program: Program) -> dict[Value, Any]:
        """The changed arguments."""
        return {
            program.arguments[name]: change(program.values)
            for name, change in self.arguments.items()
        }

    def places(self, program: Program) -> list[Value]:
        """The values where the fault is."""
        outputs = [v for index in self.patches for v in program.equations[index].outputs]
        return [program.arguments[name] for name in self.arguments] + outputs

    def is_identity(self, program: Program, fixed: Collection[str]) -> bool:
        """Whether it only replaces arguments of these names, and by the same values."""
        return (
            not self.patches
            and set(self.arguments) <= set(fixed)
            and all(
                np.array_equal(change(program.values), program.values[name])
                for name, change in self.arguments.items()
            )
        )

    def __str__(self) -> str:
        """Kind, place and change in one line."""
        place = ", ".join(layer or "the network's own code" for layer in self.layers)
        return f"{self.kind}: {place}: {self.what}"


def owner(path: str) -> str:
    """The module that holds a leaf."""
    return path.rpartition(".")[0]


def role(path: str) -> str:
    """A leaf's own name."""
    return path.rpartition(".")[2]
