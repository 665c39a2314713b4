"""2-d convolution with PyTorch's padding. Gradients and groups are fast on CPUs too."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fcn_jax.nn._barriers import CONV_OUTPUT
from fcn_jax.nn._bias import add_bias
from fcn_jax.nn._conv_cpu import cpu_conv, cpu_grads
from fcn_jax.nn._conv_xla import Settings, gpu_conv, gpu_grads, tpu_grads, xla_conv
from fcn_jax.nn._initializers import Initializer, torch_default
from fcn_jax.nn._padding import pad_same, same_padding

Padding = int | Literal["same"]


def conv(
    x: Float[Array, "N H W I"],
    kernel: Float[Array, "kH kW {x.shape[3]//groups} O"],
    stride: int = 1,
    padding: Padding = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Float[Array, "N h w O"]:
    """2-d cross-correlation, as `torch.nn.functional.conv2d`.

    Args:
        x: f[N, H, W, I].
        kernel: f[kH, kW, I / groups, O], rounded to the dtype of `x`. Its gradient is summed in
            float32, except on GPUs.
        stride: at least 1.
        padding: zeros on each side, at least 0; or "same", TensorFlow's padding, see
            `same_padding`.
        dilation: distance between the taps of the kernel, at least 1.
        groups: divides I and O.

    Returns:
        f[N, h, w, O] with h = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1, or with
        h = ceil(H / stride) if `padding` is "same".
    """
    if padding == "same":
        x, padding = _with_same_padding(x, kernel, stride, dilation)
    settings = Settings(stride, padding, dilation, groups)
    return checkpoint_name(_conv(x, kernel, settings), CONV_OUTPUT)


def _with_same_padding(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, int]:
    """The image for a convolution, padded if that differs between the sides, and the padding."""
    taps = (kernel.shape[0], kernel.shape[1])
    widths = {
        width
        for size, kernel_size in zip(x.shape[1:3], taps, strict=True)
        for width in same_padding(size, kernel_size, stride, dilation)
    }
    if len(widths) == 1:
        return x, widths.pop()
    return pad_same(x, taps, stride, dilation), 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, settings: Settings) -> jax.Array:
    return lax.platform_dependent(
        x,
        kernel.astype(x.dtype),
        cpu=functools.partial(cpu_conv, settings),
        tpu=functools.partial(xla_conv, settings),
        default=functools.partial(gpu_conv, settings),
    )


def _conv_fwd(
    x: jax.Array, kernel: jax.Array, settings: Settings
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, settings), (x, kernel)


def _conv_bwd(
    settings: Settings, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    grad_x, grad_kernel = lax.platform_dependent(
        x,
        kernel.astype(x.dtype),
        grad,
        cpu=functools.partial(cpu_grads, settings),
        tpu=functools.partial(tpu_grads, settings),
        default=functools.partial(gpu_grads, settings),
    )
    return grad_x, grad_kernel.astype(kernel.dtype)


_conv.defvjp(_conv_fwd, _conv_bwd)


class Conv(nnx.Module):
    """2-d convolution layer; `torch.nn.Conv2d` in NHWC. See `conv` for the shapes.

    Attributes:
        kernel: f[kH, kW, I / groups, O], in `param_dtype`.
        bias: f[O], or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Padding = 0,
        dilation: int = 1,
        groups: int = 1,
        use_bias: bool = True,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters, from PyTorch's default where there is no initializer."""
        shape = (kernel_size, kernel_size, in_channels // groups, out_channels)
        default = torch_default(kernel_size * kernel_size * in_channels // groups)
        self.kernel = nnx.Param((kernel_init or default)(rngs.params(), shape, param_dtype))
        self.bias = (
            nnx.Param((bias_init or default)(rngs.params(), (out_channels,), param_dtype))
            if use_bias
            else None
        )
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """f[N, H, W, I] -> `dtype`[N, h, w, O]."""
        y = conv(
            x.astype(self.dtype),
            self.kernel[...],
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return y if self.bias is None else add_bias(y, self.bias[...])
