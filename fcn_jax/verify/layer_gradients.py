"""Gradients of single layers, in train mode and on PyTorch's own inputs.

In bfloat16, PyTorch's own gradients of a deep network are off by 10 to 40 %, so that faults of that
size pass. Those of a single layer are off by a rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fcn_jax.convert.export import export_leaves
from fcn_jax.verify import jax_side
from fcn_jax.verify.criterion import (
    FACTORS,
    LAYER_GRADIENTS,
    Comparison,
    ReferenceErrors,
    Section,
)
from fcn_jax.verify.layers import distance, in_torch_axes, one_thread, rounded
from fcn_jax.verify.layout import best_layout, layouts
from fcn_jax.verify.sides import train_mode
from fcn_jax.verify.torch_side import REFERENCE
from fcn_jax.verify.types import Advance, Pair


def compare_layer_gradients(
    pair: Pair, inputs: Sequence[np.ndarray], advance: Advance
) -> list[Section]:
    """Compare the gradients of the first call of each layer without parts.

    The layer's output is multiplied by a fixed random tensor. Compared are the gradients with
    respect to its input and its parameters.

    Args:
        pair: both sides, in eval mode.
        inputs: the whole network's inputs, NHWC.
        advance: called after every layer.

    Returns:
        A section, or none if no layer can be run alone.
    """
    calls = jax_side.watched(pair.port, inputs, tuple(pair.layers))
    paths = {
        name: path
        for path, name in pair.layers.items()
        if path in calls and not any(other.startswith(f"{path}.") for other in pair.layers)
    }
    run = jax_side.layer_gradient_runner(pair.port)
    found: list[Comparison] = []
    with train_mode(pair):
        seen, _ = pair.torch.watched(REFERENCE, inputs, tuple(paths))
        for number, (name, values) in enumerate(seen.items()):
            x, call = rounded(values[0], pair.dtype), calls[paths[name]][0]
            with one_thread(x.size):
                found += _compare(pair, run, name, paths[name], call, x, number)
            advance(paths[name])
    section = Section(LAYER_GRADIENTS, FACTORS["gradients"], tuple(found))
    return [section] if found else []


def _compare(
    pair: Pair,
    run: Any,
    name: str,
    path: str,
    call: jax_side.WatchedCall,
    x: np.ndarray,
    seed: int,
) -> Sequence[Comparison]:
    """The comparisons of one layer; none if JAX cannot run it alone, or in another layout."""
    side = pair.torch
    goal = side.layer(REFERENCE, name, x)
    outputs = {
        layout: y
        for layout in layouts(x.shape, call.shape)
        if (y := run(path, call, layout.to_jax(x), None)) is not None
    }
    fit = {k: y for k, y in outputs.items() if in_torch_axes(goal, y).shape == goal.shape}
    if not fit:
        return ()
    given = min(fit, key=lambda k: distance(in_torch_axes(goal, fit[k]), goal))
    weights = np.random.default_rng(seed).standard_normal(goal.shape).astype(np.float32)
    weights = rounded(weights, pair.dtype)
    errors = ReferenceErrors(side.layer_gradients(REFERENCE, name, x, weights), pair.dtype)
    for variant in side.variants:
        errors.add(side.layer_gradients(variant, name, x, weights))
    layout = best_layout(goal, fit[given])
    assert layout is not None
    grad, grads = run(path, call, given.to_jax(x), layout.to_jax(weights))
    ours = {} if grad is None else {f"input of {name}": given.to_torch(jax_side.array(grad))}
    return errors.compare({**ours, **export_leaves(grads, pair.table)}, FACTORS["gradients"])
