"""Operators and layers with PyTorch's meaning, in JAX's layout: NHWC activations, HWIO kernels."""

from fcn_jax.nn._barriers import REMAT_NAMES, residual_add
from fcn_jax.nn._batch_norm import BatchNorm, batch_norm_train
from fcn_jax.nn._bias import add_bias
from fcn_jax.nn._buffer import Buffer
from fcn_jax.nn._conv import Conv, conv
from fcn_jax.nn._conv_norm_act import ConvNormAct
from fcn_jax.nn._conv_transpose import ConvTranspose, conv_transpose
from fcn_jax.nn._initializers import (
    Initializer,
    bilinear,
    bilinear_depthwise,
    kaiming_normal_fan_in,
    kaiming_normal_fan_out,
    normal,
    torch_default,
)
from fcn_jax.nn._pooling import global_average_pool, max_pool
from fcn_jax.nn._resize import resize_bilinear

__all__ = [
    "REMAT_NAMES",
    "BatchNorm",
    "Buffer",
    "Conv",
    "ConvNormAct",
    "ConvTranspose",
    "Initializer",
    "add_bias",
    "batch_norm_train",
    "bilinear",
    "bilinear_depthwise",
    "conv",
    "conv_transpose",
    "global_average_pool",
    "kaiming_normal_fan_in",
    "kaiming_normal_fan_out",
    "max_pool",
    "normal",
    "residual_add",
    "resize_bilinear",
    "torch_default",
]
