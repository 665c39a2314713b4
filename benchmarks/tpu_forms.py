"""The forms of stem, pool, head and loss among which the library chooses on TPUs, at one size, forward and backward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.operators import xla_conv_transpose
from benchmarks.setting import Setting
from fcn_jax import nn
from fcn_jax.nn import pooling
from fcn_jax.nn.bias import add_bias
from fcn_jax.nn.conv_transpose import conv_transpose_blocks
from fcn_jax.nn.conv_xla import Settings, space_to_depth
from fcn_jax.train.losses import cross_entropy

Function = Callable[..., Any]
Shapes = tuple[jax.ShapeDtypeStruct, ...]


def _pulled(form: Function) -> Function:
    """The form and its gradients: (gradient of the result, arguments) -> result, gradients."""

    def run(grad: jax.Array, *arguments: jax.Array) -> Any:
        y, vjp = jax.vjp(form, *arguments)
        return y, vjp(grad)

    return run


_BORDERS = ((1, 1), (1, 1))


def _scattered_pool(grad: jax.Array, x: jax.Array) -> Any:
    return _pulled(lambda x: pooling._reduce_window(x, 3, 2, _BORDERS))(grad, x)


def _pool_by_winners(grad: jax.Array, x: jax.Array) -> Any:
    y, winner = pooling._with_winners(x, 3, 2, _BORDERS)
    return y, pooling._gradient_from_winners(winner, grad, x.shape, 3, 2, _BORDERS)


def _loss_after(form: Function, stride: int) -> Function:
    """Head and loss over whole logits, with the gradients by features, kernel and bias."""

    def loss(x: jax.Array, kernel: jax.Array, bias: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy(add_bias(form(x, kernel.astype(x.dtype), stride, stride // 2), bias), labels)

    return jax.value_and_grad(loss, (0, 1, 2))


def _loss_in_blocks(stride: int) -> Function:
    """The product head with the loss in its own block layout: the labels are rearranged in place of the logits."""

    def loss(x: jax.Array, kernel: jax.Array, bias: jax.Array, labels: jax.Array) -> jax.Array:
        blocks = conv_transpose_blocks(x, kernel.astype(x.dtype), stride, stride // 2)
        return cross_entropy(dataclasses.replace(blocks, values=add_bias(blocks.values, bias, blocks.CLASSES)), labels)

    return jax.value_and_grad(loss, (0, 1, 2))


def cases(setting: Setting) -> dict[str, dict[str, tuple[Function, Shapes]]]:
    """Operator -> form -> function, shapes of its arguments. The library's choice on TPUs comes first."""
    height, width = setting.size
    batch, classes, stride, dtype = setting.batch, setting.num_classes, 32, jnp.dtype(setting.dtype)

    def shape(*sizes: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def stem(form: Function) -> Function:
        # The images need no gradient.
        return lambda grad, x, kernel: _pulled(lambda kernel: form(x, kernel))(grad, kernel)

    stem_shapes = (shape(batch, height // 2, width // 2, 64), shape(batch, height, width, 3), shape(7, 7, 3, 64))
    pool_shapes = (shape(batch, height // 4, width // 4, 64), shape(batch, height // 2, width // 2, 64))
    head_shapes = (
        shape(batch, height // stride, width // stride, classes),
        shape(2 * stride, 2 * stride, classes, classes, dtype=jnp.float32),
        shape(classes, dtype=jnp.float32),
        shape(batch, height, width, dtype=jnp.uint8),
    )
    return {
        "stem": {
            "7x7 on 3 channels": (stem(lambda x, kernel: nn.conv(x, kernel, 2, 3)), stem_shapes),
            "4x4 on 16 channels": (stem(lambda x, kernel: space_to_depth(Settings(2, 3, 1, 1), x, kernel)), stem_shapes),
        },
        "max pool": {
            "select-and-scatter": (_scattered_pool, pool_shapes),
            "from the winners": (_pool_by_winners, pool_shapes),
        },
        "head and loss": {
            "product, loss in its blocks": (_loss_in_blocks(stride), head_shapes),
            "product": (_loss_after(nn.conv_transpose, stride), head_shapes),
            "lax.conv_general_dilated": (_loss_after(xla_conv_transpose, stride), head_shapes),
        },
    }
