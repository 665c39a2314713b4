"""Images that fill the top left corner of the array they lie in, so that one compiled program serves many image sizes.

    with valid.sizes({(384, 512): (height, width)}):  # of the array: of the image, as arrays
        logits = network(x)

Within the block every operator of `fcn_jax.nn` computes what it would compute on the image alone,
in the top left corner of its result: it takes what lies outside the image for its own border, zeros
or minus infinity, and derives the size of its result. What lies outside in a result is arbitrary.
Sizes are known by the shapes of the arrays that the images lie in, so operations that keep the
shape, such as ReLU, need not know of it. A network that slices or pads by itself cannot be run in
this way, and raises; so does one that goes on from an array whose shape two maps have that do not
have one size at every size of the image, as can be in small arrays.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_HW = tuple[int, int]


class _Side(NamedTuple):
    """Height or width of images in arrays of one shape.

    Attributes:
        length: as an operator uses it, i32[] or int.
        root: shape of the array that it was derived from; None where its length was a number.
        lengths: what it would be, i64, for each length of the images at the root.
    """

    length: Any
    root: _HW | None
    lengths: np.ndarray

    def derived(self, length: Callable[[Any], Any]) -> _Side:
        """The side of n pixels made one of `length(n)`."""
        return _Side(
            length(self.length),
            self.root,
            np.broadcast_to(length(self.lengths), self.lengths.shape),
        )

    def same(self, other: _Side) -> bool:
        """Whether the two are one for every image that leaves neither empty."""
        if self.root != other.root:
            return False
        legal = np.minimum(self.lengths, other.lengths) >= 1
        return bool((self.lengths == other.lengths)[legal].all())


_Sides = tuple[_Side, _Side]
_known: contextvars.ContextVar[dict[_HW, _Sides | None] | None] = contextvars.ContextVar(
    "valid sizes", default=None
)


@contextlib.contextmanager
def sizes(known: Mapping[_HW, tuple[Any, Any]]) -> Iterator[None]:
    """Say that images in arrays of one height and width fill the top left corner alone.

    Args:
        known: height and width of arrays -> height and width of the images in them, i32[] or int,
            at least 1.
    """

    def side(outer: _HW, axis: int, length: Any) -> _Side:
        if isinstance(length, int):
            return _Side(length, None, np.asarray([length]))
        return _Side(length, outer, np.arange(1, outer[axis] + 1))

    token = _known.set(
        {outer: (side(outer, 0, hw[0]), side(outer, 1, hw[1])) for outer, hw in known.items()}
    )
    try:
        yield
    finally:
        _known.reset(token)


def told() -> bool:
    """Whether this is inside of `sizes`."""
    return _known.get() is not None


def of(outer: _HW) -> tuple[Any, Any] | None:
    """The size of the images in arrays of height and width `outer`; None outside of `sizes`.

    Raises:
        ValueError: no operator has told, or two have told differently.
    """
    sides = _sides(outer)
    return None if sides is None else (sides[0].length, sides[1].length)


def _sides(outer: _HW) -> _Sides | None:
    known = _known.get()
    if known is None:
        return None
    if outer not in known:
        raise ValueError(
            f"the size of the image in a feature of {outer[0]}x{outer[1]} pixels is not known: this network slices or pads by itself, so "
            "it cannot run on images that fill a part of their array; its descriptor must not say `maskable`"
        )
    sides = known[outer]
    if sides is None:
        raise ValueError(
            f"the size of the image in a feature of {outer[0]}x{outer[1]} pixels is not known: this network has two such features, which "
            "differ in it for some images; put the image into a larger array, or run it by itself; or its descriptor must not say "
            "`maskable`"
        )
    return sides


def filled(x: jax.Array, value: float = 0.0) -> jax.Array:
    """`x` f[N,H,W,C] with `value` outside of the image; `x` itself outside of `sizes`."""
    inner = of((x.shape[1], x.shape[2]))
    if inner is None:
        return x
    inside = (lax.iota(jnp.int32, x.shape[1]) < inner[0])[:, None] & (
        lax.iota(jnp.int32, x.shape[2]) < inner[1]
    )
    return jnp.where(inside[:, :, None], x, jnp.asarray(value, x.dtype))


def derive(
    x: jax.Array,
    y: jax.Array,
    down: Callable[[Any], Any],
    across: Callable[[Any], Any] | None = None,
) -> jax.Array:
    """Note that `y` was made from `x`; returns `y`.

    n rows become `down(n)` and n columns `across(n)`, `down(n)` if it is not given; also for arrays
    of n.

    Where arrays of the shape of `y` are known to hold images of another size, from here on it is
    not known which.
    """
    known, inner = _known.get(), _sides((x.shape[1], x.shape[2]))
    if known is not None and inner is not None:
        outer = (y.shape[1], y.shape[2])
        sides = (inner[0].derived(down), inner[1].derived(across or down))
        before = known.get(outer, sides)
        one = before is not None and all(
            side.same(other) for side, other in zip(sides, before, strict=True)
        )
        known[outer] = sides if one else None
    return y
