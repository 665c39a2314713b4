"""Floating-point operations of convolutions and matrix products, from their traced equations."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

MATRIX = ("conv_general_dilated", "dot_general")
"""JAX's names of the operations that have FLOPs. Those of all others are not counted."""


def flops(equation: Any) -> int:
    """Return the FLOPs of an equation of a jaxpr. A multiply-add is two.

    Products with padding and with the zeros between dilated values are not counted, as in XLA's
    cost analysis. So a convolution without padding has 2 N h w kH kW I O, and each of its two
    gradients has exactly as many as the convolution.
    """
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        return _convolution(equation)
    return 0


def _convolution(equation: Any) -> int:
    lhs, rhs = (var.aval.shape for var in equation.invars)
    out, params = equation.outvars[0].aval.shape, equation.params
    lhs_axes, rhs_axes, out_axes = params["dimension_numbers"]
    products = 2 * out[out_axes[0]] * out[out_axes[1]] * rhs[rhs_axes[1]]
    for i, (stride, padding, lhs_dilation, rhs_dilation) in enumerate(
        zip(
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ):
        products *= _pairs(
            lhs[lhs_axes[2 + i]],
            rhs[rhs_axes[2 + i]],
            out[out_axes[2 + i]],
            stride,
            padding[0],
            lhs_dilation,
            rhs_dilation,
        )
    return products


@functools.cache
def _pairs(
    size: int, taps: int, out: int, stride: int, low: int, dilation: int, kernel_dilation: int
) -> int:
    """Count the pairs of an output and a tap that meet a value of the input, along one axis."""
    places = np.arange(out)[:, None] * stride + np.arange(taps) * kernel_dilation - low
    inside = (places >= 0) & (places <= (size - 1) * dilation) & (places % dilation == 0)
    return int(inside.sum())


def operands(equation: Any) -> tuple[str, str]:
    """Return dtype and precision of a matrix product or convolution, as `Kind.peak` takes them."""
    precision = equation.params.get("precision")
    if isinstance(precision, tuple):
        precision = precision[0]
    name = "default" if precision is None else str(getattr(precision, "name", precision)).lower()
    return str(equation.invars[0].aval.dtype), name if name in ("high", "highest") else "default"
