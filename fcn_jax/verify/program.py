"""The program that a network runs, as a list of primitive equations that can be changed one by one.

A pure function is traced into a jaxpr, and all calls within it are inlined. An equation knows the
module that it was traced in. Equations are evaluated one at a time, outside of `jax.jit`, and every
value is kept. A changed program is then evaluated only from its first change on. JAX compiles each
equation once for the same operands; those that numpy computes alike are not compiled, see `host`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from fcn_jax.verify import host

SCOPE = "module:"
"""Prefix of the `jax.named_scope` that names a module's path."""

INPUT = "input of "
"""Prefix of the tag of a layer's argument, which follows the tag of its result."""

_CALLS = {
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat",
    "remat2",
}
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")

_IDENTITIES = {"copy", "copy_p", "name", "optimization_barrier", "sharding_constraint"}
_IDENTITIES |= {"stop_gradient"}


class Value:
    """A value of a program. Two are equal only if they are the same object.

    Attributes:
        aval: shape and dtype.
        producer: index of the equation that computes it; -1 for arguments and constants.
    """

    __slots__ = ("aval", "producer")

    def __init__(self, aval: Any, producer: int = -1) -> None:
        """Describe a value."""
        self.aval, self.producer = aval, producer

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape."""
        return tuple(self.aval.shape)


@dataclasses.dataclass(frozen=True)
class Equation:
    """One operation.

    Attributes:
        primitive: JAX's primitive.
        params: its parameters.
        inputs: its operands.
        outputs: its results.
        module: path of the module that it was traced in; "" for the network's own code.
    """

    primitive: Any
    params: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    module: str

    @property
    def name(self) -> str:
        """The primitive's name."""
        return str(self.primitive.name)

    def run(self, *values: Any, **changes: Any) -> Sequence[Any]:
        """Compute the results, with some parameters changed."""
        params = {**self.params, **changes}
        if (alike := host.computed(self.name, params, values)) is not None:
            return (alike,)
        found = self.primitive.bind(*values, **params)
        return found if self.primitive.multiple_results else (found,)


class Call(NamedTuple):
    """A tagged value, such as the result of a layer's call.

    Attributes:
        path: its name: the layer's path.
        number: how many values of this name came before.
        input: the layer's argument; None if it is not tagged.
        output: the value.
    """

    path: str
    number: int
    input: Value | None
    output: Value


class Patch(NamedTuple):
    """What is computed instead of an equation.

    Attributes:
        inputs: operands, computed before the equation.
        run: operands, numpy's arrays where possible -> results, as many as the equation has.
        rewired: the operand that another one replaces, if that is the only change.
    """

    inputs: tuple[Value, ...]
    run: Callable[..., Sequence[Any]]
    rewired: Value | None = None


