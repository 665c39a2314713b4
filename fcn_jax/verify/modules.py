"""Comparison of a PyTorch module with a JAX module: weights, layers, outputs, gradients."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.convert.export import export_leaves
from fcn_jax.convert.load import import_by_table
from fcn_jax.errors import ConfigError, listing
from fcn_jax.models.names import leaves, named
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify import jax_side, kinks, sensitivity
from fcn_jax.verify.compare import (
    ATTEMPTS,
    FACTORS,
    FLOOR,
    NEGLIGIBLE,
    ReferenceErrors,
    Section,
    compare_repeatedly,
)
from fcn_jax.verify.layers import compare_layers, match_layers
from fcn_jax.verify.report import Report
from fcn_jax.verify.torch_side import REFERENCE, TorchSide, Variant, array, import_torch, to_nhwc
from fcn_jax.verify.types import Advance, Call, Loss, Outputs, Pair

if TYPE_CHECKING:
    import torch

_LOOSE = 10.0
"""A limit is wide if PyTorch's own error is so many times that of the median tensor."""


def compare_modules(
    torch_module: torch.nn.Module,
    jax_module: nnx.Module,
    rules: Table,
    inputs: np.ndarray | Sequence[np.ndarray],
    *,
    call_torch: Call | None = None,
    call_jax: Call | None = None,
    grad: bool = True,
    sensitive: bool = True,
    dtype: str = "float32",
    subject: str = "",
    progress: Advance | None = None,
) -> Report:
    """Show that a JAX module computes the same function as a PyTorch module, layer by layer.

        report = compare_modules(torch_net, jax_net, rules, images)
        assert report.equal, report

    The PyTorch module's state dict is loaded into the JAX module by the rules; then both run on the
    same inputs. See `fcn_jax.verify.compare` for the criterion. Layers and outputs are compared in
    eval mode, gradients in train mode without dropout, because no two libraries draw it alike. The
    PyTorch module is not changed.

    Args:
        torch_module: the reference, on the CPU.
        jax_module: the port. It gets the weights and is left in eval mode.
        rules: table of names and layouts, as for conversion.
        inputs: one array or several; images as f32[N,H,W,C], which PyTorch gets as NCHW.
        call_torch: (module, tensors) -> tensor, or tensors by name; calls the module if None.
        call_jax: (module, arrays) -> array, or arrays by name; calls the module if None.
        grad: also compare the gradient of a fixed random linear function of the outputs with
            respect to every parameter.
        sensitive: also measure how far the outputs depend on each tensor; see
            `fcn_jax.verify.sensitivity`.
        dtype: compared precision, "float32" or "bfloat16"; the JAX module must compute in it.
        subject: name for the report.
        progress: called after every step with its name.

    Returns:
        The report; `report.equal` is the verdict.

    Raises:
        ConfigError: an unknown dtype, or a PyTorch module that is random in train mode.
        WeightsError: the rules do not match the state dict (the error lists all missing, surplus
            and misshapen names), or torch is not installed.
    """
    if dtype not in FLOOR:
        raise ConfigError(f"dtype is '{dtype}'; it must be one of {', '.join(FLOOR)}")
    inputs = (inputs,) if isinstance(inputs, np.ndarray) else tuple(inputs)
    advance = progress or (lambda _: None)
    coverage = import_by_table(jax_module, torch_module.state_dict(), rules)
    report = Report(subject or type(jax_module).__name__, dtype, coverage=coverage)
    with paired(torch_module, jax_module, rules, dtype, call_torch, call_jax) as pair:
        report.add_layers(compare_layers(pair, inputs, advance))
        section, outputs = compare_outputs(pair, inputs, "outputs", advance)
        report.sections.append(section)
        if sensitive:
            add_sensitivity(report, pair, inputs, [section])
            advance("sensitivity")
        if grad:
            pair.torch.check_deterministic(inputs)
            loss = _random_loss(outputs.reference)
            attempts = attempts_after(report)
            report.sections += compare_gradients(pair, inputs, loss, advance, attempts)
    return report


@contextlib.contextmanager
def paired(
    torch_module: Any,
    jax_module: nnx.Module,
    table: Table,
    dtype: str,
    call_torch: Call | None = None,
    call_jax: Call | None = None,
) -> Iterator[Pair]:
    """Both modules in eval mode without dropout. JAX's dropout is restored at the end."""
    with jax_side.without_dropout(jax_module):
        side = TorchSide(torch_module, dtype, call_torch or _called)
        side.train(False)
        jax_module.eval()
        matched = match_layers(torch_module, jax_module, table)
        yield Pair(side, jax_module, table, call_jax or _called, dtype, matched)


@contextlib.contextmanager
def train_mode(pair: Pair) -> Iterator[None]:
    """Put both sides into train mode; restore PyTorch's parameters and statistics at the end."""
    saved = [
        (network, {k: v.clone() for k, v in network.state_dict().items()})
        for network in pair.torch.networks()
    ]
    pair.torch.train(True)
    pair.jax.train()
    try:
        yield
    finally:
        for network, state in saved:
            network.load_state_dict(state)
            network.zero_grad(set_to_none=True)
        pair.torch.train(False)
        pair.jax.eval()


