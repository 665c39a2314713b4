"""Fully connected layer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fcn_jax.nn._bias import add_bias
from fcn_jax.nn._initializers import Initializer, torch_default
from fcn_jax.nn._matmul import product


class Linear(nnx.Module):
    """Product of the last axis with a matrix, plus a bias; `torch.nn.Linear`.

    The gradients of both parameters are summed in float32, also if `dtype` is bfloat16.

    Attributes:
        kernel: f[I, O], in `param_dtype`; the transpose of PyTorch's `weight`.
        bias: f[O], or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters, from PyTorch's default where there is no initializer."""
        default = torch_default(in_features)
        kernel_init, bias_init = kernel_init or default, bias_init or default
        self.kernel = nnx.Param(
            kernel_init(rngs.params(), (in_features, out_features), param_dtype)
        )
        self.bias = (
            nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype)) if use_bias else None
        )
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*N I"]) -> Float[Array, "*N O"]:
        """f[..., I] -> `dtype`[..., O]."""
        y = product(x.astype(self.dtype), self.kernel[...])
        return y if self.bias is None else add_bias(y, self.bias[...])
