"""Comparison of a PyTorch module with a JAX network: weights, layers, outputs, gradients."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.convert.export import export_leaves
from fcn_jax.convert.load import import_leaves
from fcn_jax.convert.report import LoadReport
from fcn_jax.errors import ConfigError, listing
from fcn_jax.pytorch import files
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify import evidence, jax_side, kinks, sensitivity
from fcn_jax.verify.criterion import (
    ATTEMPTS,
    FACTORS,
    FLOOR,
    NEGLIGIBLE,
    NEGLIGIBLE_BFLOAT16,
    ReferenceErrors,
    Section,
    compare_repeatedly,
)
from fcn_jax.verify.layers import compare_layers, match_layers
from fcn_jax.verify.layout import Layout, best_layout
from fcn_jax.verify.mutation.score import Progress, score
from fcn_jax.verify.opening import open_units
from fcn_jax.verify.outputs import by_name
from fcn_jax.verify.pairing import StateDictMap, pair_tensors
from fcn_jax.verify.ports import Port, make_port
from fcn_jax.verify.report import Report
from fcn_jax.verify.third_opinion import ThirdOpinion
from fcn_jax.verify.torch_side import (
    REFERENCE,
    TorchSide,
    Variant,
    array,
    call_checked,
    check_device,
    import_torch,
    tensors_of,
    to_nhwc,
)
from fcn_jax.verify.types import Advance, Call, Loss, Outputs, Pair

if TYPE_CHECKING:
    import torch

LAYOUTS = ("NHWC", "NCHW", "same")
_LOOSE = 10.0
"""A limit is wide if PyTorch's own error is so many times that of the median tensor."""


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
        call = partial(call_checked, call_torch or _called)
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
        sources=evidence.sources(torch_module, jax_network, call_torch, call_jax),
        third_opinion=ThirdOpinion() if third_opinion else None,
        notes=notes,
    )
    with paired(torch_module, port, rules, dtype, call_torch, as_is=as_is) as pair:
        pair.torch.check_call(arrays)
        notes += jax_side.check_deterministic(port, arrays, train=train or grad)
        report.add_layers(compare_layers(pair, arrays, advance))
        section, outputs = compare_outputs(pair, arrays, "outputs", advance, report.third_opinion)
        report.sections.append(section)
        if sensitive:
            add_sensitivity(report, pair, arrays, [section])
            advance("sensitivity")
        if train or grad:
            pair.torch.check_deterministic(arrays)
        if train:
            report.sections.append(compare_train_mode(pair, arrays, advance))
        if mutate:
            add_mutation(report, pair, arrays, mutate, lambda done, total, what: advance(what))
        if grad and (reason := _no_gradients(pair, section, outputs)):
            notes.append(f"gradients are not compared, since {reason}")
        elif grad:
            loss = _random_loss(outputs)
            attempts = attempts_after(report)
            report.sections += compare_gradients(pair, arrays, loss, advance, attempts)
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


def load_port(port: Port, tensors: Mapping[str, Any], table: Table) -> LoadReport:
    """Load a state dict into a JAX network by a table, all or nothing.

    Raises:
        WeightsError: all missing, surplus and misshapen names in one message.
    """
    leaves, report = import_leaves(port.leaves, port.name, tensors, table)
    port.load(leaves)
    return report


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


@contextlib.contextmanager
def paired(
    torch_module: Any,
    port: Port,
    table: Table,
    dtype: str,
    call_torch: Call | None = None,
    *,
    as_is: bool = False,
) -> Iterator[Pair]:
    """Both networks in eval mode without dropout. JAX's dropout is restored at the end."""
    with port.without_dropout():
        side = TorchSide(torch_module, dtype, call_torch or _called, as_is=as_is)
        side.train(False)
        matched = match_layers(torch_module, port, table)
        yield Pair(side, port, table, dtype, matched)


@contextlib.contextmanager
def train_mode(pair: Pair) -> Iterator[None]:
    """Put PyTorch into train mode; restore its parameters and statistics at the end."""
    saved = [
        (network, {k: v.clone() for k, v in network.state_dict().items()})
        for network in pair.torch.networks()
    ]
    pair.torch.train(True)
    try:
        yield
    finally:
        for network, state in saved:
            network.load_state_dict(state)
            network.zero_grad(set_to_none=True)
        pair.torch.train(False)


def add_mutation(
    report: Report,
    pair: Pair,
    inputs: Sequence[np.ndarray],
    mutate: bool | int,
    progress: Progress | None,
) -> None:
    """Plant faults; `mutate` is True for all, or the largest number of each kind."""
    if not report.equal:
        report.notes.append("no faults were planted, because the port already differs")
        return
    most = None if mutate is True else int(mutate)
    report.mutation = score(pair, inputs, most=most, progress=progress)


