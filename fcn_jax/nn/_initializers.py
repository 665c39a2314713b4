"""Initial values as PyTorch and torchvision draw them, as (key, shape, dtype) -> array."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]

_BLOCK = 1 << 16


def on_device(values: Any, dtype: Any) -> jax.Array:
    """A new numpy or traced array as a JAX array. `jnp.asarray` would compile for each shape."""
    if isinstance(values, jax.core.Tracer):
        return values.astype(dtype)
    return jax.device_put(np.asarray(values, dtype))


@jax.jit
def _block(key: jax.Array, index: Any) -> dict[str, jax.Array]:
    # Both distributions: compiling two functions takes longer than drawing the unused values.
    key = jax.random.fold_in(key, index)
    return {
        "normal": jax.random.normal(key, (_BLOCK,)),
        "uniform": jax.random.uniform(key, (_BLOCK,)),
    }


def _draw(
    distribution: str, scaled: Callable[[Any], Any], key: jax.Array, shape: Sequence[int]
) -> Any:
    """Draw an array in blocks of one size, because XLA compiles a draw again for each shape.

    That saves most of the time to build a network: a ResNet-50 takes 2.2 s of CPU time here, and 25
    s with `jax.random` inside one `jax.jit`. Inside jit the values are the same.

    Args:
        distribution: "normal", or "uniform" from 0 to 1.
        scaled: elementwise function of the values drawn. It is applied to one block at a time, so
            that no second array is needed.
        key: a JAX random key.
        shape: of the result.
    """
    size = math.prod(shape)
    if isinstance(key, jax.core.Tracer):
        blocks = jax.lax.map(
            lambda index: _block(key, index)[distribution], jnp.arange(-(-size // _BLOCK))
        ).reshape(-1)
        return scaled(blocks[:size].reshape(shape))
    values = np.empty(size, np.float32)
    for index, start in enumerate(range(0, size, _BLOCK)):
        values[start : start + _BLOCK] = scaled(
            np.asarray(_block(key, index)[distribution])[: size - start]
        )
    return values.reshape(shape)


def kaiming_normal_fan_out(
    key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32
) -> jax.Array:
    """Normal with variance 2 / fan_out, for a kernel HWIO, as in torchvision's ResNet.

    `torch.nn.init.kaiming_normal_(mode="fan_out", nonlinearity="relu")`; He et al. 2015,
    arXiv:1502.01852.
    """
    height, width, _, out = shape
    return normal(math.sqrt(2.0 / (height * width * out)))(key, shape, dtype)


def kaiming_normal_fan_in(
    key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32
) -> jax.Array:
    """Normal with variance 2 / fan_in, for a kernel HWIO; `torch.nn.init.kaiming_normal_`."""
    return normal(math.sqrt(2 / math.prod(shape[:-1])))(key, shape, dtype)


def kaiming_uniform_fan_in(
    key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32
) -> jax.Array:
    """Uniform with variance 2 / fan_in, for a kernel HWIO or IO.

    `torch.nn.init.kaiming_uniform_(mode="fan_in", nonlinearity="relu")`.
    """
    return uniform(math.sqrt(6 / math.prod(shape[:-1])))(key, shape, dtype)


def xavier_uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform with variance 2 / (fan_in + fan_out), for a kernel HWIO or IO.

    `torch.nn.init.xavier_uniform_`; Glorot and Bengio 2010.
    """
    taps = math.prod(shape[:-2])
    return uniform(math.sqrt(6 / (taps * (shape[-2] + shape[-1]))))(key, shape, dtype)


def normal(deviation: float) -> Initializer:
    """Normal with mean 0; `torch.nn.init.normal_`.

    Args:
        deviation: standard deviation, at least 0.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return on_device(_draw("normal", lambda values: deviation * values, key, shape), dtype)

    return init


def torch_default(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in), as kernel and bias of `torch.nn.Conv2d` and `torch.nn.Linear`.

    Args:
        fan_in: kernel height x width x input channels, at least 1.
    """
    return uniform(1.0 / math.sqrt(fan_in))


def uniform(bound: float) -> Initializer:
    """Uniform from -bound to bound; `torch.nn.init.uniform_(-bound, bound)`.

    Args:
        bound: above 0.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return on_device(
            _draw("uniform", lambda values: bound * (2 * values - 1), key, shape), dtype
        )

    return init


def bilinear(key: jax.Array | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Bilinear interpolation of each channel by a transposed convolution of kernel (H, W, I, O).

    Long et al. 2015, arXiv:1411.4038; `bilinear_kernel` of d2l. The key is not used.
    """
    height, width, in_channels, out_channels = shape
    diagonal = np.eye(in_channels, out_channels, dtype=np.float32)
    return on_device(_bilinear_filter(height, width)[:, :, None, None] * diagonal, dtype)


def bilinear_depthwise(
    key: jax.Array | None, shape: Sequence[int], dtype: Any = jnp.float32
) -> jax.Array:
    """`bilinear` with one kernel for each channel, (H, W, C, 1)."""
    height, width, *channels = shape
    return on_device(
        _bilinear_filter(height, width)[:, :, None, None] * np.ones(channels, np.float32), dtype
    )


def _bilinear_filter(height: int, width: int) -> np.ndarray:
    def ramp(size: int) -> np.ndarray:
        factor = (size + 1) // 2
        center = factor - 1 if size % 2 else factor - 0.5
        # In float32 as in d2l, so that no bit differs.
        return 1 - np.abs(np.arange(size, dtype=np.float32) - center) / factor

    return ramp(height)[:, None] * ramp(width)[None, :]
