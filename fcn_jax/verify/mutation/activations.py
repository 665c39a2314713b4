"""Faults of activations: another form, a missing bound, none at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.verify.mutation.mutant import Mutant
from fcn_jax.verify.program import Equation, Patch, Program, Value

_BOUND = 6.0


def gelu_form(program: Program) -> list[Mutant]:
    """GELU by a tanh instead of the error function, or reverse."""
    found = []
    for index, equation in enumerate(program.equations):
        if equation.name in ("erf", "erfc"):
            sign = 1.0 if equation.name == "erf" else -1.0
            patch = Patch(equation.inputs, _tanh_form(sign))
            mutant = Mutant("GELU form", "tanh for erf", (equation.module,), {}, {index: patch})
            found.append(mutant)
        elif equation.name == "tanh" and (x := _gelu_argument(program, equation)) is not None:
            patch = Patch((x,), lambda x: (lax.erf(x * x.dtype.type(math.sqrt(0.5))),))
            mutant = Mutant("GELU form", "erf for tanh", (equation.module,), {}, {index: patch})
            found.append(mutant)
    return found


def _tanh_form(sign: float) -> Callable[[Any], tuple[Any]]:
    """Of erf(u), or of erfc(u) = 1 - erf(u), with u = x / sqrt(2)."""

    def run(u: Any) -> tuple[Any]:
        x = u * u.dtype.type(math.sqrt(2))
        y = jnp.tanh(u.dtype.type(math.sqrt(2 / math.pi)) * (x + 0.044715 * x**3))
        return (y if sign > 0 else 1 - y,)

    return run


def _gelu_argument(program: Program, equation: Equation) -> Value | None:
    """The x of tanh(sqrt(2 / pi) (x + 0.044715 x^3))."""
    for total, _ in _scaled(program, equation.inputs[0], math.sqrt(2 / math.pi)):
        added = program.producer(total)
        if added is None or added.name != "add":
            return None
        for x, cube in (added.inputs, added.inputs[::-1]):
            if any(_scaled(program, cube, 0.044715)):
                return x
    return None


def _scaled(program: Program, value: Value, factor: float) -> Iterator[tuple[Value, Equation]]:
    """The x of a product with a number."""
    equation = program.producer(value)
    if equation is not None and equation.name == "mul":
        for x, constant in (equation.inputs, equation.inputs[::-1]):
            if math.isclose(program.scalar(constant) or 0.0, factor, rel_tol=1e-3):
                yield x, equation


def relu6(program: Program) -> list[Mutant]:
    """ReLU6 where the network has ReLU, or ReLU where it has ReLU6."""
    found = []
    for rectified in _rectified(program):
        index, x, bounded = rectified
        module = program.equations[index].module
        if bounded:
            what, run = "ReLU for ReLU6", _relu
        else:
            what, run = "ReLU6 for ReLU", _relu_6
        found.append(Mutant("ReLU6", what, (module,), {}, {index: Patch((x,), run)}))
    return found


def _relu(x: Any) -> tuple[Any]:
    return (np.maximum(x, x.dtype.type(0)),)


def _relu_6(x: Any) -> tuple[Any]:
    return (np.minimum(*_relu(x), x.dtype.type(_BOUND)),)


def missing_activation(program: Program) -> list[Mutant]:
    """An activation is left out."""

    def missing(index: int, patch: Patch, equivalent: str = "") -> Mutant:
        module = program.equations[index].module
        return Mutant("missing activation", what, (module,), {}, {index: patch}, equivalent)

    found = []
    never_negative = nonnegative(program)
    for index, x, bounded in _rectified(program):
        what = "ReLU6" if bounded else "ReLU"
        reason = ""
        if not bounded and x in never_negative:
            reason = "the operand of the ReLU is never negative"
        found.append(missing(index, Patch((x,), _same), reason))
    for index, equation in enumerate(program.equations):
        if equation.outputs[0] not in program.of_inputs:
            continue
        what = equation.name
        if what in ("logistic", "tanh") and _gelu_argument(program, equation) is None:
            found.append(missing(index, Patch(equation.inputs, _same)))
        elif what in ("erf", "erfc", "tanh"):
            # 0.5 x (1 + erf) = 0.5 x erfc = x
            full = 2.0 if what == "erfc" else 1.0
            patch = Patch(equation.inputs, lambda u, full=full: (np.full_like(u, full),))
            what = "GELU"
            found.append(missing(index, patch))
        elif what == "select_n" and (leaky := _leaky_argument(program, equation)) is not None:
            what = "leaky ReLU"
            found.append(missing(index, Patch((leaky,), _same)))
    return found


def _same(x: Any) -> tuple[Any]:
    return (x,)


def _leaky_argument(program: Program, equation: Equation) -> Value | None:
    """The x of where(x > 0, x, ...)."""
    condition = program.producer(equation.inputs[0])
    if condition is not None and condition.name in ("gt", "ge", "lt", "le"):
        for x, bound in (condition.inputs, condition.inputs[::-1]):
            if program.scalar(bound) == 0 and any(x is case for case in equation.inputs[1:]):
                return x
    return None


def _rectified(program: Program) -> list[tuple[int, Value, bool]]:
    """Index, operand, and whether there is an upper bound, of each max(x, 0) and min(..., 6)."""
    found = []
    for index, equation in enumerate(program.equations):
        x = _operand(program, equation, "max", 0.0)
        if x is not None and len(x.shape) < 2:
            continue  # a variance, which rounding must not make negative
        if x is None or x not in program.of_inputs:
            if equation.name == "clamp" and program.scalar(equation.inputs[0]) == 0:
                bound = program.scalar(equation.inputs[2])
                if bound == _BOUND:
                    found.append((index, equation.inputs[1], True))
            continue
        above = [
            reader
            for reader in program.readers(equation.outputs[0])
            if _operand(program, reader, "min", _BOUND) is equation.outputs[0]
        ]
        if above:
            found.append((above[0].outputs[0].producer, x, True))
        else:
            found.append((index, x, False))
    return found


def _operand(program: Program, equation: Equation, name: str, bound: float) -> Value | None:
    """The x of max(x, bound) or min(x, bound)."""
    if equation.name == name:
        for x, constant in (equation.inputs, equation.inputs[::-1]):
            if program.scalar(constant) == bound:
                return x
    return None


_PRESERVING = {
    "add",
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "conv_general_dilated",
    "div",
    "dot_general",
    "gather",
    "min",
    "mul",
    "pad",
    "reduce_max",
    "reduce_min",
    "reduce_sum",
    "reduce_window_max",
    "reduce_window_sum",
    "reshape",
    "slice",
    "sqrt",
    "squeeze",
    "transpose",
}
"""Operations whose results are not negative if no operand is."""

_POSITIVE = {"abs", "erfc", "exp", "exp2", "logistic", "rsqrt", "square"}


def nonnegative(program: Program) -> set[Value]:
    """Values of which no element can be negative, whatever the inputs and weights."""
    found = {value for value, x in program.known.items() if _is_nonnegative(x)}
    for equation in program.equations:
        inputs = equation.inputs[:1] if equation.name == "gather" else equation.inputs
        known = [value in found for value in inputs]
        if (
            equation.name in _POSITIVE
            or (equation.name == "integer_pow" and equation.params["y"] % 2 == 0)
            or (equation.name == "mul" and inputs[0] is inputs[-1])
            or (equation.name == "max" and any(known))
            or (equation.name == "clamp" and known[0])
            or (equation.name in _PRESERVING and all(known))
        ):
            found.update(equation.outputs)
    return found


def _is_nonnegative(x: Any) -> bool:
    array = np.asarray(x)
    return array.dtype.kind in "fiu" and bool((array >= 0).all())