def compare_outputs(
    pair: Pair,
    inputs: Sequence[np.ndarray],
    title: str,
    advance: Advance,
    opinion: ThirdOpinion | None = None,
) -> tuple[Section, Outputs]:
    """Run both networks and compare their outputs; complete a third opinion on them."""
    torch = import_torch()

    def by_torch(variant: Variant) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = pair.torch.outputs(variant, inputs)
        advance("PyTorch")
        return {name: array(value) for name, value in found.items()}

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
    """The outputs of both sides. Two single outputs are the same one, whatever their names."""
    if len(reference) == len(jax) == 1:
        jax = dict(zip(reference, jax.values(), strict=True))
    found = {
        name: layout
        for name, x in jax.items()
        if name in reference and (layout := _output_layout(reference[name], x)) is not None
    }
    moved = {name: found[name].to_torch(x) if name in found else x for name, x in jax.items()}
    return Outputs(reference, runs, moved, found)


def _output_layout(torch: np.ndarray, jax: np.ndarray) -> Layout | None:
    """The layout of an output. A square matrix keeps its axes: transposed, it would be another."""
    if torch.ndim == 3 and torch.shape == jax.shape:
        return Layout(torch.shape, jax.shape, (0, 1, 2))
    return best_layout(torch, jax)


def compare_train_mode(pair: Pair, inputs: Sequence[np.ndarray], advance: Advance) -> Section:
    """Call both networks once in train mode and compare the outputs and the buffers after it.

    Momentum, the variance that is averaged, and statistics that are used although they should not
    be, show only here.
    """
    torch = import_torch()
    port = pair.port
    known = pair.table.names(path for path in port.leaves if path not in port.parameters).values()

    def by_torch(variant: Variant) -> dict[str, np.ndarray]:
        with train_mode(pair), torch.no_grad():
            found = {name: array(x) for name, x in pair.torch.outputs(variant, inputs).items()}
            state = pair.torch.network(variant).state_dict()
            buffers = {name: array(x) for name, x in state.items() if name in known}
        advance("PyTorch, train mode")
        return {**found, **buffers}

    reference = by_torch(REFERENCE)
    errors = ReferenceErrors(reference, pair.dtype)
    for variant in pair.torch.variants:
        errors.add(by_torch(variant))
    found, updates = jax_side.outputs(port, inputs, train=True)
    names = [name for name in reference if name not in known]
    outputs = _outputs({name: reference[name] for name in names}, [], found).jax
    buffers = export_leaves(updates, pair.table)
    advance("JAX, train mode")
    factor = FACTORS["gradients"]
    return Section("train mode", factor, errors.compare({**outputs, **buffers}, factor))


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
    names = set(pair.table.names(pair.port.leaves).values())
    try:
        report.sensitivity = sensitivity.measure(pair.torch, inputs, names, floor)
    except RuntimeError as error:  # PyTorch has no such derivative
        report.notes.append(f"sensitivities are not measured: {str(error).splitlines()[0]}")


def compare_gradients(
    pair: Pair, inputs: Sequence[np.ndarray], loss: Loss, advance: Advance, attempts: int
) -> list[Section]:
    """Compare the loss and its gradients, in train mode.

    Weights are changed for this comparison. In float32, no unit lies at a kink then; see `kinks`.
    In bfloat16, few units are near one, see `opening`, and up to `attempts` slightly different
    inputs are compared.
    """
    if pair.dtype == "bfloat16":

        def attempt(number: int) -> list[Section]:
            given = _nearby(inputs, number)
            with train_mode(pair), _restored(pair.port):
                network = pair.torch.network(REFERENCE)
                open_units(network, lambda: pair.torch.outputs(REFERENCE, given))
                _load_everywhere(pair, dict(network.named_parameters()))
                return [_compare_gradients(pair, given, loss, advance)]

        return compare_repeatedly(attempt, attempts)
    with train_mode(pair), _restored(pair.port):
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
    judged = f"the limits of {listing(loose)} may be wide" if loose else "no limit is wide"
    remark = f"{section.title}: {units} lie at a kink and could not be moved; {judged}"
    return dataclasses.replace(section, loose=loose, remarks=(remark,))


@contextlib.contextmanager
def _restored(port: Port) -> Iterator[None]:
    """Restore the values of all leaves at the end."""
    leaves = port.leaves
    try:
        yield
    finally:
        port.load(leaves)


def state_digest(network: Any) -> str:
    """SHA-256 of a PyTorch module's state dict."""
    return files.digest(files.tensors_of(network.state_dict(), "state dict"))


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
    least = {"float32": NEGLIGIBLE, "bfloat16": NEGLIGIBLE_BFLOAT16}[pair.dtype] * norm
    errors = ReferenceErrors(reference, pair.dtype, least_norm=least)
    for variant in pair.torch.variants:
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


def _called(module: Any, inputs: tuple[Any, ...]) -> Any:
    return module(*inputs)


def _random_loss(outputs: Outputs) -> Loss:
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
        if len(found) == len(target) == 1:
            found = dict(zip(target, found.values(), strict=True))
        return sum((found[name].astype(jnp.float32) * target[name]).sum() for name in target)

    target = {
        name: outputs.layouts[name].to_jax(weight) if name in outputs.layouts else weight
        for name, weight in weights.items()
    }
    return Loss(by_torch, by_jax, target)
