"""Faults of normalization layers: epsilon, momentum and the variance of the statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fcn_jax.verify.mutation.mutant import Mutant, owner
from fcn_jax.verify.program import Patch, Program, Value

_LARGEST_EPS = 1e-2
_PASSING = ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze")


def eps(program: Program) -> list[Mutant]:
    """The number that is added to a variance is ten times as large, or a tenth."""
    found = []
    for index, equation in enumerate(program.equations):
        if equation.name != "add" or not _is_rooted(program, equation.outputs[0]):
            continue
        for x, constant in (equation.inputs, equation.inputs[::-1]):
            value = program.scalar(constant)
            if value is None or not 0 < value <= _LARGEST_EPS:
                continue
            for factor in (10, 0.1):
                patch = Patch((x,), _adding(value * factor))
                what = f"{value * factor:.0e} for {value:.0e}"
                found.append(Mutant("eps", what, (equation.module,), {}, {index: patch}))
    return found


def _adding(number: float) -> Callable[[Any], tuple[Any]]:
    return lambda x: (x + np.asarray(number, x.dtype),)


def _is_rooted(program: Program, value: Value) -> bool:
    """Whether the square root of a value is taken."""
    for equation in program.readers(value):
        if equation.name in ("rsqrt", "sqrt"):
            return True
        if equation.name == "pow" and abs(program.scalar(equation.inputs[1]) or 0) == 0.5:
            return True
        if equation.name in _PASSING and _is_rooted(program, equation.outputs[0]):
            return True
    return False


def momentum(program: Program) -> list[Mutant]:
    """The shares of old and new statistics are exchanged, or the new one's is a tenth."""
    found = []
    for module, moved in _statistics(program).items():
        share = moved[0].share
        changes = {"exchanged": 1 - share} if share != 0.5 else {}
        for what, new in {**changes, "a tenth": share / 10}.items():
            patches = {m.index: Patch((m.old, m.new), _mixing(new)) for m in moved}
            what = f"{what}: {new:g} for {share:g}"
            found.append(Mutant("momentum", what, (module,), {}, patches))
    return found


def frozen_statistics(program: Program) -> list[Mutant]:
    """Train mode does not change the statistics."""
    return [
        Mutant(
            "frozen statistics",
            "not updated",
            (module,),
            {},
            {m.index: Patch((m.old,), lambda old: (old,)) for m in moved},
        )
        for module, moved in _statistics(program).items()
    ]


def biased_variance(program: Program) -> list[Mutant]:
    """The running variance is that of the batch, not the unbiased estimate."""
    found = []
    for module, moved in _statistics(program).items():
        for statistic in moved:
            if patches := _biased(program, statistic.new):
                what = "biased for unbiased"
                found.append(Mutant("biased variance", what, (module,), {}, patches))
    return found


def _biased(program: Program, value: Value) -> dict[int, Patch]:
    """The patch that undoes Bessel's correction; empty if there is none."""
    while (equation := program.producer(value)) is not None:
        if equation.name in ("mul", "div"):
            for x, constant in (equation.inputs, equation.inputs[::-1]):
                number = program.scalar(constant)
                if number is None:
                    continue
                if equation.name == "mul" and 1 < number <= 2:  # n / (n - 1)
                    return {value.producer: Patch((x,), lambda x: (x,))}
                summed = program.producer(x)
                if equation.name == "div" and summed is not None and summed.name == "reduce_sum":
                    count = summed.inputs[0].aval.size / x.aval.size
                    if number == count - 1:
                        return {value.producer: Patch((x,), lambda x, n=count: (x / n,))}
                value = x
                break
            else:
                return {}
        elif equation.name in _PASSING:
            value = equation.inputs[0]
        else:
            return {}
    return {}


class _Moved:
    """A statistic after the call: `(1 - share) old + share new`, computed by one equation."""

    def __init__(self, index: int, old: Value, new: Value, share: float) -> None:
        self.index, self.old, self.new, self.share = index, old, new, share


def _mixing(share: float) -> Callable[[Any, Any], tuple[Any]]:
    return lambda old, new: (
        np.asarray(1 - share, old.dtype) * old + np.asarray(share, old.dtype) * new,
    )


def _statistics(program: Program) -> dict[str, list[_Moved]]:
    """The moving averages by module."""
    found: dict[str, list[_Moved]] = {}
    for path, value in program.updates.items():
        old, equation = program.arguments[path], program.producer(value)
        if equation is None or equation.name != "add":
            continue
        for kept, added in (equation.inputs, equation.inputs[::-1]):
            if (moved := _moving(program, value.producer, old, kept, added)) is not None:
                found.setdefault(owner(path), []).append(moved)
                break
    return found


def _moving(program: Program, index: int, old: Value, kept: Value, added: Value) -> _Moved | None:
    product = _scaled(program, added)
    if product is None:
        return None
    new, share = product
    if kept is old:  # old + share (new - old)
        difference = program.producer(new)
        if difference is None or difference.name != "sub" or difference.inputs[1] is not old:
            return None
        return _Moved(index, old, difference.inputs[0], share)
    product = _scaled(program, kept)
    if product is None or product[0] is not old or abs(product[1] + share - 1) > 1e-5:
        return None
    return _Moved(index, old, new, share)


def _scaled(program: Program, value: Value) -> tuple[Value, float] | None:
    """(x, c) of the product c x."""
    equation = program.producer(value)
    if equation is not None and equation.name == "mul":
        for x, constant in (equation.inputs, equation.inputs[::-1]):
            if (number := program.scalar(constant)) is not None:
                return x, number
    return None
