"""Primitives that numpy computes with the same result as XLA, without compilation.

A single equation takes XLA much longer to compile than to run. Elementwise arithmetic is exact or
rounded once in both libraries, and the rest here only moves values. Convolutions, matrix products,
pooling, sums and transcendental functions are left to JAX. A reciprocal square root is rounded
twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

Params = Mapping[str, Any]


def computed(name: str, params: Params, values: Sequence[Any]) -> Any:
    """The result of a primitive; None if numpy does not compute it.

    Values that do not fit each other are left to JAX, which reports them.

    Args:
        name: of the primitive.
        params: its parameters.
        values: operands. Traced ones are left to JAX.
    """
    run = _PRIMITIVES.get(name)
    if run is None or any(map(_is_foreign, values)):
        return None
    with np.errstate(all="ignore"):
        found = run(params, *map(on_host, values))
    # numpy makes scalars of arrays without axes.
    return None if found is None else np.asarray(found)


def on_host(value: Any) -> Any:
    """A value as numpy's; traced ones and random keys are unchanged."""
    return value if _is_foreign(value) else np.asarray(value)


def _is_foreign(value: Any) -> bool:
    """Whether a value is traced, has no dtype of numpy, or is a number of Python's."""
    dtype = getattr(value, "dtype", None)
    return isinstance(value, jax.core.Tracer) or not isinstance(dtype, np.dtype)


def _elementwise(run: Callable[..., Any], kinds: str = "fiub") -> Callable[..., Any]:
    def checked(params: Params, *values: Any) -> Any:
        shapes = {x.shape for x in values if x.shape}
        dtypes = {x.dtype for x in values}
        fit = len(shapes) < 2 and len(dtypes) == 1 and _kind(values[0]) in kinds
        return run(*values) if fit else None

    return checked


def _kind(x: np.ndarray) -> str:
    """The kind of a dtype; bfloat16 and its like are floats."""
    return "f" if jax.numpy.issubdtype(x.dtype, np.floating) else x.dtype.kind


def _select(params: Params, which: np.ndarray, *cases: np.ndarray) -> Any:
    shapes = {x.shape for x in cases} | {which.shape or cases[0].shape}
    fit = which.dtype == bool and len(cases) == 2 and len(shapes) == 1
    return np.where(which, cases[1], cases[0]) if fit else None


def _clamp(params: Params, low: np.ndarray, x: np.ndarray, high: np.ndarray) -> Any:
    fit = {low.shape, high.shape} <= {(), x.shape} and low.dtype == x.dtype == high.dtype
    return np.minimum(np.maximum(x, low), high) if fit else None


def _inverse_root(x: np.ndarray) -> Any:
    wide = np.sqrt(x.astype(np.promote_types(np.float32, x.dtype)))
    return (1 / wide).astype(x.dtype)


def _power(params: Params, x: np.ndarray) -> Any:
    return x * x if params["y"] == 2 else None


def _converted(params: Params, x: np.ndarray) -> Any:
    new = np.dtype(params["new_dtype"])
    fit = _kind(x) in "fiub" and jax.numpy.issubdtype(new, np.floating)
    return x.astype(new) if fit else None


def _broadcast(params: Params, x: np.ndarray, *sizes: Any) -> Any:
    shape, axes = params["shape"], params["broadcast_dimensions"]
    kept = [1] * len(shape)
    for axis, size in zip(axes, x.shape, strict=True):
        kept[axis] = size
        if size not in (1, shape[axis]):
            return None
    return None if sizes else np.broadcast_to(x.reshape(kept), shape)


def _reshaped(params: Params, x: np.ndarray, *sizes: Any) -> Any:
    plain = not sizes and params.get("dimensions") is None
    fit = plain and math.prod(params["new_sizes"]) == x.size
    return x.reshape(params["new_sizes"]) if fit else None


def _squeezed(params: Params, x: np.ndarray) -> Any:
    fit = all(x.shape[axis] == 1 for axis in params["dimensions"])
    return x.squeeze(tuple(params["dimensions"])) if fit else None


def _sliced(params: Params, x: np.ndarray) -> Any:
    start, stop = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * x.ndim
    if len(stop) != x.ndim or any(end > size for end, size in zip(stop, x.shape, strict=True)):
        return None
    return x[tuple(map(slice, start, stop, steps))]


def _padded(params: Params, x: np.ndarray, fill: np.ndarray) -> Any:
    widths = params["padding_config"]
    if len(widths) != x.ndim or any(min(width) < 0 or width[2] for width in widths):
        return None
    sizes = [low + n + high for (low, high, _), n in zip(widths, x.shape, strict=True)]
    found = np.full(sizes, fill, x.dtype)
    found[tuple(slice(low, low + n) for (low, _, _), n in zip(widths, x.shape, strict=True))] = x
    return found


def _joined(params: Params, *values: np.ndarray) -> Any:
    axis = params["dimension"]
    shapes = {(*x.shape[:axis], *x.shape[axis + 1 :]) for x in values}
    return np.concatenate(values, axis) if len(shapes) == 1 else None


def _transposed(params: Params, x: np.ndarray) -> Any:
    order = params["permutation"]
    return x.transpose(order) if len(order) == x.ndim else None


_PRIMITIVES: dict[str, Callable[..., Any]] = {
    "abs": _elementwise(np.abs, "f"),
    "add": _elementwise(np.add, "fiu"),
    "div": _elementwise(np.true_divide, "f"),
    "eq": _elementwise(np.equal),
    "ge": _elementwise(np.greater_equal),
    "gt": _elementwise(np.greater),
    "le": _elementwise(np.less_equal),
    "lt": _elementwise(np.less),
    "max": _elementwise(np.maximum),
    "min": _elementwise(np.minimum),
    "mul": _elementwise(np.multiply, "fiu"),
    "ne": _elementwise(np.not_equal),
    "neg": _elementwise(np.negative, "f"),
    "rsqrt": _elementwise(_inverse_root, "f"),
    "sqrt": _elementwise(np.sqrt, "f"),
    "square": _elementwise(lambda x: x * x, "f"),
    "sub": _elementwise(np.subtract, "fiu"),
    "broadcast_in_dim": _broadcast,
    "clamp": _clamp,
    "concatenate": _joined,
    "convert_element_type": _converted,
    "integer_pow": _power,
    "pad": _padded,
    "reshape": _reshaped,
    "select_n": _select,
    "slice": _sliced,
    "squeeze": _squeezed,
    "transpose": _transposed,
}
