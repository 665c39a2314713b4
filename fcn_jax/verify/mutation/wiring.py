"""Faults between layers: residual sums, features, attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fcn_jax.verify.mutation.activations import nonnegative
from fcn_jax.verify.mutation.mutant import Mutant
from fcn_jax.verify.program import Equation, Patch, Program, Value

_PRODUCTS = ("conv_general_dilated", "dot_general")


def wrong_residual(program: Program) -> list[Mutant]:
    """A sum of two branches takes one of them twice, or another value of the same shape."""
    found = []
    for index, module, early, late in _sums(program):
        choices = {
            "the shortcut twice": (early, early),
            "the branch twice": (late, late),
        }
        other = _other(program, (early, late), index)
        if other is not None:
            choices["another shortcut"] = (other, late)
        for what, inputs in choices.items():
            patch = Patch(inputs, lambda a, b: (a + b,))
            found.append(Mutant("wrong residual", what, (module,), {}, {index: patch}))
    return found


def in_place_relu(program: Program) -> list[Mutant]:
    """A ReLU has overwritten the shortcut before it is added."""
    found = []
    never_negative = nonnegative(program)
    for index, module, shortcut, branch in _sums(program):
        reason = "the shortcut is never negative" if shortcut in never_negative else ""
        patch = Patch((shortcut, branch), lambda a, b: (np.maximum(a, a.dtype.type(0)) + b,))
        what = "the shortcut is rectified"
        found.append(Mutant("in-place ReLU", what, (module,), {}, {index: patch}, reason))
    return found


def _sums(program: Program) -> Iterator[tuple[int, str, Value, Value]]:
    """Index and module of each sum of two branches, and the operands in the order of tracing."""
    for index, equation in enumerate(program.equations):
        if equation.name != "add":
            continue
        early, late = sorted(equation.inputs, key=lambda value: value.producer)
        if early is late or early.shape != late.shape or len(early.shape) < 2:
            continue
        if early not in program.of_inputs or late not in program.of_inputs:
            continue
        # Sums within a layer or an activation have no product between their operands.
        between = program.equations[early.producer + 1 : late.producer + 1]
        if any(e.name in _PRODUCTS and e.outputs[0] in program.of_inputs for e in between):
            yield index, equation.module, early, late


def _other(program: Program, used: tuple[Value, ...], before: int) -> Value | None:
    """The last output of a module before an equation, of the same shape, that is not used there."""
    for call in reversed(program.calls):
        value = call.output
        if (
            value.producer < before
            and value not in used
            and value in program.of_inputs
            and (value.shape, value.aval.dtype) == (used[0].shape, used[0].aval.dtype)
        ):
            return value
    return None


def wrong_feature(program: Program) -> list[Mutant]:
    """A part of the network, such as its head, gets another value of the same shape."""
    found = []
    tops = dict.fromkeys(e.module.partition(".")[0] for e in program.equations if e.module)
    for top in tops:
        inside = {
            index
            for index, equation in enumerate(program.equations)
            if equation.module.partition(".")[0] == top
        }
        for value in _entering(program, inside):
            readers = [index for index in program.consumers[value] if index in inside]
            other = _other(program, (value,), min(readers))
            if other is None or other.producer in inside:
                continue
            patches = {index: _rewired(program.equations[index], value, other) for index in readers}
            what = f"another {'x'.join(map(str, value.shape))} value"
            found.append(Mutant("wrong feature", what, (top,), {}, patches))
    return found


def _entering(program: Program, inside: set[int]) -> list[Value]:
    """Values of the network that equations read, but do not compute."""
    read = {v: None for index in sorted(inside) for v in program.equations[index].inputs}
    return [v for v in read if v.producer >= 0 and v.producer not in inside and v.shape]


def _rewired(equation: Equation, old: Value, new: Value) -> Patch:
    inputs = tuple(new if value is old else value for value in equation.inputs)
    return Patch(inputs, equation.run, rewired=old)


class _Softmax(NamedTuple):
    """A softmax whose result is a factor of a matrix product: attention.

    Attributes:
        last: position of its last equation.
        logits: its operand.
        axis: that it sums over.
        module: path of its module.
        product: the matrix product.
    """

    last: int
    logits: Value
    axis: int
    module: str
    product: Value


def softmax_axis(program: Program) -> list[Mutant]:
    """Attention's softmax sums over another axis, such as the queries instead of the keys."""
    found = []
    for softmax in _attention(program):
        axis = softmax.axis - 1 if softmax.axis else 1
        patch = Patch((softmax.logits,), lambda x, axis=axis: (jax.nn.softmax(x, axis),))
        what = f"axis {axis} for {softmax.axis}"
        found.append(Mutant("softmax axis", what, (softmax.module,), {}, {softmax.last: patch}))
    return found


