"""Named intermediate values of a traced function, such as the outputs of a network's layers.

`tag` marks a value, and `collect` returns all marked values in addition to the result. Unlike a
list that the function fills, this works inside of `jax.vmap`, `jax.jit` and `jax.checkpoint`: the
mark is an equation of the traced program. Values inside of loops (`lax.scan`) are not collected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

_TAG = "name"
"""The primitive of `checkpoint_name`."""

_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Parameters of an equation that hold the program of a call."""

_LOOPS = ("scan", "while", "cond")


def tag(value: jax.Array, name: str) -> jax.Array:
    """Mark a value; the result is the value. Several values may have the same name."""
    return checkpoint_name(value, name)


def collect(function: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, list[jax.Array]]]]:
    """A function that returns the result and, by name, the tagged values in the order of use.

    Args:
        function: takes and returns pytrees of arrays; it can be traced.
    """

    def run(*args: Any) -> tuple[Any, dict[str, list[jax.Array]]]:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        seen: dict[str, list[jax.Array]] = {}
        values = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), seen)
        return jax.tree.unflatten(jax.tree.structure(shape), values), seen

    return run


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], seen: dict[str, list[jax.Array]]
) -> list[Any]:
    """Evaluate a program equation by equation, and note its tagged values."""
    values: dict[Any, Any] = dict(
        zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True)
    )
    for eqn in jaxpr.eqns:
        given = [x.val if isinstance(x, core.Literal) else values[x] for x in eqn.invars]
        called = inner(eqn)
        found: Sequence[Any]
        if called is not None and _has_tags(called[0]):
            found = _evaluate(*called, given, seen)
        else:
            found = bind(eqn, given)
        if eqn.primitive.name == _TAG:
            seen.setdefault(eqn.params["name"], []).append(found[0])
        values.update(zip(eqn.outvars, found, strict=True))
    return [x.val if isinstance(x, core.Literal) else values[x] for x in jaxpr.outvars]


def bind(eqn: Any, given: Sequence[Any]) -> Sequence[Any]:
    """Results of an equation for other arguments."""
    params = eqn.primitive.get_bind_params(eqn.params)
    # Until jax 0.9 the functions of a call came apart from its other parameters.
    functions, params = params if isinstance(params, tuple) else ((), params)
    found = eqn.primitive.bind(*functions, *given, **params)
    return found if eqn.primitive.multiple_results else [found]


def inner(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """Program and constants of a call; None for other equations and loops."""
    if eqn.primitive.name in _LOOPS:
        return None
    found = next((eqn.params[key] for key in _INNER if key in eqn.params), None)
    if isinstance(found, core.ClosedJaxpr):
        return found.jaxpr, found.consts
    return (found, ()) if isinstance(found, core.Jaxpr) else None


def _has_tags(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name == _TAG or ((called := inner(eqn)) is not None and _has_tags(called[0]))
        for eqn in jaxpr.eqns
    )
