"""Dotted names of a module's arrays, such as `backbone.layer1.0.conv1.conv.kernel`.

Tables, checkpoints and recipes use them.
"""

from __future__ import annotations

from typing import Any

from flax import nnx

WEIGHTS = nnx.Any(nnx.Param, nnx.BatchStat)
"""NNX's filter for weights: parameters, batch statistics and buffers."""


def leaves(module: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """A module's parameters, batch statistics and buffers by name."""
    return named(nnx.state(module, WEIGHTS))


def named(state: nnx.State[Any, Any]) -> dict[str, nnx.Variable[Any]]:
    """A state's variables by name, in the state's order."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