@dataclasses.dataclass
class Program:
    """A network in one mode, with its weights and inputs.

    Attributes:
        arguments: leaves by path, and inputs by names such as "input".
        values: the arguments' values.
        equations: in the order of tracing. Those that depend on no argument are already computed.
        outputs: the network's outputs by name.
        calls: tagged values; see `fcn_jax.verify.tags`.
        updates: buffers after the call, by path.
        known: values that depend on no argument.
        inputs: names of the arguments that are inputs.
    """

    arguments: dict[str, Value]
    values: dict[str, Any]
    equations: list[Equation]
    outputs: dict[str, Value]
    calls: list[Call]
    updates: dict[str, Value]
    known: dict[Value, Any]
    inputs: tuple[str, ...]

    @functools.cached_property
    def base(self) -> dict[Value, Any]:
        """Every value of the unchanged program."""
        found = dict(self.known)
        found.update({value: self.values[name] for name, value in self.arguments.items()})
        for equation in self.equations:
            results = equation.run(*(found[value] for value in equation.inputs))
            found.update(zip(equation.outputs, results, strict=True))
        return found

    @functools.cached_property
    def consumers(self) -> dict[Value, list[int]]:
        """Indices of the equations that read each value."""
        found: dict[Value, list[int]] = {}
        for index, equation in enumerate(self.equations):
            for value in dict.fromkeys(equation.inputs):
                found.setdefault(value, []).append(index)
        return found

    @functools.cached_property
    def of_inputs(self) -> frozenset[Value]:
        """Values that depend on the inputs, not only on weights."""
        return self.dependents([self.arguments[name] for name in self.inputs])

    @functools.cached_property
    def leaves(self) -> list[str]:
        """Paths of the arguments that are not inputs, in the order of their first use."""
        last = len(self.equations)
        paths = [name for name in self.arguments if name not in self.inputs]
        return sorted(paths, key=lambda p: self.consumers.get(self.arguments[p], [last])[0])

    def scalar(self, value: Value) -> float | None:
        """The number that a constant has in all elements; None for other values."""
        if value not in self.known:
            return None
        array = np.asarray(self.known[value])
        if array.dtype.kind not in "fiub" and str(array.dtype) != "bfloat16":
            return None
        if array.size == 0 or (array.size > 1 and (array != array.ravel()[0]).any()):
            return None
        return float(array.ravel()[0])

    def producer(self, value: Value) -> Equation | None:
        """The equation that computes a value; None for arguments and constants."""
        return self.equations[value.producer] if value.producer >= 0 else None

    def readers(self, value: Value) -> list[Equation]:
        """The equations that read a value."""
        return [self.equations[index] for index in self.consumers.get(value, ())]

    def dependents(self, values: Collection[Value]) -> frozenset[Value]:
        """The values, and all that are computed from them."""
        found = set(values)
        for equation in self.equations:
            if not found.isdisjoint(equation.inputs):
                found.update(equation.outputs)
        return frozenset(found)

    def between(self, start: Value, end: Value) -> tuple[frozenset[int], frozenset[Value]]:
        """Equations that compute a value, where another one is given.

        Returns:
            Their indices, and the arguments that they read.
        """
        indices: set[int] = set()
        arguments = set()
        stack = [end]
        while stack:
            value = stack.pop()
            if value is start or value in self.known:
                continue
            if value.producer < 0:
                arguments.add(value)
            elif value.producer not in indices:
                indices.add(value.producer)
                stack.extend(self.equations[value.producer].inputs)
        return frozenset(indices), frozenset(arguments)

    def run(
        self,
        changed: Mapping[Value, Any],
        patches: Mapping[int, Patch],
        only: Collection[int] | None = None,
        fed: Value | None = None,
    ) -> dict[Value, Any]:
        """Evaluate a changed program.

        Args:
            changed: values that are given.
            patches: what is computed instead of equations, by their indices.
            only: indices of the equations to evaluate; None for all.
            fed: a given value that no patch replaces by another one.

        Returns:
            Every value that may differ from `base`; None for values that cannot be computed,
            because shapes do not fit.
        """
        found = dict(changed)
        for index in range(len(self.equations)) if only is None else sorted(only):
            equation, patch = self.equations[index], patches.get(index)
            if patch is not None and fed is not None and patch.rewired is fed:
                patch = None
            inputs = equation.inputs if patch is None else patch.inputs
            if patch is None and not any(value in found for value in inputs):
                continue
            values = [found[v] if v in found else self.base[v] for v in inputs]
            found.update(zip(equation.outputs, _evaluated(equation, patch, values), strict=True))
        return found


def _evaluated(equation: Equation, patch: Patch | None, values: Sequence[Any]) -> Sequence[Any]:
    if any(value is None for value in values):
        return (None,) * len(equation.outputs)
    try:
        if patch is None:
            return equation.run(*values)
        with np.errstate(all="ignore"):
            return patch.run(*map(host.on_host, values))
    except (TypeError, ValueError):  # shapes that do not fit, as JAX reports them
        return (None,) * len(equation.outputs)


