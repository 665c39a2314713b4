"""2-d convolution with PyTorch's padding, and a weight gradient that is fast on CPUs too."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fcn_jax.nn.bias import add_bias
from fcn_jax.nn.initializers import Initializer, torch_default

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _xla_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int, groups: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> jax.Array:
    """2-d cross-correlation, as `torch.nn.functional.conv2d`: both borders are padded with `padding` zeros.

    Args:
        x: f[N, H, W, I].
        kernel: f[kH, kW, I / groups, O], of the dtype of `x`.
        stride: at least 1.
        padding: zeros on each side, at least 0.
        dilation: distance between the kernel's taps, at least 1.
        groups: divides I and O.

    Returns:
        f[N, h, w, O] with h = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1.
    """
    return _xla_conv(x, kernel, stride, padding, dilation, groups)


def _conv_fwd(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _xla_conv(x, kernel, stride, padding, dilation, groups), (x, kernel)


def _conv_bwd(
    stride: int, padding: int, dilation: int, groups: int, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    settings = (stride, padding, dilation, groups)
    grad_x = jax.vjp(lambda x: _xla_conv(x, kernel, *settings), x)[1](grad)[0]

    def by_xla(x: jax.Array, grad: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: _xla_conv(x, kernel, *settings), kernel)[1](grad)[0]

    if groups > 1:
        return grad_x, by_xla(x, grad)
    by_products = functools.partial(_kernel_grad_by_products, kernel_shape=kernel.shape, settings=settings)
    return grad_x, lax.platform_dependent(x, grad, cpu=by_products, default=by_xla)


_PRODUCT_ROWS = 4096
"""Largest number of output pixels whose im2col columns are made at a time, if an image has no more than that."""


def _kernel_grad_by_products(
    x: jax.Array, grad: jax.Array, *, kernel_shape: tuple[int, ...], settings: tuple[int, int, int, int]
) -> jax.Array:
    """Kernel gradient as a matrix product per image, or per few small images, summed over the batch.

    XLA on CPU computes it as a convolution whose kernel is the whole image, several times slower. The columns of im2col are made for a
    part of the batch at a time: over all of it at once, copying them would cost what the product gains.
    """
    stride, padding, dilation, _ = settings
    height, width, channels, out = kernel_shape
    batch, rows, cols = grad.shape[:3]
    group = max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * rows * cols <= _PRODUCT_ROWS))
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def tap(images: jax.Array, i: int, j: int) -> jax.Array:
        top, left = i * dilation, j * dilation
        return images[:, top : top + (rows - 1) * stride + 1 : stride, left : left + (cols - 1) * stride + 1 : stride]

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        images, grads = part
        columns = jnp.concatenate([tap(images, i, j) for i in range(height) for j in range(width)], axis=-1)
        product = lax.dot_general(
            columns.reshape(group * rows * cols, -1),
            grads.reshape(group * rows * cols, out),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return total + product, None

    parts = [array.reshape(batch // group, group, *array.shape[1:]) for array in (padded, grad)]
    total, _ = lax.scan(add, jnp.zeros((height * width * channels, out), jnp.float32), (parts[0], parts[1]))
    return total.reshape(kernel_shape).astype(x.dtype)


conv.defvjp(_conv_fwd, _conv_bwd)


class Conv(nnx.Module):
    """2-d convolution layer; `torch.nn.Conv2d` in NHWC. See `conv` for the shapes.

    Attributes:
        kernel: f[kH, kW, I / groups, O], parameters in `param_dtype`.
        bias: f[O], or None.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        use_bias: bool = True,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters; what is given no initializer is drawn from PyTorch's default."""
        shape = (kernel_size, kernel_size, channels_in // groups, channels_out)
        default = torch_default(kernel_size * kernel_size * channels_in // groups)
        self.kernel = nnx.Param((kernel_init or default)(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param((bias_init or default)(rngs.params(), (channels_out,), param_dtype)) if use_bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> `dtype`[N, h, w, O]."""
        kernel = self.kernel[...].astype(self.dtype)
        y = conv(x.astype(self.dtype), kernel, self.stride, self.padding, self.dilation, self.groups)
        return y if self.bias is None else add_bias(y, self.bias[...])
