"""Operators and layers with PyTorch's meaning, in JAX's layout.

Activations are NHWC, kernels HWIO. Layers compute in `dtype` and keep parameters in `param_dtype`.
In bfloat16 the gradients of parameters are summed in float32; Flax's own layers sum some of them in
bfloat16. Plugins may use everything listed here; the modules `fcn_jax.nn._*` are private.

Layers:
    Conv: 2-d convolution.
    ConvNormAct: convolution, normalization, activation.
    ConvTranspose: transposed convolution, bilinear at first.
    Linear: fully connected layer on the last axis.
    BatchNorm: batch normalization.
    GlobalResponseNorm: each channel relative to the norms of all, over the image.
    GroupNorm: group normalization, for small batches.
    LayerNorm: layer normalization over the last axis.
    LayerScale: learned factor for each channel.
    StochasticDepth: leaves out the branch of random images in training.
    Buffer: a variable that training does not change, such as a fixed kernel.

Operators:
    conv: convolution.
    conv_transpose: transposed convolution.
    max_pool: maximum of windows.
    global_average_pool: mean over the image.
    adaptive_average_pool: means over the bins of a grid.
    resize_bilinear: bilinear resizing to a size.
    resize_nearest: resizing to a size by picking pixels.
    upsample: bilinear or nearest resizing by a factor.
    resize_bicubic: bicubic resizing to a size.
    attention: scaled dot-product attention.
    rotate: rotary position embedding, by the angles of rotary_angles.
    to_windows: images to square windows, and from_windows back.
    relative_positions: indices of the relative positions in a window.
    shift_mask: bias between pixels that a cyclic shift has put into one window.
    residual_add: shortcut and activation at the end of a residual block.
    add_bias: addition of a bias.
    batch_norm_train: normalization by the statistics of the batch.
    gelu: Gaussian error linear unit.
    silu: sigmoid linear unit, also called swish.
    same_padding: widths of TensorFlow's "SAME" padding.
    pad_same: padding by them.

Initializers, (key, shape, dtype) -> array:
    torch_default: PyTorch's default for a fan-in.
    kaiming_normal_fan_in: variance 2 / fan_in.
    kaiming_normal_fan_out: variance 2 / fan_out.
    kaiming_uniform_fan_in: uniform of variance 2 / fan_in.
    xavier_uniform: uniform of variance 2 / (fan_in + fan_out).
    normal: given standard deviation.
    bilinear: bilinear interpolation by a transposed convolution.
    bilinear_depthwise: the same with one kernel for each channel.

For gradient checkpointing:
    call_block: calls a block of a backbone, whose backward pass may compute it again.
    REMAT_NAMES: names of the values worth keeping, for `jax.checkpoint`.

For CPUs, where XLA is slow, operators have forms of their own: see `_conv_cpu`, `_winograd`,
`_barriers`, and the `cpu=` arguments of `platform_dependent` in other modules.
"""

from fcn_jax.nn._activations import gelu, silu
from fcn_jax.nn._attention import attention, rotary_angles, rotate
from fcn_jax.nn._barriers import REMAT_NAMES, residual_add
from fcn_jax.nn._batch_norm import BatchNorm, batch_norm_train
from fcn_jax.nn._bias import add_bias
from fcn_jax.nn._bicubic import resize_bicubic
from fcn_jax.nn._blocks import call_block
from fcn_jax.nn._buffer import Buffer
from fcn_jax.nn._conv import Conv, conv
from fcn_jax.nn._conv_norm_act import ConvNormAct
from fcn_jax.nn._conv_transpose import ConvTranspose, conv_transpose
from fcn_jax.nn._global_response_norm import GlobalResponseNorm
from fcn_jax.nn._group_norm import GroupNorm
from fcn_jax.nn._initializers import (
    Initializer,
    bilinear,
    bilinear_depthwise,
    kaiming_normal_fan_in,
    kaiming_normal_fan_out,
    kaiming_uniform_fan_in,
    normal,
    torch_default,
    xavier_uniform,
)
from fcn_jax.nn._layer_norm import LayerNorm, LayerScale
from fcn_jax.nn._linear import Linear
from fcn_jax.nn._padding import pad_same, same_padding
from fcn_jax.nn._pooling import adaptive_average_pool, global_average_pool, max_pool
from fcn_jax.nn._resize import resize_bilinear, resize_nearest, upsample
from fcn_jax.nn._stochastic_depth import StochasticDepth
from fcn_jax.nn._windows import from_windows, relative_positions, shift_mask, to_windows

__all__ = [
    "REMAT_NAMES",
    "BatchNorm",
    "Buffer",
    "Conv",
    "ConvNormAct",
    "ConvTranspose",
    "GlobalResponseNorm",
    "GroupNorm",
    "Initializer",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "StochasticDepth",
    "adaptive_average_pool",
    "add_bias",
    "attention",
    "batch_norm_train",
    "bilinear",
    "bilinear_depthwise",
    "call_block",
    "conv",
    "conv_transpose",
    "from_windows",
    "gelu",
    "global_average_pool",
    "kaiming_normal_fan_in",
    "kaiming_normal_fan_out",
    "kaiming_uniform_fan_in",
    "max_pool",
    "normal",
    "pad_same",
    "relative_positions",
    "residual_add",
    "resize_bicubic",
    "resize_bilinear",
    "resize_nearest",
    "rotary_angles",
    "rotate",
    "same_padding",
    "shift_mask",
    "silu",
    "to_windows",
    "torch_default",
    "upsample",
    "xavier_uniform",
]