def head_order(program: Program) -> list[Mutant]:
    """Channels are split into heads in another order, D x H for H x D, or merged in it."""
    found: dict[tuple[int, int], Mutant] = {}
    for softmax in _attention(program):
        before, _ = program.between(_NOWHERE, softmax.product)
        after = program.dependents([softmax.product])
        for index, equation in enumerate(program.equations):
            if equation.name != "reshape" or not _is_within(equation.module, softmax.module):
                continue
            if equation.outputs[0] not in program.of_inputs:
                continue
            old, new = equation.inputs[0].shape, equation.outputs[0].shape
            changes: list[tuple[int, str, Any]] = []
            if index in before and len(new) > len(old) and new[: len(old) - 1] == old[:-1]:
                for axis in range(len(old) - 1, len(new) - 1):
                    if min(new[axis : axis + 2]) > 1:
                        sizes = f"{new[axis + 1]}x{new[axis]} for {new[axis]}x{new[axis + 1]}"
                        changes.append((axis, f"split into {sizes}", _split(new, axis)))
            elif equation.outputs[0] in after and _merges(old, new):
                what = f"merged as {old[-1]}x{old[-2]} for {old[-2]}x{old[-1]}"
                changes.append((0, what, _merged(new)))
            for axis, what, run in changes:
                patches = {index: Patch(equation.inputs, run)}
                mutant = Mutant("head order", what, (equation.module,), {}, patches)
                found.setdefault((index, axis), mutant)
    return list(found.values())


_NOWHERE = Value(None)


def _is_within(module: str, other: str) -> bool:
    return not other or module == other or module.startswith(f"{other}.")


def _merges(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether a reshape joins the last two axes."""
    return len(old) >= 2 and min(old[-2:]) > 1 and new == (*old[:-2], old[-2] * old[-1])


def _split(shape: tuple[int, ...], axis: int) -> Any:
    swapped = (*shape[:axis], shape[axis + 1], shape[axis], *shape[axis + 2 :])
    return lambda x: (x.reshape(swapped).swapaxes(axis, axis + 1),)


def _merged(shape: tuple[int, ...]) -> Any:
    return lambda x: (x.swapaxes(-1, -2).reshape(shape),)


def _attention(program: Program) -> list[_Softmax]:
    found = []
    for index, equation in enumerate(program.equations):
        exponentials = program.producer(equation.inputs[0]) if equation.name == "div" else None
        if exponentials is None or exponentials.name != "exp":
            continue
        sums = [e for e in program.readers(exponentials.outputs[0]) if e.name == "reduce_sum"]
        product = _product(program, equation.outputs[0])
        if not sums or product is None or len(sums[0].params["axes"]) != 1:
            continue
        logits = exponentials.inputs[0]
        shifted = program.producer(logits)
        if shifted is not None and shifted.name == "sub":
            logits = shifted.inputs[0]
        axis = sums[0].params["axes"][0]
        found.append(_Softmax(index, logits, axis, equation.module, product))
    return found


def _product(program: Program, value: Value) -> Value | None:
    """The matrix product of which a value is a factor."""
    for reader in program.readers(value):
        if reader.name == "dot_general":
            return reader.outputs[0]
        passing = reader.name in ("convert_element_type", "reshape", "transpose")
        if passing and (found := _product(program, reader.outputs[0])) is not None:
            return found
    return None
