"""Traces JAX's side of a comparison."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax.models.names import WEIGHTS, leaves, named
from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.verify import jax_side
from fcn_jax.verify.program import SCOPE, Program, Traced, trace_function
from fcn_jax.verify.torch_side import by_name
from fcn_jax.verify.types import Pair


def trace(pair: Pair, inputs: Sequence[np.ndarray]) -> Program:
    """Trace JAX's side in its current mode."""
    graphdef, weights, rest = nnx.split(pair.jax, WEIGHTS, ...)  # type: ignore[misc]
    variables = dict(nnx.to_flat_state(weights))
    values = {path: variable.get_value() for path, variable in named(weights).items()}
    trained = {path for path, v in named(weights).items() if isinstance(v, nnx.Param)}
    statistics = [path for path, v in named(weights).items() if type(v) is nnx.BatchStat]

    def run(values: dict[str, Any], inputs: tuple[Any, ...]) -> Traced:
        state = nnx.from_flat_state(
            {p: v.replace(values[".".join(map(str, p))]) for p, v in variables.items()}
        )
        network = nnx.merge(graphdef, state, rest, copy=True)
        calls: list[tuple[str, Any, Any]] = []
        with _scoped(network, calls), folding(False):
            outputs = by_name(pair.call(network, inputs))
        after = leaves(network)
        return Traced(outputs, calls, {path: after[path].get_value() for path in statistics})

    with jax_side.precise():
        return trace_function(run, values, inputs, values.keys() - trained - set(statistics))


@contextlib.contextmanager
def _scoped(network: nnx.Module, calls: list[tuple[str, Any, Any]]) -> Iterator[None]:
    """Name the module of what is traced, and note calls with a single array in and out."""
    modules = jax_side.submodules(network)
    paths = {id(child): path for path, child in modules.items()}
    classes = {type(child) for child in modules.values()}
    own = {cls: cls.__dict__.get("__call__") for cls in classes}

    def scoped(cls: Any) -> Callable[..., Any]:
        original = cls.__call__

        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            # A subclass may call its parent's method: that is a part of a call.
            if type(self) is not cls or id(self) not in paths:
                return original(self, *args, **kwargs)
            path = paths[id(self)]
            with jax.named_scope(SCOPE + path):
                output = original(self, *args, **kwargs)
            if len(args) == 1 and not kwargs and _is_array(args[0]) and _is_array(output):
                calls.append((path, args[0], output))
            return output

        return call

    # All before the first is set, because a class may inherit the method from another one of them.
    wrappers = {cls: scoped(cls) for cls in classes}
    try:
        for cls, wrapper in wrappers.items():
            setattr(cls, "__call__", wrapper)  # noqa: B010 (mypy rejects an assignment)
        yield
    finally:
        for cls in classes:
            if own[cls] is None:
                delattr(cls, "__call__")
            else:
                setattr(cls, "__call__", own[cls])  # noqa: B010


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)