def trace_function(
    run: Callable[[dict[str, Any], tuple[Any, ...]], tuple[dict[str, Any], dict[str, Any]]],
    leaves: Mapping[str, Any],
    inputs: Sequence[Any],
) -> Program:
    """Trace a pure function.

    Args:
        run: (leaves by path, inputs) -> outputs by name, and buffers after the call by path. It
            enters `jax.named_scope(SCOPE + path)` around the call of each module.
        leaves: weights by path.
        inputs: the network's inputs.
    """
    names = tuple("input" if i == 0 else f"input {i + 1}" for i in range(len(inputs)))
    values = {**leaves, **dict(zip(names, inputs, strict=True))}

    def flat(*arrays: Any) -> Any:
        named = dict(zip(values, arrays, strict=True))
        return run({path: named[path] for path in leaves}, tuple(named[name] for name in names))

    closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*values.values())
    arguments = {
        name: Value(variable.aval)
        for name, variable in zip(values, closed.jaxpr.invars, strict=True)
    }
    inliner = _Inliner()
    results = inliner.inline(closed.jaxpr, closed.consts, list(arguments.values()), "")
    outputs, updates = jax.tree.unflatten(jax.tree.structure(shapes), results)
    return Program(
        arguments,
        {name: host.on_host(jax.numpy.asarray(value)) for name, value in values.items()},
        inliner.equations,
        outputs,
        [call for calls in inliner.calls.values() for call in calls],
        updates,
        inliner.known,
        names,
    )


class _Inliner:
    """Collects the equations of a jaxpr and of all jaxprs that it calls."""

    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.calls: dict[str, list[Call]] = {}
        self.known: dict[Value, Any] = {}

    def inline(
        self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value], module: str
    ) -> list[Value]:
        """Append the equations of a jaxpr; return its results."""
        env: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
        env.update(
            (variable, self._constant(value))
            for variable, value in zip(jaxpr.constvars, consts, strict=True)
        )

        def read(atom: Any) -> Value:
            return self._constant(atom.val) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            results = self._equation(eqn, inputs, _module(eqn, module))
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, inputs: list[Value], module: str) -> Sequence[Value]:
        name, params = eqn.primitive.name, eqn.params
        if name == "cond" and params.get("branches_platforms") is not None:
            branch = min(params["branches"], key=_length)
            return self.inline(branch.jaxpr, branch.consts, inputs[1:], module)
        if name in _CALLS:
            body = next(params[key] for key in _BODIES if key in params)
            is_closed = isinstance(body, core.ClosedJaxpr)
            inner, consts = (body.jaxpr, body.consts) if is_closed else (body, ())
            return self.inline(inner, consts, inputs, module)
        if name == "name":
            self._note(params["name"], inputs[0])
        if name in _IDENTITIES or (
            name == "convert_element_type" and inputs[0].aval.dtype == params["new_dtype"]
        ):
            return inputs
        index = len(self.equations)
        outputs = tuple(Value(variable.aval, index) for variable in eqn.outvars)
        equation = Equation(eqn.primitive, params, tuple(inputs), outputs, module)
        if all(value in self.known for value in inputs):
            constants = equation.run(*(self.known[value] for value in inputs))
            return [self._constant(value) for value in constants]
        self.equations.append(equation)
        return outputs

    def _note(self, tag: str, value: Value) -> None:
        path = tag.removeprefix(INPUT)
        calls = self.calls.setdefault(path, [])
        if path == tag:
            calls.append(Call(path, len(calls), None, value))
        else:
            calls[-1] = calls[-1]._replace(input=value)

    def _constant(self, array: Any) -> Value:
        value = Value(jax.typeof(array))
        if isinstance(value.aval.dtype, np.dtype):  # no random key
            array = np.asarray(array, value.aval.dtype)
        self.known[value] = array
        return value


def _module(eqn: Any, outer: str) -> str:
    """The path in the innermost scope that names a module."""
    scopes = str(eqn.source_info.name_stack).split("/")
    return next((s.removeprefix(SCOPE) for s in reversed(scopes) if s.startswith(SCOPE)), outer)


def _length(branch: Any) -> float:
    """Number of equations: the shortest form for any platform is the plainest."""
    length = 0.0
    for eqn in branch.jaxpr.eqns:
        if "pallas" in eqn.primitive.name or "custom_call" in eqn.primitive.name:
            return float("inf")  # runs on its own platform only
        bodies = [eqn.params[key] for key in _BODIES if key in eqn.params]
        bodies += eqn.params.get("branches", ())
        length += 1 + sum(_length(b) for b in bodies if isinstance(b, core.ClosedJaxpr))
    return length
