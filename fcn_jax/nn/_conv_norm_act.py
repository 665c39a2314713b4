"""Convolution, normalization and activation: one layer, and on GPUs one kernel."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fcn_jax.nn._batch_norm import BatchNorm
from fcn_jax.nn._conv import Conv, Padding, conv
from fcn_jax.nn._conv_xla import Settings, is_stem
from fcn_jax.nn._group_norm import GroupNorm
from fcn_jax.nn._initializers import Initializer

Activation = Callable[[jax.Array], jax.Array]
Norm = Literal["batch_norm", "group_norm"]

_FOLDING: contextvars.ContextVar[bool | None] = contextvars.ContextVar("folding", default=None)


class ConvNormAct(nnx.Module):
    """2-d convolution, normalization, activation; torchvision's `Conv2dNormActivation`.

    In eval mode on GPUs, in 16 bits, the factor of a batch normalization is multiplied into the
    kernel. The remaining bias is added by cuDNN inside the convolution, together with the shortcut
    and the ReLU that follow. CPUs and TPUs fuse the multiplication into a loop that they run in any
    case; so do GPUs after the first convolution of a network.

    Attributes:
        conv: `Conv`, I -> O.
        bn: `BatchNorm` of O channels, or `GroupNorm`, which torchvision's networks call `bn`, too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Padding | None = None,
        dilation: int = 1,
        groups: int = 1,
        use_bias: bool = False,
        activation: Activation | None = nnx.relu,
        eps: float = 1e-5,
        momentum: float = 0.1,
        norm: Norm = "batch_norm",
        norm_groups: int = 32,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the parameters.

        Args:
            in_channels: I.
            out_channels: O.
            kernel_size: height and width of the kernel.
            stride: see `conv`, as for `dilation` and `groups`.
            padding: zeros on each side. None keeps the size: n becomes ceil(n / stride); the kernel
                size must be odd. "same" also does, as TensorFlow does it; see `same_padding`.
            dilation: distance between the taps of the kernel.
            groups: divides I and O.
            use_bias: whether the convolution has a bias of its own.
            activation: elementwise function; None for none.
            eps: of the normalization.
            momentum: of batch normalization: the share of the new value, as in PyTorch.
            norm: kind of the normalization.
            norm_groups: groups of group normalization; divides O.
            kernel_init: PyTorch's default if None.
            bias_init: PyTorch's default if None.
            dtype: of the computation and the result.
            param_dtype: of the parameters.
            rngs: source of the initial values.
        """
        self.conv = Conv(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2) if padding is None else padding,
            dilation=dilation,
            groups=groups,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.bn: BatchNorm | GroupNorm = (
            GroupNorm(norm_groups, out_channels, eps=eps, **types)
            if norm == "group_norm"
            else BatchNorm(out_channels, eps=eps, momentum=momentum, **types)
        )
        self.activation = nnx.static(activation)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N h w O"]:
        """f[N, H, W, I] -> `dtype`[N, h, w, O].

        Raises:
            ValueError: with batch normalization in train mode, if there is a single value per
                channel.
        """
        y = self._folded(x) if self._folds() else self.bn(self.conv(x))
        return y if self.activation is None else self.activation(y)

    def _folded(self, x: jax.Array) -> jax.Array:
        layer, norm = self.conv, self.bn
        assert isinstance(norm, BatchNorm)
        factor, shift = norm.as_affine()
        if layer.bias is not None:
            shift = shift + layer.bias[...] * factor
        y = conv(
            x.astype(layer.dtype),
            layer.kernel[...] * factor,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        # In the same dtype: otherwise XLA would not give the sum to cuDNN.
        return y.astype(norm.dtype) + shift.astype(norm.dtype)

    def _folds(self) -> bool:
        layer, norm = self.conv, self.bn
        # Other layers may have been put in their places, with other meanings.
        if type(layer) is not Conv or type(norm) is not BatchNorm or not norm.use_running_average:
            return False
        if (chosen := _FOLDING.get()) is not None:
            return chosen
        # The result of a stem is rearranged, which hides its bias from cuDNN, and the max pool
        # after it is a loop that can normalize as well.
        stem = is_stem(Settings(layer.stride, 0, layer.dilation, layer.groups), layer.kernel.shape)
        return jax.default_backend() == "gpu" and jnp.dtype(layer.dtype).itemsize < 4 and not stem


@contextlib.contextmanager
def folding(enabled: bool) -> Iterator[None]:
    """Fold, or do not fold, in what is traced inside, on any device; for tests and `verify`.

    Compiled programs stay as they are.
    """
    token = _FOLDING.set(enabled)
    try:
        yield
    finally:
        _FOLDING.reset(token)
