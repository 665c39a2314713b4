"""Chooses the port of a network."""

from __future__ import annotations

import sys
from typing import Any

from flax import nnx

from fcn_jax.errors import ConfigError
from fcn_jax.verify.ports.base import Port
from fcn_jax.verify.ports.function_port import FunctionPort
from fcn_jax.verify.ports.nnx_port import NnxPort
from fcn_jax.verify.types import Call


def make_port(network: Any, call: Call | None = None) -> Port:
    """Wrap a JAX network.

    Args:
        network: an `nnx.Module`; an `equinox.Module`; a pair of a `flax.linen.Module` and its
            variables; or a pair of a function and its parameters.
        call: runs the network; see the ports.

    Raises:
        ConfigError: the network is something else.
    """
    if isinstance(network, Port):
        return network
    if isinstance(network, nnx.Module):
        return NnxPort(network, call)
    # Both are imported only if the caller has imported them.
    if _is_a(network, "equinox", "Module"):
        from fcn_jax.verify.ports.equinox_port import EquinoxPort

        return EquinoxPort(network, call)
    if isinstance(network, tuple | list) and len(network) == 2:
        module, values = network
        if _is_a(module, "flax.linen", "Module"):
            from fcn_jax.verify.ports.linen_port import LinenPort

            return LinenPort(module, values, call)
        if callable(module):
            return FunctionPort(module, values, call)
    found = f"{type(network).__module__}.{type(network).__name__}"
    if _is_a(network, "flax.linen", "Module") or callable(network):
        raise ConfigError(
            f"the JAX network is a {found} without values; pass a pair: (Linen module, variables) "
            "or (function, parameters)"
        )
    raise ConfigError(
        f"the JAX network is a {found}; expected an nnx.Module, an equinox.Module, a pair of a "
        "Linen module and its variables, or a pair of a function and its parameters"
    )


def _is_a(value: Any, package: str, name: str) -> bool:
    module = sys.modules.get(package)
    return module is not None and isinstance(value, getattr(module, name))