def compare_outputs(
    pair: Pair, inputs: Sequence[np.ndarray], title: str, advance: Advance
) -> tuple[Section, Outputs]:
    """Run both networks and compare their outputs."""
    torch = import_torch()

    def by_torch(variant: Variant) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = pair.torch.outputs(variant, inputs)
        advance("PyTorch")
        return {name: array(value) for name, value in found.items()}

    outputs = Outputs(
        by_torch(REFERENCE),
        [by_torch(variant) for variant in pair.torch.variants],
        jax_side.outputs(pair.jax, pair.call, inputs),
    )
    advance("JAX")
    errors = ReferenceErrors(outputs.reference, pair.dtype)
    for run in outputs.torch:
        errors.add(run)
    factor = FACTORS["outputs"]
    return Section(title, factor, errors.compare(outputs.jax, factor)), outputs


def add_sensitivity(
    report: Report, pair: Pair, inputs: Sequence[np.ndarray], outputs: Sequence[Section]
) -> None:
    """Measure which tensors matter on (small) inputs, in eval mode.

    Args:
        report: gets the result.
        pair: both sides.
        inputs: the networks' inputs, NHWC.
        outputs: the comparison of the outputs.
    """
    compared = [comparison for section in outputs for comparison in section.comparisons]
    floor = sensitivity.floor_of(compared, pair.dtype)
    names = set(pair.table.names(leaves(pair.jax)).values())
    report.sensitivity = sensitivity.measure(pair.torch, inputs, names, floor)


def compare_gradients(
    pair: Pair, inputs: Sequence[np.ndarray], loss: Loss, advance: Advance, attempts: int
) -> list[Section]:
    """Compare the loss and its gradients, in train mode.

    In float32, weights are changed a little for this comparison, such that no unit lies at a kink;
    see `kinks`. In bfloat16 that is not possible: up to `attempts` slightly different inputs are
    compared.
    """
    if pair.dtype == "bfloat16":

        def attempt(number: int) -> list[Section]:
            with train_mode(pair):
                return [_compare_gradients(pair, _nearby(inputs, number), loss, advance)]

        return compare_repeatedly(attempt, attempts)
    with train_mode(pair), _restored(pair.jax):
        conditioned = kinks.condition(pair.torch, inputs)
        advance("kinks")
        for network in pair.torch.networks():
            network.load_state_dict(conditioned.parameters, strict=False)
        single = pair.torch.network(pair.torch.variants[0])
        import_by_table(pair.jax, single.state_dict(), pair.table)
        section = _compare_gradients(pair, conditioned.inputs, loss, advance)
    return [_with_kinks(section, conditioned)]


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
    judged = f"the limits of {listing(loose)} may be wide" if loose else "no limit is wide"
    remark = f"{section.title}: {units} lie at a kink and could not be moved; {judged}"
    return dataclasses.replace(section, loose=loose, remarks=(remark,))


@contextlib.contextmanager
def _restored(module: nnx.Module) -> Iterator[None]:
    """Restore the values of all variables at the end."""
    variables = [x for _, x in nnx.iter_graph(module) if isinstance(x, nnx.Variable)]
    values = [variable.get_value() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.set_value(value)


def attempts_after(report: Report) -> int:
    """Allowed attempts for gradients: one if layers or outputs already differ."""
    return ATTEMPTS if report.equal else 1


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
    errors = ReferenceErrors(reference, pair.dtype, least_norm=NEGLIGIBLE * norm)
    for variant in pair.torch.variants:
        errors.add(by_torch(variant))
    value, grads = jax_side.gradients(pair.jax, pair.call, inputs, loss.jax, loss.target)
    parameters = pair.torch.network(REFERENCE).named_parameters()
    frozen = {name for name, p in parameters if not p.requires_grad}
    ours = export_leaves(named(grads), pair.table).items()
    found = {name: grad for name, grad in ours if name not in frozen}
    advance("JAX")
    factor = FACTORS["gradients"]
    loss_and_gradients = {"loss": np.asarray(value, np.float32), **found}
    return Section("gradients", factor, errors.compare(loss_and_gradients, factor))


def _called(module: Any, inputs: tuple[Any, ...]) -> Any:
    return module(*inputs)


def _random_loss(outputs: Mapping[str, np.ndarray]) -> Loss:
    """A fixed random linear function. A plain sum has no gradient through batch normalization."""
    weights = {
        name: np.random.default_rng(i).standard_normal(value.shape, np.float32) / value.size
        for i, (name, value) in enumerate(outputs.items())
    }

    def by_torch(found: dict[str, Any]) -> Any:
        torch = import_torch()
        # The product has the wider type: float64 in the reference, float32 otherwise.
        return sum(
            (found[name] * torch.from_numpy(weight)).sum() for name, weight in weights.items()
        )

    def by_jax(found: dict[str, Any], target: dict[str, Any]) -> Any:
        return sum((found[name].astype(jnp.float32) * target[name]).sum() for name in target)

    return Loss(by_torch, by_jax, {name: to_nhwc(weight) for name, weight in weights.items()})
