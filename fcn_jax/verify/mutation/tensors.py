"""Faults of weights and inputs: swapped, transposed, flipped, dropped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from fcn_jax.verify.mutation.mutant import Mutant, owner, role
from fcn_jax.verify.program import Equation, Program, Value

_BIASES = ("bias", "b", "beta", "offset")
_SCALES = ("scale", "gamma", "weight")
_KERNELS = ("kernel", "weight", "w")


def swapped(program: Program) -> list[Mutant]:
    """Two tensors of one shape and one role are exchanged: each with the next one."""
    groups: dict[Any, list[str]] = {}
    for path in _floats(program):
        value = program.values[path]
        groups.setdefault((role(path), value.shape, value.dtype), []).append(path)

    def swap(a: str, b: str) -> Mutant:
        changes = {a: lambda leaves: leaves[b], b: lambda leaves: leaves[a]}
        return Mutant("swapped tensors", f"{a} and {b}", (owner(a), owner(b)), changes)

    pairs = [pair for paths in groups.values() for pair in itertools.pairwise(paths)]
    return [swap(a, b) for a, b in pairs]


def transposed(program: Program) -> list[Mutant]:
    """A kernel's height and width, or its channels in and out, are exchanged."""
    found = []
    for path, spatial, channels in _kernels(program):
        shape = program.values[path].shape
        for what, axes in (("height and width", spatial), ("channels in and out", channels)):
            if len(axes) == 2 and shape[axes[0]] == shape[axes[1]] > 1:
                order = list(range(len(shape)))
                order[axes[0]], order[axes[1]] = axes[1], axes[0]
                found.append(_moved("transposed kernel", what, path, order, ()))
    return found


def flipped(program: Program) -> list[Mutant]:
    """A kernel is flipped along height and width: a true convolution."""
    found = []
    for path, spatial, _ in _kernels(program):
        value = program.values[path]
        axes = tuple(axis for axis in spatial if value.shape[axis] > 1)
        if axes:
            order = list(range(value.ndim))
            found.append(_moved("flipped kernel", "height and width", path, order, axes))
    return found


def dropped(program: Program) -> list[Mutant]:
    """A bias is left out (zeros), or the scale of a normalization or layer scale (ones)."""

    def drop(kind: str, path: str, fill: Any) -> Mutant:
        return Mutant(kind, role(path), (owner(path),), {path: lambda leaves: fill(leaves[path])})

    found = []
    for path in _floats(program):
        if role(path) in _BIASES:
            found.append(drop("dropped bias", path, np.zeros_like))
        elif role(path) in _SCALES and program.values[path].ndim == 1:
            found.append(drop("dropped scale", path, np.ones_like))
    return found


def channel_order(program: Program) -> list[Mutant]:
    """The images' channels are in reverse order, BGR for RGB."""
    found = []
    for name in program.inputs:
        shape = program.values[name].shape
        axes = [axis for axis in (3, 1) if len(shape) == 4 and shape[axis] == 3]
        if axes and jnp.issubdtype(program.values[name].dtype, jnp.floating):

            def flip(values: Any, name: str = name, axis: int = axes[0]) -> Any:
                return np.flip(values[name], axis)

            found.append(Mutant("channel order", f"BGR for RGB in {name}", ("",), {name: flip}))
    return found


def _floats(program: Program) -> list[str]:
    return [p for p in program.leaves if jnp.issubdtype(program.values[p].dtype, jnp.floating)]


def _kernels(program: Program) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Each kernel with its spatial axes and its channels' axes (in, out)."""
    for path in _floats(program):
        shape = program.values[path].shape
        use = _product(program, program.arguments[path])
        if use is not None and use.name == "conv_general_dilated":
            out, channels, *spatial = use.params["dimension_numbers"].rhs_spec
            yield path, tuple(spatial), (channels, out)
        elif len(shape) == 4 and role(path) in _KERNELS:  # a convolution as a matrix product
            yield path, (0, 1), (2, 3)
        elif len(shape) == 2 and use is not None and use.name == "dot_general":
            yield path, (), (0, 1)


def _product(program: Program, value: Value) -> Equation | None:
    """The convolution or matrix product of a leaf, if its axes stay as they are until then."""
    for equation in program.readers(value):
        if equation.name in ("conv_general_dilated", "dot_general"):
            return equation
        if equation.name == "convert_element_type":
            return _product(program, equation.outputs[0])
    return None


def _moved(kind: str, what: str, path: str, order: list[int], flips: tuple[int, ...]) -> Mutant:
    def move(leaves: Any) -> Any:
        return np.flip(np.transpose(leaves[path], order), flips)

    return Mutant(kind, f"{what} of {role(path)}", (owner(path),), {path: move})
