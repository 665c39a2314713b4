"""Dotted names of a module's arrays, such as `backbone.layer1.0.conv1.kernel`: what tables, checkpoints and recipes call them."""

from __future__ import annotations

from typing import Any

from flax import nnx


def leaves(module: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """A module's parameters, batch statistics and frozen weights by name."""
    return named(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))


def named(state: nnx.State[Any, Any]) -> dict[str, nnx.Variable[Any]]:
    """A state's variables by name, in the state's order."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
