"""Traces JAX's side of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fcn_jax.verify import jax_side
from fcn_jax.verify.outputs import by_name
from fcn_jax.verify.ports import Watch
from fcn_jax.verify.program import INPUT, SCOPE, Program, trace_function
from fcn_jax.verify.tags import tag
from fcn_jax.verify.types import Pair


class _Noted(Watch):
    """Names the module of what is traced, and tags the inputs of layers too."""

    def scope(self, path: str) -> Any:
        return jax.named_scope(SCOPE + path)

    def output(
        self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        before = len(self.calls.get(path, ()))
        found = super().output(path, args, kwargs, output)
        if len(self.calls.get(path, ())) > before:
            tag(args[0], INPUT + path)
        return found


def trace(pair: Pair, inputs: Sequence[np.ndarray], *, train: bool = False) -> Program:
    """Trace JAX's side; images are [N, H, W, C]."""
    port = pair.port
    watch = _Noted(port.layers)

    def run(leaves: dict[str, Any], inputs: tuple[Any, ...]) -> Any:
        outputs, updates = port.run(leaves, inputs, train=train, watch=watch)
        return by_name(outputs), updates

    with jax_side.precise(port):
        return trace_function(run, port.leaves, jax_side.placed(port, inputs))
