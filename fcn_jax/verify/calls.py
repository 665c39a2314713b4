"""Comparison of whole calls: outputs in eval mode; outputs and buffers in train mode."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from fcn_jax.convert.export import export_leaves
from fcn_jax.verify import jax_side
from fcn_jax.verify.criterion import FACTORS, ReferenceErrors, Section
from fcn_jax.verify.layout import Layout, best_layout
from fcn_jax.verify.sides import train_mode
from fcn_jax.verify.third_opinion import ThirdOpinion
from fcn_jax.verify.torch_side import REFERENCE, Variant, array, import_torch
from fcn_jax.verify.types import Advance, Outputs, Pair

Value = TypeVar("Value")


def torch_call(
    pair: Pair, variant: Variant, inputs: Sequence[np.ndarray], *, train: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Call PyTorch's network without gradients; buffers are restored.

    Returns:
        The outputs by name, and the state dict after the call.
    """
    mode = train_mode(pair) if train else contextlib.nullcontext()
    with mode, import_torch().no_grad():
        outputs = {name: array(x) for name, x in pair.torch.outputs(variant, inputs).items()}
        state = pair.torch.network(variant).state_dict()
        return outputs, {name: array(x) for name, x in state.items()}


def state_errors(
    pair: Pair, after: Mapping[str, np.ndarray], names: Mapping[str, str] | None = None
) -> ReferenceErrors:
    """Errors of buffers after a call in train mode.

    In bfloat16 they are relative to the change. Statistics are float32 on both sides, and momentum
    makes their change so small that it would be lost in the rounding of a bfloat16 tensor.

    Args:
        pair: both sides, before the call.
        after: PyTorch's buffers in float64 by name.
        names: their names in the state dict, if those are others.
    """
    start = None
    if pair.dtype == "bfloat16":
        state = pair.torch.network(REFERENCE).state_dict()
        start = {name: array(state[(names or {}).get(name, name)]) for name in after}
    return ReferenceErrors(after, pair.dtype, start=start)


def named_alike(reference: Mapping[str, object], ours: Mapping[str, Value]) -> dict[str, Value]:
    """JAX's outputs by PyTorch's names. Two single outputs are the same one."""
    if len(reference) == len(ours) == 1:
        return dict(zip(reference, ours.values(), strict=True))
    return dict(ours)


def output_layout(torch: np.ndarray, jax: np.ndarray) -> Layout | None:
    """The layout of an output. A square matrix keeps its axes: transposed, it would be another."""
    if torch.ndim == 3 and torch.shape == jax.shape:
        return Layout(torch.shape, jax.shape, (0, 1, 2))
    return best_layout(torch, jax)


def compare_outputs(
    pair: Pair,
    inputs: Sequence[np.ndarray],
    title: str,
    advance: Advance,
    opinion: ThirdOpinion | None = None,
) -> tuple[Section, Outputs]:
    """Run both networks and compare their outputs; complete a third opinion on them."""

    def by_torch(variant: Variant) -> dict[str, np.ndarray]:
        found, _ = torch_call(pair, variant, inputs)
        advance("PyTorch")
        return found

    reference = by_torch(REFERENCE)
    runs = [by_torch(variant) for variant in pair.torch.variants]
    found, _ = jax_side.outputs(pair.port, inputs)
    outputs = _outputs(reference, runs, found)
    advance("JAX")
    errors = ReferenceErrors(outputs.reference, pair.dtype)
    for run in outputs.torch:
        errors.add(run)
    if opinion is not None:
        opinion.ask(title, pair.torch, inputs, outputs.reference)
        advance("torchax")
    factor = FACTORS["outputs"]
    return Section(title, factor, errors.compare(outputs.jax, factor)), outputs


def _outputs(
    reference: dict[str, np.ndarray], runs: list[dict[str, np.ndarray]], jax: dict[str, np.ndarray]
) -> Outputs:
    jax = named_alike(reference, jax)
    found = {
        name: layout
        for name, x in jax.items()
        if name in reference and (layout := output_layout(reference[name], x)) is not None
    }
    moved = {name: found[name].to_torch(x) if name in found else x for name, x in jax.items()}
    return Outputs(reference, runs, moved, found)


def compare_train_mode(pair: Pair, inputs: Sequence[np.ndarray], advance: Advance) -> Section:
    """Call both networks once in train mode and compare the outputs and the buffers after it.

    Momentum, the variance that is averaged, and statistics that are used although they should not
    be, show only here.
    """
    port = pair.port
    known = pair.table.names(path for path in port.leaves if path not in port.parameters).values()

    def by_torch(variant: Variant) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        outputs, state = torch_call(pair, variant, inputs, train=True)
        advance("PyTorch, train mode")
        return outputs, {name: x for name, x in state.items() if name in known}

    reference, buffers = by_torch(REFERENCE)
    errors, changes = ReferenceErrors(reference, pair.dtype), state_errors(pair, buffers)
    for variant in pair.torch.variants:
        outputs, after = by_torch(variant)
        errors.add(outputs)
        changes.add(after)
    found, updates = jax_side.outputs(port, inputs, train=True)
    ours = _outputs(reference, [], found).jax
    advance("JAX, train mode")
    factor = FACTORS["gradients"]
    compared = errors.compare(ours, factor)
    updated = changes.compare(export_leaves(updates, pair.table), factor)
    return Section("train mode", factor, (*compared, *updated))
