"""Images that fill the top left corner of the array they lie in, so that one compiled program serves many image sizes.

    with valid.sizes({(384, 512): (height, width)}):  # of the array: of the image, as arrays
        logits = network(x)

Within the block every operator of `fcn_jax.nn` computes what it would compute on the image alone, in the top left corner of its result: it
takes what lies outside the image for its own border, zeros or minus infinity, and derives the size of its result. What lies outside in a
result is arbitrary. Sizes are known by the shapes of the arrays that the images lie in, so operations that keep the shape, such as ReLU,
need not know of it; a network that slices or pads by itself cannot be run in this way, and raises.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_HW = tuple[int, int]
_known: contextvars.ContextVar[dict[_HW, tuple[Any, Any]] | None] = contextvars.ContextVar("valid sizes", default=None)


@contextlib.contextmanager
def sizes(known: Mapping[_HW, tuple[Any, Any]]) -> Iterator[None]:
    """Say that images in arrays of one height and width fill the top left corner alone.

    Args:
        known: height and width of arrays -> height and width of the images in them, i32[] or int, at least 1.
    """
    token = _known.set(dict(known))
    try:
        yield
    finally:
        _known.reset(token)


def of(outer: _HW) -> tuple[Any, Any] | None:
    """The size of the images in arrays of height and width `outer`; None outside of `sizes`.

    Raises:
        ValueError: no operator has told.
    """
    known = _known.get()
    if known is None:
        return None
    if outer not in known:
        raise ValueError(
            f"the size of the image in a feature of {outer[0]}x{outer[1]} pixels is not known: this network slices or pads by itself, so "
            "it cannot run on images that fill a part of their array; its descriptor must not say `maskable`"
        )
    return known[outer]


def filled(x: jax.Array, value: float = 0.0) -> jax.Array:
    """`x` f[N,H,W,C] with `value` outside of the image; `x` itself outside of `sizes`."""
    inner = of((x.shape[1], x.shape[2]))
    if inner is None:
        return x
    inside = (lax.iota(jnp.int32, x.shape[1]) < inner[0])[:, None] & (lax.iota(jnp.int32, x.shape[2]) < inner[1])
    return jnp.where(inside[:, :, None], x, jnp.asarray(value, x.dtype))


def derive(x: jax.Array, y: jax.Array, length: Callable[[Any], Any]) -> jax.Array:
    """Note that `y` was made from `x`, a side of n pixels becoming one of `length(n)`; returns `y`."""
    known, inner = _known.get(), of((x.shape[1], x.shape[2]))
    if known is not None and inner is not None:
        known[y.shape[1], y.shape[2]] = (length(inner[0]), length(inner[1]))
    return y
