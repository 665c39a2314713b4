"""Transposed convolution as one matrix product: the form that is fast where the stride is large, forward and backward."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fcn_jax.nn import valid
from fcn_jax.nn.bias import add_bias
from fcn_jax.nn.initializers import Initializer, bilinear, torch_default


def conv_transpose(x: jax.Array, kernel: jax.Array, stride: int, padding: int = 0, output_padding: int = 0) -> jax.Array:
    """Transposed 2-d convolution, as `torch.nn.functional.conv_transpose2d`.

    Input pixel (h, w) adds `x[n, h, w] @ kernel[i, j]` to output pixel (stride h + i - padding, stride w + j - padding). A dilated
    convolution would spend all but 1/stride^2 of its work on zeros. Here the output is cut into blocks of stride x stride pixels,
    each of which depends on ceil(k / stride)^2 neighbouring input pixels: those are concatenated, multiplied with the kernel laid
    out as a matrix, and the blocks put side by side.

    Args:
        x: f[N, H, W, I].
        kernel: f[kH, kW, I, O], of the dtype of `x`.
        stride: at least 1.
        padding: pixels cropped from each border of the full output, at least 0.
        output_padding: pixels added at the bottom and right, 0 to stride - 1.

    Returns:
        f[N, h, w, O] with h = (H - 1) stride - 2 padding + kH + output_padding.

    Raises:
        ValueError: if nothing is left of the output, or `output_padding` is not smaller than the stride.
    """
    given, x = x, valid.filled(x)
    batch, rows, cols, channels = x.shape
    height, width, _, out = kernel.shape
    out_rows, out_cols = ((size - 1) * stride - 2 * padding + k + output_padding for size, k in ((rows, height), (cols, width)))
    if not 0 <= output_padding < stride:
        raise ValueError(f"output_padding is {output_padding}; it must be at least 0 and smaller than the stride, {stride}")
    if out_rows < 1 or out_cols < 1:
        raise ValueError(f"the output of a transposed convolution of {rows}x{cols} pixels would be {out_rows}x{out_cols}")

    # Each input pixel reaches `taps` blocks in a row; a kernel that is no multiple of the stride is filled up with zeros.
    row_taps, col_taps = -(-height // stride), -(-width // stride)
    kernel = jnp.pad(kernel, ((0, row_taps * stride - height), (0, col_taps * stride - width), (0, 0), (0, 0)))
    matrix = kernel.reshape(row_taps, stride, col_taps, stride, channels, out).transpose(0, 2, 4, 1, 3, 5)
    matrix = matrix.reshape(row_taps * col_taps * channels, stride * stride * out)

    # Block b is reached by input pixel b - i through the kernel's i-th band of rows.
    block_rows, block_cols = rows + row_taps - 1, cols + col_taps - 1
    padded = jnp.pad(x, ((0, 0), (row_taps - 1, row_taps - 1), (col_taps - 1, col_taps - 1), (0, 0)))
    neighbours = jnp.concatenate(
        [
            padded[:, row_taps - 1 - i : row_taps - 1 - i + block_rows, col_taps - 1 - j : col_taps - 1 - j + block_cols]
            for i in range(row_taps)
            for j in range(col_taps)
        ],
        axis=-1,
    )
    blocks = lax.dot_general(neighbours, matrix, (((3,), (0,)), ((), ())))
    blocks = blocks.reshape(batch, block_rows, block_cols, stride, stride, out)
    full = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, block_rows * stride, block_cols * stride, out)
    # Only output padding can ask for pixels past the last block; nothing reaches those.
    missing_rows, missing_cols = (
        max(0, padding + size - have) for size, have in ((out_rows, full.shape[1]), (out_cols, full.shape[2]))
    )
    full = jnp.pad(full, ((0, 0), (0, missing_rows), (0, missing_cols), (0, 0)))
    y = full[:, padding : padding + out_rows, padding : padding + out_cols]
    return valid.derive(given, y, lambda size: (size - 1) * stride - 2 * padding + height + output_padding)


class ConvTranspose(nnx.Module):
    """Transposed 2-d convolution layer; `torch.nn.ConvTranspose2d` in NHWC. See `conv_transpose` for the shapes.

    Attributes:
        kernel: f[kH, kW, I, O], parameters in `param_dtype`.
        bias: f[O], or None.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        *,
        stride: int,
        padding: int = 0,
        use_bias: bool = True,
        kernel_init: Initializer = bilinear,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters: the kernel by `kernel_init`, the bias from PyTorch's default."""
        shape = (kernel_size, kernel_size, channels_in, channels_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        # PyTorch counts the fan-in of a transposed kernel (I, O, H, W) over its second axis.
        bias_init = torch_default(kernel_size * kernel_size * channels_out)
        self.bias = nnx.Param(bias_init(rngs.params(), (channels_out,), param_dtype)) if use_bias else None
        self.stride, self.padding = stride, padding
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, H, W, I] -> `dtype`[N, h, w, O]."""
        y = conv_transpose(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride, self.padding)
        return y if self.bias is None else add_bias(y, self.bias[...])
