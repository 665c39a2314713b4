"""Transposed convolution as one matrix product, which is fast for large strides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fcn_jax.nn._bias import add_bias
from fcn_jax.nn._buffer import Buffer
from fcn_jax.nn._depthwise_conv_transpose import spread
from fcn_jax.nn._initializers import Initializer, bilinear, bilinear_depthwise, torch_default
from fcn_jax.nn._matmul import product
from fcn_jax.nn._split_rows import block_rows
from fcn_jax.nn._subpixel import SubpixelLogits, pixel_shuffle


def conv_transpose(
    x: Float[Array, "N H W I"],
    kernel: Float[Array, "kH kW I _"],
    stride: int,
    padding: int = 0,
    output_padding: int = 0,
    groups: int = 1,
) -> Float[Array, "N h w O"]:
    """Transposed 2-d convolution, as `torch.nn.functional.conv_transpose2d`.

    Input pixel (h, w) adds `x[n, h, w] @ kernel[i, j]` to output pixel (stride h + i - padding,
    stride w + j - padding). A dilated convolution would multiply zeros, except for 1/stride^2 of
    its work. Here the output is cut into blocks of stride x stride pixels. Each depends on
    ceil(k / stride)^2 neighboring input pixels: these are concatenated and multiplied by the kernel
    as a matrix.

    Args:
        x: f[N, H, W, I].
        kernel: f[kH, kW, I, O / groups], rounded to the dtype of `x`; its gradient is summed in
            float32.
        stride: at least 1.
        padding: pixels cropped from each border of the full output, at least 0.
        output_padding: pixels added at the bottom and right, 0 to stride - 1.
        groups: 1, or the number of channels I = O: each channel then has its own kernel.

    Returns:
        f[N, h, w, O] with h = (H - 1) stride - 2 padding + kH + output_padding.

    Raises:
        ValueError: the output would be empty, or `output_padding` or `groups` is out of range.
    """
    rows, cols, channels = x.shape[1:]
    height, width = kernel.shape[:2]
    out_rows, out_cols = (
        (size - 1) * stride - 2 * padding + k + output_padding
        for size, k in ((rows, height), (cols, width))
    )
    if not 0 <= output_padding < stride:
        raise ValueError(
            f"output_padding is {output_padding}; it must be at least 0 and less than the stride, "
            f"{stride}"
        )
    if out_rows < 1 or out_cols < 1:
        raise ValueError(
            f"the output of a transposed convolution of {rows}x{cols} pixels would be "
            f"{out_rows}x{out_cols}"
        )
    if groups != 1 and (groups != channels or kernel.shape[3] != 1):
        raise ValueError(
            f"groups is {groups}; it must be 1, or {channels}, the number of channels, with one "
            "kernel each"
        )

    neighbors, bands = _neighbors(x, kernel, stride)
    full = pixel_shuffle(_dense(neighbors, bands)) if groups == 1 else _depthwise(neighbors, bands)
    # Only output padding can need pixels past the last block, which are zero.
    missing_rows, missing_cols = (
        max(0, padding + size - have)
        for size, have in ((out_rows, full.shape[1]), (out_cols, full.shape[2]))
    )
    full = jnp.pad(full, ((0, 0), (0, missing_rows), (0, missing_cols), (0, 0)))
    return full[:, padding : padding + out_rows, padding : padding + out_cols]


def _neighbors(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[list[jax.Array], jax.Array]:
    """The neighbors and the bands that `_dense` takes."""
    rows, cols = x.shape[1:3]
    height, width = kernel.shape[:2]
    # Each input pixel reaches `taps` blocks in a row. The kernel is padded with zeros to a multiple
    # of the stride.
    row_taps, col_taps = -(-height // stride), -(-width // stride)
    kernel = jnp.pad(
        kernel, ((0, row_taps * stride - height), (0, col_taps * stride - width), (0, 0), (0, 0))
    )
    bands = kernel.reshape(row_taps, stride, col_taps, stride, *kernel.shape[2:])
    # Input pixel b - i reaches block b through the i-th band of rows of the kernel.
    high, wide = block_rows(rows + row_taps - 1), cols + col_taps - 1
    padded = jnp.pad(x, ((0, 0), (row_taps - 1, high - rows), (col_taps - 1, wide - cols), (0, 0)))
    neighbors = [
        padded[
            :,
            row_taps - 1 - i : row_taps - 1 - i + high,
            col_taps - 1 - j : col_taps - 1 - j + wide,
        ]
        for i in range(row_taps)
        for j in range(col_taps)
    ]
    return neighbors, bands


def _dense(
    neighbors: Sequence[jax.Array], bands: jax.Array, *, classes_first: bool = False
) -> jax.Array:
    """The blocks, by one matrix product over the channels of all neighbors.

    Args:
        neighbors: row_taps * col_taps of f[N, h, w, I]: for each block, the input pixel that
            reaches it through each band of the kernel.
        bands: f[row_taps, stride, col_taps, stride, I, O].
        classes_first: whether O comes before the pixels in each block.

    Returns:
        f[N, h, w, stride, stride, O]; with `classes_first` f[N, h, w, O, stride, stride].
    """
    row_taps, stride, col_taps, _, channels, out = bands.shape
    order, block = (
        ((5, 1, 3), (out, stride, stride)) if classes_first else ((1, 3, 5), (stride, stride, out))
    )
    matrix = bands.transpose(0, 2, 4, *order).reshape(
        row_taps * col_taps * channels, stride * stride * out
    )
    blocks = product(jnp.concatenate(neighbors, axis=-1), matrix)
    return blocks.reshape(*blocks.shape[:3], *block)


def _depthwise(neighbors: Sequence[jax.Array], bands: jax.Array) -> jax.Array:
    """The full output for one kernel per channel.

    The bands are f[row_taps, stride, col_taps, stride, C, 1].
    """
    _, stride, _, _, channels, _ = bands.shape
    kernels = bands[..., 0].swapaxes(1, 2).reshape(-1, stride, stride, channels)
    blocks = spread(tuple(neighbors), kernels)
    batch, rows, _, cols = blocks.shape[:4]
    return blocks.reshape(batch, rows * stride, cols * stride, channels)


def conv_transpose_blocks(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int = 0
) -> SubpixelLogits:
    """`conv_transpose` of f[N, H, W, I] with f[kH, kW, I, O], in the layout of the product."""
    rows, cols = x.shape[1:3]
    values = _dense(*_neighbors(x, kernel, stride), classes_first=True)
    height, width = (
        (size - 1) * stride - 2 * padding + k
        for size, k in ((rows, kernel.shape[0]), (cols, kernel.shape[1]))
    )
    return SubpixelLogits(values, padding, padding, height, width)


class ConvTranspose(nnx.Module):
    """Transposed 2-d convolution layer; `torch.nn.ConvTranspose2d` in NHWC.

    See `conv_transpose` for the shapes.

    Attributes:
        kernel: f[kH, kW, I, O / groups], in `param_dtype`; a `Buffer` if it is not trainable.
        bias: f[O], or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        padding: int = 0,
        groups: int = 1,
        use_bias: bool = True,
        kernel_init: Initializer | None = None,
        trainable: bool = True,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters: the kernel bilinear by default, the bias from PyTorch's default.

        Training does not change the kernel unless it is `trainable`.
        """
        shape = (kernel_size, kernel_size, in_channels, out_channels // groups)
        default = bilinear if groups == 1 else bilinear_depthwise
        kernel = (kernel_init or default)(rngs.params(), shape, param_dtype)
        self.kernel = nnx.Param(kernel) if trainable else Buffer(kernel)
        # In PyTorch the fan-in of a transposed kernel (I, O, H, W) is that of its second axis.
        bias_init = torch_default(kernel_size * kernel_size * out_channels // groups)
        self.bias = (
            nnx.Param(bias_init(rngs.params(), (out_channels,), param_dtype)) if use_bias else None
        )
        self.stride, self.padding, self.groups = stride, padding, groups
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """f[N, H, W, I] -> `dtype`[N, h, w, O]."""
        y = conv_transpose(
            x.astype(self.dtype), self.kernel[...], self.stride, self.padding, groups=self.groups
        )
        return y if self.bias is None else add_bias(y, self.bias[...])

    def blocks(self, x: jax.Array) -> SubpixelLogits | None:
        """The same as `SubpixelLogits`, which saves a copy; None if the kernel is depthwise."""
        if self.groups != 1:
            return None
        y = conv_transpose_blocks(x.astype(self.dtype), self.kernel[...], self.stride, self.padding)
        return (
            y
            if self.bias is None
            else dataclasses.replace(
                y, values=add_bias(y.values, self.bias[...], SubpixelLogits.CLASS_AXIS)
            )
        )
