"""A traced program as a flat list of operations, for one platform."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.extend import core

_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
    "remat",
    "remat2",
    "shard_map",
)
"""JAX's names of the operations that compute another program once."""

_MOVES = (
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "transpose",
    "slice",
    "pad",
    "copy",
    "copy_p",
    "name",
    "stop_gradient",
    "convert_element_type",
)
"""Operations that need no copy if they change neither the number of values nor their dtype."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        equation: its equation.
        inputs: numbers of the values that it reads.
        outputs: numbers of its results.
        backward: whether it belongs to the backward pass.
        body: what a loop repeats, or None.
        times: how often; 1 if that is not known.
    """

    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    backward: bool
    body: Program | None = None
    times: int = 1

    @property
    def name(self) -> str:
        """JAX's name of the operation."""
        return str(self.equation.primitive.name)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program without calls.

    Attributes:
        sizes: bytes of each value, by its number.
        arguments: numbers of its arguments.
        outputs: numbers of its results, without constants.
        operations: in order, without those whose results nothing uses.
    """

    sizes: Sequence[int]
    arguments: tuple[int, ...]
    outputs: tuple[int, ...]
    operations: tuple[Operation, ...]


def flatten(jaxpr: core.Jaxpr, platform: str) -> Program:
    """Return a program in the form that a platform runs.

    Args:
        jaxpr: of `jax.make_jaxpr(...)(...).jaxpr`.
        platform: JAX's name of the platform, such as "cuda".
    """
    return _Flattening(platform).program(jaxpr)


class _Flattening:
    def __init__(self, platform: str) -> None:
        self._platform = platform
        self._sizes: list[int] = []
        self._operations: list[Operation] = []

    def program(self, jaxpr: core.Jaxpr) -> Program:
        numbers: dict[Any, int] = {}
        arguments = tuple(self._new(var, numbers) for var in jaxpr.invars)
        for var in jaxpr.constvars:
            self._new(var, numbers)
        self._add(jaxpr, numbers, backward=False)
        outputs = tuple(_present(jaxpr.outvars, numbers))
        return Program(self._sizes, arguments, outputs, _needed(self._operations, outputs))

    def _new(self, var: Any, numbers: dict[Any, int]) -> int:
        numbers[var] = len(self._sizes)
        self._sizes.append(_nbytes(var.aval))
        return numbers[var]

    def _add(self, jaxpr: core.Jaxpr, numbers: dict[Any, int], backward: bool) -> None:
        for equation in jaxpr.eqns:
            # Operations of the backward pass have this name; see `jax.named_scope`.
            behind = backward or "transpose" in str(equation.source_info.name_stack)
            inner, operands = self._called(equation)
            if inner is not None:
                self._inline(inner, operands, equation.outvars, numbers, behind)
            elif _is_free(equation):
                self._alias(equation.outvars[0], equation.invars[0], numbers, numbers)
            else:
                self._operations.append(
                    Operation(
                        equation,
                        tuple(_present(equation.invars, numbers)),
                        tuple(self._new(var, numbers) for var in equation.outvars),
                        behind,
                        *self._loop(equation),
                    )
                )

    def _called(self, equation: Any) -> tuple[core.Jaxpr | None, Sequence[Any]]:
        """The program that an equation computes once, and its operands; None for others."""
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            return getattr(inner, "jaxpr", inner), equation.invars
        if name == "cond":
            # Other conditionals than those of platforms have branches that cost the same.
            branch = _branch(params.get("branches_platforms"), self._platform)
            return params["branches"][branch].jaxpr, equation.invars[1:]
        return None, ()

    def _inline(
        self,
        inner: core.Jaxpr,
        operands: Sequence[Any],
        results: Sequence[Any],
        numbers: dict[Any, int],
        backward: bool,
    ) -> None:
        scope: dict[Any, int] = {}
        for var in inner.constvars:
            self._new(var, scope)
        for var, operand in zip(inner.invars, operands, strict=True):
            self._alias(var, operand, scope, numbers)
        self._add(inner, scope, backward)
        for result, inside in zip(results, inner.outvars, strict=True):
            self._alias(result, inside, numbers, scope)

    def _alias(self, var: Any, other: Any, scope: dict[Any, int], others: dict[Any, int]) -> None:
        """Give a variable the number of another one, or a new number for a constant."""
        if isinstance(other, core.Literal):
            self._new(var, scope)
        else:
            scope[var] = others[other]

    def _loop(self, equation: Any) -> tuple[Program | None, int]:
        params = equation.params
        if equation.primitive.name == "scan":
            return flatten(params["jaxpr"].jaxpr, self._platform), params["length"]
        if equation.primitive.name == "while":
            return flatten(params["body_jaxpr"].jaxpr, self._platform), 1
        return None, 1


def _present(variables: Sequence[Any], numbers: Mapping[Any, int]) -> Iterator[int]:
    return (numbers[var] for var in variables if not isinstance(var, core.Literal))


def _branch(platforms: Sequence[Sequence[str] | None] | None, platform: str) -> int:
    """The branch of `lax.platform_dependent`."""
    if platforms is None:
        return 0
    found = (i for i, names in enumerate(platforms) if names and platform in names)
    return next(found, len(platforms) - 1)


def _is_free(equation: Any) -> bool:
    if equation.primitive.name not in _MOVES:
        return False
    source, result = equation.invars[0].aval, equation.outvars[0].aval
    return source.size == result.size and source.dtype == result.dtype


def _nbytes(aval: Any) -> int:
    # Random keys have no size of their own; they are small.
    return int(aval.size * getattr(aval.dtype, "itemsize", 8)) if hasattr(aval, "size") else 0


def _needed(operations: Sequence[Operation], outputs: Sequence[int]) -> tuple[Operation, ...]:
    """The operations on whose results the outputs depend."""
    wanted, kept = set(outputs), []
    for operation in reversed(operations):
        if wanted.intersection(operation.outputs):
            wanted.update(operation.inputs)
            kept.append(operation)
    return tuple(reversed(kept))
