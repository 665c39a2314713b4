"""Operators and layers with PyTorch's meaning, in JAX's layout: NHWC activations, HWIO kernels."""

from fcn_jax.nn.batch_norm import BatchNorm, batch_norm_train
from fcn_jax.nn.bias import add_bias
from fcn_jax.nn.conv import Conv, conv
from fcn_jax.nn.conv_batch_norm import conv_batch_norm, folding
from fcn_jax.nn.conv_transpose import ConvTranspose, conv_transpose
from fcn_jax.nn.frozen import Frozen
from fcn_jax.nn.in_turn import in_turn
from fcn_jax.nn.initializers import Initializer, bilinear, bilinear_depthwise, kaiming_normal_fan_out, normal, torch_default
from fcn_jax.nn.materialize import materialize
from fcn_jax.nn.pooling import global_average_pool, max_pool
from fcn_jax.nn.resize import resize_bilinear

__all__ = [
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "Frozen",
    "Initializer",
    "add_bias",
    "batch_norm_train",
    "bilinear",
    "bilinear_depthwise",
    "conv",
    "conv_batch_norm",
    "conv_transpose",
    "folding",
    "global_average_pool",
    "in_turn",
    "kaiming_normal_fan_out",
    "materialize",
    "max_pool",
    "normal",
    "resize_bilinear",
    "torch_default",
]
