"""Comparison of the loss and its gradients, in train mode."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from fcn_jax.convert.export import export_leaves
from fcn_jax.errors import listing
from fcn_jax.verify import jax_side, kinks
from fcn_jax.verify.calls import named_alike
from fcn_jax.verify.criterion import (
    FACTORS,
    NEGLIGIBLE,
    NEGLIGIBLE_BFLOAT16,
    ReferenceErrors,
    Section,
    compare_repeatedly,
)
from fcn_jax.verify.layer_gradients import compare_layer_gradients
from fcn_jax.verify.opening import open_units
from fcn_jax.verify.sides import load_port, restored, train_mode
from fcn_jax.verify.torch_side import REFERENCE, Variant, array, import_torch
from fcn_jax.verify.types import Advance, Loss, Outputs, Pair

if TYPE_CHECKING:
    import torch

_LOOSE = 10.0
"""A limit is wide if PyTorch's own error is so many times that of the median tensor."""


def compare_gradients(
    pair: Pair, inputs: Sequence[np.ndarray], loss: Loss, advance: Advance, attempts: int
) -> list[Section]:
    """Compare the loss and its gradients, in train mode.

    Weights are changed for this comparison. In float32, no unit lies at a kink then; see `kinks`.
    In bfloat16, few units are near one, see `opening`, up to `attempts` slightly different inputs
    are compared, and those of single layers are, too; see `layer_gradients`.
    """
    if pair.dtype == "bfloat16":
        alone = compare_layer_gradients(pair, inputs, advance)

        def attempt(number: int) -> list[Section]:
            given = _nearby(inputs, number)
            with train_mode(pair), restored(pair.port):
                network = pair.torch.network(REFERENCE)
                open_units(network, lambda: pair.torch.outputs(REFERENCE, given))
                _load_everywhere(pair, dict(network.named_parameters()))
                return [_compare_gradients(pair, given, loss, advance)]

        return [*alone, *compare_repeatedly(attempt, attempts)]
    with train_mode(pair), restored(pair.port):
        conditioned = kinks.condition(pair.torch, inputs)
        advance("kinks")
        _load_everywhere(pair, conditioned.parameters)
        section = _compare_gradients(pair, conditioned.inputs, loss, advance)
    return [_with_kinks(section, conditioned)]


def _load_everywhere(pair: Pair, parameters: Mapping[str, torch.Tensor]) -> None:
    """Load values that float32 represents into all networks of both sides."""
    for network in pair.torch.networks():
        network.load_state_dict(parameters, strict=False)
    single = pair.torch.network(pair.torch.variants[0])
    load_port(pair.port, single.state_dict(), pair.table)


def _with_kinks(section: Section, conditioned: kinks.Conditioned) -> Section:
    """Name the tensors whose limits may be wide because units are left at a kink."""
    if not conditioned.left:
        return section
    usual = statistics.median(c.reference_error for c in section.comparisons)
    upstream = frozenset[str]().union(*(left.upstream for left in conditioned.left))
    loose = tuple(
        c.name
        for c in section.comparisons
        if c.name in upstream and c.reference_error > _LOOSE * usual
    )
    units = ", ".join(map(str, conditioned.left))
    limits = f"the limits of {listing(loose)} may be wide" if loose else "no limit is wide"
    remark = f"{section.title}: {units} lie at a kink and could not be moved; {limits}"
    return dataclasses.replace(section, loose=loose, remarks=(remark,))


def _nearby(inputs: Sequence[np.ndarray], number: int) -> tuple[np.ndarray, ...]:
    """The inputs with noise of 1 % of their standard deviation; unchanged for number 0."""
    if number == 0:
        return tuple(inputs)
    rng = np.random.default_rng(number)

    def moved(x: np.ndarray) -> np.ndarray:
        return (x + 0.01 * x.std() * rng.standard_normal(x.shape)).astype(x.dtype)

    return tuple(moved(x) if np.issubdtype(x.dtype, np.floating) else x for x in inputs)


def _compare_gradients(
    pair: Pair, inputs: Sequence[np.ndarray], loss: Loss, advance: Advance
) -> Section:
    """Compare the loss and the gradient of every parameter that PyTorch trains.

    Both sides are in train mode.
    """

    def by_torch(variant: Variant) -> dict[str, np.ndarray]:
        network = pair.torch.network(variant)
        network.zero_grad(set_to_none=True)
        with pair.torch.forward(variant):
            value = loss.torch(pair.torch.outputs(variant, inputs))
        with pair.torch.kernels(variant):
            value.backward()
        grads = {
            name: array(p.grad) for name, p in network.named_parameters() if p.grad is not None
        }
        advance("PyTorch")
        return {"loss": array(value), **grads}

    reference = by_torch(REFERENCE)
    norms = (np.linalg.norm(value) for name, value in reference.items() if name != "loss")
    norm = math.hypot(*norms)
    least = {"float32": NEGLIGIBLE, "bfloat16": NEGLIGIBLE_BFLOAT16}[pair.dtype] * norm
    errors = ReferenceErrors(reference, pair.dtype, least_norm=least)
    for variant in pair.torch.fused:
        errors.add(by_torch(variant))
    value, grads = jax_side.gradients(pair.port, inputs, loss.jax, loss.target)
    parameters = dict(pair.torch.network(REFERENCE).named_parameters())
    frozen = {name for name, p in parameters.items() if not p.requires_grad}
    trained = parameters.keys() - frozen
    # Functions and Equinox have no other place for buffers than among the parameters.
    buffers = dict(pair.torch.network(REFERENCE).named_buffers())
    ours = export_leaves(grads, pair.table).items()
    found = {
        name: grad
        for name, grad in ours
        if name in trained or (name not in buffers and name not in frozen)
    }
    advance("JAX")
    factor = FACTORS["gradients"]
    loss_and_gradients = {"loss": np.asarray(value, np.float32), **found}
    return Section("gradients", factor, errors.compare(loss_and_gradients, factor))


def random_loss(outputs: Outputs) -> Loss:
    """A fixed random linear function. A plain sum has no gradient through batch normalization."""
    weights = {
        name: np.random.default_rng(i).standard_normal(value.shape, np.float32) / value.size
        for i, (name, value) in enumerate(outputs.reference.items())
        if np.issubdtype(value.dtype, np.floating)
    }

    def by_torch(found: dict[str, Any]) -> Any:
        torch = import_torch()
        # The product has the wider type: float64 in the reference, float32 otherwise.
        return sum(
            (found[name] * torch.from_numpy(weight)).sum() for name, weight in weights.items()
        )

    def by_jax(found: dict[str, Any], target: dict[str, Any]) -> Any:
        found = named_alike(target, found)
        return sum((found[name].astype(jnp.float32) * target[name]).sum() for name in target)

    target = {
        name: outputs.layouts[name].to_jax(weight) if name in outputs.layouts else weight
        for name, weight in weights.items()
    }
    return Loss(by_torch, by_jax, target)
