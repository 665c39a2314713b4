"""A torch module against a JAX module: weights, layers, outputs, gradients."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.convert.export import export_leaves
from fcn_jax.convert.load import import_by_table
from fcn_jax.errors import ConfigError
from fcn_jax.models.names import named
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify import jax_side, layers
from fcn_jax.verify.compare import (
    ATTEMPTS,
    FACTORS,
    FLOOR,
    Section,
    Yardstick,
    persistent,
    total_norm,
)
from fcn_jax.verify.report import Report, environment
from fcn_jax.verify.torch_side import TRUTH, TorchSide, Variant, array, import_torch, to_nhwc

if TYPE_CHECKING:
    import torch

Advance = Callable[[str], None]

NEGLIGIBLE = 1e-6
"""Gradients smaller than this share of the whole gradient are measured against it: they are zero but for rounding."""


def check_dtype(dtype: str) -> None:
    """Raise `ConfigError` unless the criterion knows the precision."""
    if dtype not in FLOOR:
        raise ConfigError(f"dtype is '{dtype}'; it must be one of {', '.join(FLOOR)}")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both sides of a comparison, with the same weights.

    Attributes:
        torch: PyTorch's side.
        jax: JAX's side, an `nnx.Module`.
        table: rules that tie their names.
        call: how to run JAX's side.
        dtype: compared precision, "float32" or "bfloat16".
        layers: submodules that hold the same tensors, Flax path -> PyTorch name.
    """

    torch: TorchSide
    jax: nnx.Module
    table: Table
    call: jax_side.Call
    dtype: str
    layers: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Loss:
    """The same scalar of a network's outputs on both sides.

    Attributes:
        torch: outputs by name -> scalar tensor.
        jax: (outputs by name, target) -> scalar.
        target: arrays that JAX's side is given as arguments; as constants XLA would spend a while
            folding them.
    """

    torch: Callable[[dict[str, Any]], Any]
    jax: Callable[[dict[str, Any], Any], jax.Array]
    target: Any


def compare_modules(
    torch_module: torch.nn.Module,
    jax_module: nnx.Module,
    rules: Table,
    inputs: np.ndarray | Sequence[np.ndarray],
    *,
    call_torch: Callable[[Any, tuple[Any, ...]], Any] | None = None,
    call_jax: jax_side.Call | None = None,
    grad: bool = True,
    dtype: str = "float32",
    subject: str = "",
    progress: Advance | None = None,
) -> Report:
    """Show that a JAX module is the same function as a PyTorch module, layer by layer; or which layer is not.

        report = compare_modules(torch_net, jax_net, rules, images)
        assert report.equal, report

    The PyTorch module's state dict is loaded into the JAX module, in place, by the rules; then both
    run on the same inputs. See `fcn_jax.verify.compare` for the criterion. Layers and outputs are
    compared in eval mode, gradients in train mode with dropout off, which no two libraries draw
    alike. The PyTorch module is left as it was.

    Args:
        torch_module: the original, on the CPU.
        jax_module: the port; `dtype` must be the one that it computes in. It is left in eval mode.
        rules: table of names and layouts, as for conversion.
        inputs: what the network takes, one array or several; images as f32[N,H,W,C], which PyTorch
            is given as NCHW.
        call_torch: (module, tensors) -> tensor, or tensors by name; calls the module if not given.
        call_jax: likewise.
        grad: compare the gradient of every parameter too, of a fixed random linear function of the
            outputs.
        dtype: compared precision, "float32" or "bfloat16".
        subject: what the report calls it.
        progress: told of every step done.

    Returns:
        The report; `report.equal` is the verdict.

    Raises:
        ConfigError: an unknown dtype.
        WeightsError: the rules do not take the state dict: all missing, surplus and misshapen
            names; or torch is not installed.
    """
    check_dtype(dtype)
    inputs = (inputs,) if isinstance(inputs, np.ndarray) else tuple(inputs)
    advance = progress or (lambda _: None)
    coverage = import_by_table(jax_module, torch_module.state_dict(), rules)
    report = Report(subject or type(jax_module).__name__, dtype, environment(), coverage=coverage)
    with paired(
        torch_module, jax_module, rules, call_torch or _called, call_jax or _called, dtype
    ) as pair:
        compare_layers(pair, report, inputs, advance)
        section, outputs = compare_outputs(pair, inputs, "outputs", advance)
        report.add(section)
        if grad:
            add_gradients(pair, report, inputs, _random_loss(outputs.truth), advance)
    return report


@contextlib.contextmanager
def paired(
    torch_module: Any,
    jax_module: nnx.Module,
    table: Table,
    call_torch: Any,
    call_jax: jax_side.Call,
    dtype: str,
) -> Iterator[Pair]:
    """Two modules of the same weights side by side, in eval mode, with dropout off; JAX's dropout is as it was at the end."""
    with jax_side.without_dropout(jax_module):
        side = TorchSide(torch_module, dtype, call_torch)
        side.train(False)
        jax_module.eval()
        yield Pair(
            side, jax_module, table, call_jax, dtype, layers.pair(torch_module, jax_module, table)
        )


