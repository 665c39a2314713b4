"""Types that the comparisons share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fcn_jax.pytorch.rules import Table
from fcn_jax.verify.layout import Layout

if TYPE_CHECKING:
    from fcn_jax.verify.ports import Port
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
        port: JAX's side.
        table: rules that map their names.
        dtype: compared precision, "float32" or "bfloat16".
        layers: submodules that hold the same tensors, JAX's path -> PyTorch's name.
    """

    torch: TorchSide
    port: Port
    table: Table
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
    """The network's outputs by name.

    Attributes:
        reference: of PyTorch in float64.
        torch: of PyTorch's runs in the compared precision.
        jax: of JAX, in PyTorch's layout.
        layouts: of JAX's outputs; an output that does not fit PyTorch's has none.
    """

    reference: dict[str, np.ndarray]
    torch: list[dict[str, np.ndarray]]
    jax: dict[str, np.ndarray]
    layouts: dict[str, Layout]
