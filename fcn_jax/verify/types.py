"""Types that the comparisons share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from fcn_jax.pytorch.rules import Table

if TYPE_CHECKING:
    from fcn_jax.verify.torch_side import TorchSide

Call = Callable[[Any, tuple[Any, ...]], Any]
"""(module, its inputs) -> a tensor or array, or several by name."""

Advance = Callable[[str], None]
"""Called after every step of a comparison with its name."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both sides of a comparison, with the same weights.

    Attributes:
        torch: PyTorch's side.
        jax: JAX's side, an `nnx.Module`.
        table: rules that map their names.
        call: runs JAX's side.
        dtype: compared precision, "float32" or "bfloat16".
        layers: submodules that hold the same tensors, Flax path -> PyTorch name.
    """

    torch: TorchSide
    jax: nnx.Module
    table: Table
    call: Call
    dtype: str
    layers: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Loss:
    """The same scalar function of a network's outputs on both sides.

    Attributes:
        torch: outputs by name -> scalar tensor.
        jax: (outputs by name, target) -> scalar.
        target: arrays that are arguments of JAX's side. XLA would take a while to fold constants.
    """

    torch: Callable[[dict[str, Any]], Any]
    jax: Callable[[dict[str, Any], Any], jax.Array]
    target: Any


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The network's outputs by name, in PyTorch's layout.

    Attributes:
        reference: of PyTorch in float64.
        torch: of PyTorch's runs in the compared precision.
        jax: of JAX.
    """

    reference: dict[str, np.ndarray]
    torch: list[dict[str, np.ndarray]]
    jax: dict[str, np.ndarray]