def compare_layers(
    pair: Pair, report: Report, inputs: Sequence[np.ndarray], advance: Advance
) -> None:
    """Compare layer by layer, and say in the report which one is to blame."""
    isolated, accumulated, report.uncompared = layers.compare(
        pair.torch, pair.jax, pair.call, pair.layers, inputs, pair.dtype, advance
    )
    report.add(
        *(section for section in (isolated, accumulated) if section.comparisons)
    )  # else `uncompared` says it
    report.guilty = layers.guilty(isolated, accumulated)


@contextlib.contextmanager
def training(pair: Pair) -> Iterator[None]:
    """Both sides in train mode; PyTorch's parameters and statistics are put back at the end."""
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


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Whole outputs by name, in PyTorch's layout: the truth, PyTorch's correct runs, and JAX's."""

    truth: dict[str, np.ndarray]
    torch: list[dict[str, np.ndarray]]
    jax: dict[str, np.ndarray]


def compare_outputs(
    pair: Pair, inputs: Sequence[np.ndarray], title: str, advance: Advance
) -> tuple[Section, Outputs]:
    """Run both sides whole, and compare what comes out."""
    torch = import_torch()

    def by_torch(variant: Variant) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = {
                name: array(value) for name, value in pair.torch.outputs(variant, inputs).items()
            }
        advance("PyTorch")
        return found

    outputs = Outputs(
        by_torch(TRUTH),
        [by_torch(variant) for variant in pair.torch.variants],
        jax_side.outputs(pair.jax, pair.call, inputs),
    )
    advance("JAX")
    yardstick = Yardstick(outputs.truth, pair.dtype)
    for run in outputs.torch:
        yardstick.add(run)
    return Section(
        title, FACTORS["outputs"], yardstick.judge(outputs.jax, FACTORS["outputs"])
    ), outputs


def add_gradients(
    pair: Pair, report: Report, inputs: Sequence[np.ndarray], loss: Loss, advance: Advance
) -> None:
    """Compare gradients for the report; on inputs nearby too where it takes that to tell chance from fault."""
    report.add(
        *persistent(
            lambda number: [compare_gradients(pair, _nearby(inputs, number), loss, advance)],
            attempts_after(report),
        )
    )


def attempts_after(report: Report) -> int:
    """How often a comparison of gradients may be repeated: where layers or outputs differ already, there is nothing to find out."""
    return ATTEMPTS if report.equal else 1


def _nearby(inputs: Sequence[np.ndarray], number: int) -> tuple[np.ndarray, ...]:
    """The inputs themselves for number 0, otherwise with noise of a hundredth of their spread; integers stay as they are."""
    if number == 0:
        return tuple(inputs)
    rng = np.random.default_rng(number)

    def moved(x: np.ndarray) -> np.ndarray:
        return (x + 0.01 * x.std() * rng.standard_normal(x.shape)).astype(x.dtype)

    return tuple(moved(x) if np.issubdtype(x.dtype, np.floating) else x for x in inputs)


def compare_gradients(
    pair: Pair, inputs: Sequence[np.ndarray], loss: Loss, advance: Advance
) -> Section:
    """Compare the loss and its gradient by every parameter that PyTorch does not freeze, in train mode, by PyTorch's names."""

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

    with training(pair):
        truth = by_torch(TRUTH)
        least = NEGLIGIBLE * total_norm(value for name, value in truth.items() if name != "loss")
        yardstick = Yardstick(truth, pair.dtype, least_norm=least)
        for variant in pair.torch.variants:
            yardstick.add(by_torch(variant))
        value, grads = jax_side.gradients(pair.jax, pair.call, inputs, loss.jax, loss.target)
    frozen = {
        name for name, p in pair.torch.network(TRUTH).named_parameters() if not p.requires_grad
    }
    ours = {
        name: grad for name, grad in export_leaves(named(grads), pair.table).items() if name not in frozen
    }
    found = {"loss": np.asarray(value, np.float32), **ours}
    advance("JAX")
    return Section("gradients", FACTORS["gradients"], yardstick.judge(found, FACTORS["gradients"]))


def _called(module: Any, inputs: tuple[Any, ...]) -> Any:
    return module(*inputs)


def _random_loss(outputs: Mapping[str, np.ndarray]) -> Loss:
    """A fixed random linear function. Not a plain sum, whose gradient does not pass through batch normalization."""
    weights = {
        name: np.random.default_rng(i).standard_normal(value.shape, np.float32) / value.size
        for i, (name, value) in enumerate(outputs.items())
    }

    def by_torch(found: dict[str, Any]) -> Any:
        torch = import_torch()
        # The product is of the wider type: float64 in the truth, float32 otherwise.
        return sum(
            (found[name] * torch.from_numpy(weight)).sum() for name, weight in weights.items()
        )

    def by_jax(found: dict[str, Any], target: dict[str, Any]) -> jax.Array:
        return jnp.stack(
            [(found[name].astype(jnp.float32) * target[name]).sum() for name in target]
        ).sum()

    return Loss(by_torch, by_jax, {name: to_nhwc(weight) for name, weight in weights.items()})
