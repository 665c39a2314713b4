"""Comparison of a PyTorch module with a JAX network: weights, layers, outputs, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fcn_jax.errors import ConfigError, listing
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify import evidence, few_values, jax_side
from fcn_jax.verify.calls import compare_outputs, compare_train_mode
from fcn_jax.verify.criterion import FACTORS, FLOOR, Section
from fcn_jax.verify.gradients import compare_gradients, random_loss
from fcn_jax.verify.layers import compare_layers
from fcn_jax.verify.mutation import add_mutation
from fcn_jax.verify.outputs import by_name
from fcn_jax.verify.pairing import StateDictMap, pair_tensors
from fcn_jax.verify.ports import Port, make_port
from fcn_jax.verify.report import Report
from fcn_jax.verify.sensitivity import add_sensitivity
from fcn_jax.verify.sides import called, load_port, paired, state_digest
from fcn_jax.verify.third_opinion import ThirdOpinion
from fcn_jax.verify.torch_side import (
    REFERENCE,
    call_checked,
    check_device,
    import_torch,
    tensors_of,
    to_nhwc,
)
from fcn_jax.verify.types import Advance, Call, Outputs, Pair

if TYPE_CHECKING:
    import torch

LAYOUTS = ("NHWC", "NCHW", "same")

_CHANNELS = (1, 3, 4)
"""Channels of an image, by which the layout of the inputs is recognized."""


def compare(
    torch_module: torch.nn.Module,
    jax_network: Any,
    inputs: np.ndarray | Sequence[np.ndarray],
    *,
    rules: Table | None = None,
    state_dict_map: StateDictMap | None = None,
    call_torch: Call | None = None,
    call_jax: Call | None = None,
    layout: str | None = None,
    train: bool = True,
    grad: bool = True,
    sensitive: bool = True,
    mutate: bool | int = False,
    dtype: str = "float32",
    subject: str = "",
    third_opinion: bool = False,
    progress: Advance | None = None,
) -> Report:
    """Show that a JAX network computes the same function as a PyTorch module, layer by layer.

        report = compare(torch_net, jax_net, images, rules=rules)
        assert report.equal, report

    The PyTorch module's state dict is loaded into the JAX network; then both run on the same
    inputs. See `fcn_jax.verify.criterion`. Layers and outputs are compared in eval
    mode, gradients and running statistics in train mode without dropout, because no two libraries
    draw it alike. The PyTorch module is not changed.

    Args:
        torch_module: the reference, on the CPU.
        jax_network: the port: an `nnx.Module`, which gets the weights and is left in eval mode; an
            `equinox.Module`; `(module, variables)` of Flax Linen; or `(function, params)` for a
            function of a pytree of parameters and the inputs.
        inputs: one array or several. Images are f32[N,H,W,C] or f32[N,C,H,W]; each side gets them
            with its own axes (Equinox [N,C,H,W], other networks [N,H,W,C] or, if that cannot be
            run, [N,C,H,W]).
        rules: table of names and layouts, as for conversion.
        state_dict_map: instead of rules, name in the state dict -> path on JAX's side, such as
            `{"fc.weight": "Dense_0.kernel"}`. The order of the axes follows from the shapes; a
            pair of a path and an `Op` states it. A list of paths makes up one tensor of PyTorch's,
            along its first axis, such as query, key and value; several names with one path make
            up JAX's. None drops a tensor, or all that match a glob. Tensors that it does not name
            are paired by similar names, else by equal values, else by the order in which both
            sides use them.
        call_torch: (module, tensors) -> tensor, or tensors by name; calls the module if None.
        call_jax: (network, arrays) -> array, or arrays by name; calls the network if None. An
            Equinox module is called by `jax.vmap`; of a pair, `network` takes the inputs alone.
        layout: axes of 4-D inputs, "NHWC" or "NCHW"; "same" gives both sides the arrays as they
            are. None recognizes images of 1, 3 or 4 channels, and takes others as NHWC.
        train: also compare the outputs and the updated buffers of a call in train mode.
        grad: also compare the gradient of a fixed random linear function of the outputs with
            respect to every parameter.
        sensitive: also measure how far the outputs depend on each tensor; see
            `fcn_jax.verify.sensitivity`.
        mutate: also plant faults in JAX's side, one at a time, and count those that the comparison
            of layers, outputs and train mode catches; see `fcn_jax.verify.mutation`. A number
            plants at most so many of each kind. The inputs should be small.
        dtype: compared precision, "float32" or "bfloat16"; the JAX network must compute in it.
        subject: name for the report.
        third_opinion: also run the PyTorch module by torchax, if that is installed.
        progress: called after every step with its name.

    Returns:
        The report; `report.equal` is the verdict.

    Raises:
        ConfigError: an unknown dtype or layout, a network of an unknown kind, one that cannot be
            traced by `jax.jit` on these inputs, a PyTorch module that cannot be called with them,
            or a side that is random although dropout is off.
        WeightsError: the tensors of the two sides do not fit each other (the error lists all
            missing, surplus and misshapen names), or torch is not installed.
    """
    if dtype not in FLOOR:
        raise ConfigError(f"dtype is '{dtype}'; it must be one of {', '.join(FLOOR)}")
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"layout is '{layout}'; it must be one of {', '.join(LAYOUTS)}")
    if rules is not None and state_dict_map is not None:
        raise ConfigError("rules and state_dict_map are both given; pass one of them")
    if mutate < 0:
        raise ConfigError(f"mutate is {mutate}: expected True, or a number of 0 or more")
    import_torch()
    check_device(torch_module)
    advance = progress or (lambda _: None)
    port = make_port(jax_network, call_jax)
    as_is = layout == "same"
    if as_is:
        port.channels_last = True  # the arrays stay as they are
    notes: list[str] = []
    arrays = tuple(map(np.asarray, (inputs,) if hasattr(inputs, "shape") else inputs))
    arrays = _channels_last(arrays, layout, notes)
    _check_runs(port, arrays, notes, as_is=as_is)
    if rules is None:
        call = partial(call_checked, call_torch or called)
        given = tensors_of(arrays, as_is=as_is), jax_side.placed(port, arrays)
        found = pair_tensors(torch_module, port, state_dict_map or {}, given, call)
        port, rules = found.port, found.table
        notes += found.notes
    coverage = load_port(port, torch_module.state_dict(), rules)
    shapes = [list(x.shape) for x in arrays]
    report = Report(
        subject or port.name,
        dtype,
        coverage=coverage,
        weights={"source": "state dict", "state_sha256": state_digest(torch_module)},
        settings={"layout": layout, "train": train, "grad": grad, "inputs": shapes},
        sources=evidence.sources(torch_module, *port.parts, call_torch, call_jax),
        third_opinion=ThirdOpinion() if third_opinion else None,
        notes=notes,
    )
    with paired(torch_module, port, rules, dtype, call_torch, as_is=as_is) as pair:
        pair.torch.check_call(arrays)
        few = few_values.find(pair.torch, arrays)
        untrained = few.impossible and (train or grad)
        if untrained:
            train = grad = False
        if port.silenced and (train or grad):
            silenced = listing(port.silenced, 3)
            notes.append(f"the dropout inside of attention is off on JAX's side: {silenced}")
        notes += jax_side.check_deterministic(port, arrays, train=train or grad)
        report.add_layers(compare_layers(pair, arrays, advance))
        section, outputs = compare_outputs(pair, arrays, "outputs", advance, report.third_opinion)
        report.sections.append(section)
        if sensitive:
            add_sensitivity(report, pair, arrays, [section])
            advance("sensitivity")
        if untrained:
            report.sections.append(few.skipped("train mode", FACTORS["gradients"]))
        if train or grad:
            pair.torch.check_deterministic(arrays)
        if train:
            found_in_train = compare_train_mode(pair, arrays, advance)
            report.sections.append(few.settled(found_in_train, few.before))
        if mutate:
            add_mutation(report, pair, arrays, mutate, lambda done, total, what: advance(what))
        if grad and (reason := _no_gradients(pair, section, outputs)):
            notes.append(f"gradients are not compared, since {reason}")
        elif grad:
            loss = random_loss(outputs)
            gradients = compare_gradients(pair, arrays, loss, advance, report.attempts)
            report.sections += map(few.settled, gradients)
    return report


def _no_gradients(pair: Pair, section: Section, outputs: Outputs) -> str:
    """Why gradients cannot be compared; "" if they can."""
    if any(comparison.fault for comparison in section.comparisons):
        return "the outputs of the two sides do not fit each other"
    if not any(np.issubdtype(value.dtype, np.floating) for value in outputs.reference.values()):
        return "no output is a floating-point number"
    if not any(p.requires_grad for p in pair.torch.network(REFERENCE).parameters()):
        return "PyTorch trains no parameter (requires_grad)"
    return ""


def _channels_last(
    inputs: tuple[np.ndarray, ...], layout: str | None, notes: list[str]
) -> tuple[np.ndarray, ...]:
    """Images as NHWC."""

    def convert(x: np.ndarray) -> np.ndarray:
        if x.ndim != 4 or layout in ("NHWC", "same"):
            return x
        first = x.shape[1] in _CHANNELS and x.shape[3] not in _CHANNELS
        if layout is None and first:
            notes.append(f"inputs of shape {x.shape} are taken as NCHW (layout)")
        return to_nhwc(x) if first or layout == "NCHW" else x

    return tuple(map(convert, inputs))


def _check_runs(
    port: Port, inputs: tuple[np.ndarray, ...], notes: list[str], *, as_is: bool
) -> None:
    """Find the axes that JAX's side takes, and raise `ConfigError` if it cannot be traced."""

    def trace() -> None:
        def run(leaves: Any, inputs: Any) -> Any:
            return by_name(port.run(leaves, inputs, watch=None)[0])

        jax.eval_shape(run, port.leaves, jax_side.placed(port, inputs))

    try:
        trace()
    except Exception as error:
        is_image = any(x.ndim == 4 for x in inputs) and not as_is
        if isinstance(error, _NOT_TRACEABLE) or not is_image:
            raise _cannot_run(port, inputs, error) from error
        port.channels_last = not port.channels_last
        try:
            trace()
        except Exception:
            port.channels_last = not port.channels_last
            raise _cannot_run(port, inputs, error) from error
        axes = "NHWC" if port.channels_last else "NCHW"
        notes.append(f"JAX's side takes images as {axes}, so it gets them with these axes")


_NOT_TRACEABLE = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


def _cannot_run(port: Port, inputs: tuple[np.ndarray, ...], error: Exception) -> ConfigError:
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, _NOT_TRACEABLE):
        return ConfigError(
            f"{port.name} cannot be jitted: {message}; a network must not convert arrays to Python "
            "numbers or numpy arrays"
        )
    shapes = ", ".join(str(x.shape) for x in inputs)
    needs_more = isinstance(error, TypeError) or "rng" in message.lower()
    hint = "; pass call_jax if it takes more than the inputs" if needs_more else ""
    return ConfigError(f"{port.name} cannot be run on inputs of shape {shapes}: {message}{hint}")
