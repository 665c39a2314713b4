"""Exports models as PyTorch state dicts: the inverse of `fcn_jax.convert.load`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from fcn_jax.convert.matching import leaves_of
from fcn_jax.convert.tables import tables, title
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.pytorch.rules import Table


def to_torch(model: Segmenter, key_format: str = "torchvision") -> dict[str, np.ndarray]:
    """A model's weights as a PyTorch state dict: the inverse of `load_torch`.

    Args:
        model: as `build_model` returns it.
        key_format: naming scheme. "torchvision" gives `backbone.*` and `classifier.*`; "d2l" the
            names of d2l's Sequential (ResNet only). Parts with a table of another format offer it.

    Returns:
        Arrays by PyTorch's names, which `load_state_dict(strict=True)` accepts after
        `torch.from_numpy`.

    Raises:
        ConfigError: the model's parts do not offer the key format.
        WeightsError: no rule names a leaf of the model.
    """
    return export_weights(model, model.spec, key_format)


def export_weights(module: nnx.Module, spec: ModelSpec, key_format: str) -> dict[str, np.ndarray]:
    """`to_torch` for any module that a spec describes; a backbone alone has its own names."""
    found, scope = tables(spec), "model" if spec.head is not None else "backbone"
    if (scope, key_format) not in found:
        offered = ", ".join(name for kind, name in found if kind == scope) or "none"
        raise ConfigError(
            f"key format '{key_format}' (--key-format) is not offered by {title(spec)}; offered: "
            f"{offered}"
        )
    return export_leaves(leaves_of(module, spec), found[scope, key_format])


def export_leaves(named: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Convert leaves by path to a state dict. Raises `WeightsError` if no rule names a leaf."""
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in named.items():
        found = table.to_torch(path)
        if found is None:
            raise WeightsError(f"'{path}' is named by no rule, so it cannot be exported")
        name, rule = found
        tensors[name] = np.array(rule.op.to_torch(np.asarray(leaf[...])), order="C")
    return tensors
