"""Plain functions of a pytree of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax.verify.ports.base import Leaves, Port, Watch, mode_arguments
from fcn_jax.verify.types import Call


class FunctionPort(Port):
    """`function(params, *inputs)`.

    Values that the function names with `jax.ad_checkpoint.checkpoint_name` are its layers; they are
    compared with the PyTorch modules of the same names. If the function has an argument `train` (or
    `training`, `deterministic`, ...), it is set.
    """

    def __init__(self, function: Callable[..., Any], params: Any, call: Call | None = None) -> None:
        """Wrap a function.

        Args:
            function: takes the parameters and the inputs, and returns arrays.
            params: pytree of arrays.
            call: (function of the inputs alone, inputs) -> outputs; calls it if None.
        """
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function, self._call = function, call
        found, self._structure = jax.tree_util.tree_flatten_with_path(params)
        self._leaves = {
            jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found
        }
        self.parameters = frozenset(
            path for path, leaf in self._leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating)
        )

    @property
    def leaves(self) -> dict[str, Any]:
        """See `Port`."""
        return dict(self._leaves)

    @property
    def parts(self) -> list[Any]:
        """See `Port`."""
        return [self._function]

    def load(self, leaves: Leaves) -> None:
        """See `Port`."""
        self._leaves = {path: leaves.get(path, leaf) for path, leaf in self._leaves.items()}

    def run(
        self, leaves: Leaves, inputs: tuple[Any, ...], *, train: bool = False, watch: Watch | None
    ) -> tuple[Any, dict[str, Any]]:
        """See `Port`."""
        params = jax.tree.unflatten(self._structure, [leaves[path] for path in self._leaves])
        mode = mode_arguments(self._function, train)

        def bound(*inputs: Any) -> Any:
            return self._function(params, *inputs, **mode)

        return (self._call(bound, inputs) if self._call else bound(*inputs)), {}
