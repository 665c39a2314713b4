"""Which submodules of the two sides are the same layer, and their comparison one by one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fcn_jax.errors import listing
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify import jax_side
from fcn_jax.verify.criterion import FACTORS, LAYERS, Comparison, ReferenceErrors, Section
from fcn_jax.verify.layout import best_layout, layouts, layouts_of_another_size
from fcn_jax.verify.ports import Port
from fcn_jax.verify.torch_side import REFERENCE, import_torch
from fcn_jax.verify.types import Advance, Pair

if TYPE_CHECKING:
    import torch


_SCALE = 8.0
"""Factor of the inputs of single layers, large enough for ReLU6 and small enough for exponentials.
A power of two leaves the digits as they are."""

_THREADED = 1 << 20
"""Smallest input of a layer that runs in several threads, in elements."""


def match_layers(network: torch.nn.Module, port: Port, table: Table) -> dict[str, str]:
    """Match submodules that hold the same tensors, layers and blocks alike.

    Several modules, one around the other, may hold the same tensors. They are matched from the
    outermost on if there are as many on both sides. Otherwise it is unknown which of them adds, for
    example, a shortcut, and only the innermost are matched, if they hold the tensors themselves.

    Returns:
        JAX's path -> PyTorch's name.
    """
    names = table.names(port.leaves)
    # Not every library counts batches.
    counts = {name for name in network.state_dict() if name.endswith(".num_batches_tracked")}
    present = set(network.state_dict()) - (counts - set(names.values()))
    ours = _by_tensors(
        sorted(port.layers, key=lambda path: path.count(".")),
        {path: name for path, name in names.items() if name in present},
    )
    theirs = _by_tensors(
        [name for name, layer in network.named_modules() if name and _is_layer(layer)],
        {name: name for name in present},
    )
    pairs: dict[str, str] = {}
    for tensors, paths in ours.items():
        candidates = theirs.get(tensors, [])
        if len(candidates) == len(paths):
            pairs.update(zip(paths, candidates, strict=True))
            continue
        owner = candidates[-1] if candidates else ""
        if all(name.rpartition(".")[0] == owner for name in tensors):
            pairs[paths[-1]] = owner
    return {path: pairs[path] for path in port.layers if path in pairs}


def misplaced(network: torch.nn.Module, port: Port, table: Table) -> tuple[str, ...]:
    """Tensors that come from another PyTorch module than the rest of their layer, in words.

    A correct port may distribute tensors differently, so this is no more than a hint at the cause
    of a difference.
    """
    names = table.names(port.leaves)
    theirs = {
        tensors: modules[0]
        for tensors, modules in _by_tensors(
            [name for name, _ in network.named_modules() if name],
            {name: name for name in network.state_dict()},
        ).items()
    }
    found: dict[str, str] = {}
    ours = _by_tensors(sorted(port.layers, key=lambda path: -path.count(".")), names)
    paths = {name: path for path, name in names.items()}
    for tensors, modules in ours.items():
        if tensors in theirs or len(tensors) < 2:
            continue
        shared = {held: len(held & tensors) / len(held | tensors) for held in theirs}
        # Not the parts of the layer, which are where they belong.
        near = max((held for held in theirs if not held <= tensors), key=shared.__getitem__)
        if 3 * shared[near] < 1:
            continue
        for name in sorted(tensors - near):
            text = f"{paths[name]} is loaded from {name}, but the rest of {modules[-1]} from "
            found.setdefault(name, f"{text}{theirs[near]}")
    return tuple(found.values())


def _by_tensors(
    modules: Sequence[str], tensors: Mapping[str, str]
) -> dict[frozenset[str], list[str]]:
    """Group modules by their tensors.

    Args:
        modules: names of the modules.
        tensors: each tensor's name in the module tree -> its common name.
    """
    found: dict[frozenset[str], list[str]] = {}
    for module in modules:
        held = frozenset(known for name, known in tensors.items() if name.startswith(f"{module}."))
        if held:
            found.setdefault(held, []).append(module)
    return found


def _is_layer(layer: torch.nn.Module) -> bool:
    """Whether a PyTorch module can be called and does more than its only child."""
    torch = import_torch()
    can_be_called = type(layer).forward is not torch.nn.Module.forward
    return can_be_called and not (
        type(layer) is torch.nn.Sequential and len(list(layer.children())) == 1
    )


class Layers(NamedTuple):
    """Comparison of all layers, in the order of PyTorch's calls.

    Attributes:
        isolated: each layer's error on PyTorch's own input.
        accumulated: each layer's error within the running network.
        skipped: layers with tensors of their own that were not compared alone -> the reason.
        misplaced: tensors whose names may be wrong, in words; empty if all layers are equal.
    """

    isolated: Section
    accumulated: Section
    skipped: dict[str, str]
    misplaced: tuple[str, ...] = ()

    @property
    def sections(self) -> list[Section]:
        """The sections that are not empty. If there are none, `skipped` names the layers."""
        return [section for section in (self.isolated, self.accumulated) if section.comparisons]

    @property
    def first_failing(self) -> str:
        """The first layer that fails on PyTorch's own input; "" if no layer fails.

        If the running network departs from PyTorch's before that, the code between two layers is
        wrong, such as an activation. A block comes after its layers.
        """
        first = next((c for c in self.isolated.comparisons if not c.equal), None)
        named, before = str(first or ""), "the input"
        for comparison in self.accumulated.comparisons:
            if first and comparison.name == first.name:
                break
            if not comparison.equal:
                inside = first is not None and comparison.name.startswith(f"{first.name}.")
                block = f"{first.name}, " if first and inside else ""
                named = f"{block}between {before} and {comparison}"
                break
            before = comparison.name
        return "; ".join([named, *self.misplaced[:2]]) if named else ""


def compare_layers(pair: Pair, inputs: Sequence[np.ndarray], advance: Advance) -> Layers:
    """Compare every matched layer, on PyTorch's own input and within the running network.

    Args:
        pair: both sides, in eval mode.
        inputs: the whole network's inputs, NHWC.
        advance: called after every step.
    """
    side, factor = pair.torch, FACTORS["layers"]
    ours = jax_side.watched(pair.port, inputs, tuple(pair.layers))
    advance("JAX")
    # Some layers are called with several tensors on one side only, such as a head with its features
    # by name.
    paths = {name: path for path, name in pair.layers.items() if path in ours}
    modules = dict(side.network(REFERENCE).named_modules())
    paths.update({path: path for path in ours if path not in pair.layers and path in modules})
    seen_in, reference = side.watched(REFERENCE, inputs, tuple(paths))
    advance("PyTorch float64")
    order = list(seen_in)  # hooks run when a module is done: first the layers, then their block
    goals = _by_call(reference, paths)
    errors = ReferenceErrors(goals, pair.dtype)
    for variant in side.variants:
        _, seen = side.watched(variant, inputs, order)
        errors.add(_by_call(seen, paths))
        advance("PyTorch")
    calls = {name: ours[paths[name]] for name in order}
    found = _by_call({name: [call.output for call in calls[name]] for name in order}, paths)
    found = {key: in_torch_axes(goals[key], x) if key in goals else x for key, x in found.items()}
    accumulated = Section("layers, accumulated", factor, errors.compare(found, factor))
    del errors, reference, goals, ours, found, seen

    run_layer = jax_side.layer_runner(pair.port)
    isolated: list[Comparison] = []
    for name in order:
        path = paths[name]
        for number, (x, call) in enumerate(zip(seen_in.pop(name), calls[name], strict=False)):
            key = _label(path, number)
            found_alone: list[Comparison] = []
            for probe in probes(rounded(x, pair.dtype)):
                with one_thread(x.size):
                    goal = side.layer(REFERENCE, name, probe)
                    errors = ReferenceErrors({key: goal}, pair.dtype)
                    for variant in side.variants:
                        errors.add({key: side.layer(variant, name, probe)})
                y = _run_layer(run_layer, path, call, probe, goal)
                found_alone += errors.compare({key: y}, factor) if y is not None else ()
            isolated += sorted(found_alone, key=lambda c: c.excess)[-1:]
        advance(path)
    section = Section(LAYERS, factor, tuple(isolated))
    skipped = _skipped(pair, {paths[name] for name in order}, paths)
    layers = Layers(section, accumulated, skipped)
    if not layers.first_failing:
        return layers
    return layers._replace(misplaced=misplaced(side.network(REFERENCE), pair.port, pair.table))


def probes(x: np.ndarray) -> list[np.ndarray]:
    """The inputs on which a layer is compared alone: PyTorch's own, and the same at other scales.

    A bound such as that of ReLU6 shows only where values reach it, and a small number such as the
    epsilon of a layer normalization only where they are small. The first, third, ... example of the
    batch is larger than PyTorch's, the others are smaller. The worse result counts.
    """
    if not np.issubdtype(x.dtype, np.floating) or not x.ndim:
        return [x]
    scale = np.where(np.arange(len(x)) % 2, 1 / _SCALE, _SCALE).astype(x.dtype)
    return [x, x * scale.reshape(-1, *[1] * (x.ndim - 1))]


def _skipped(pair: Pair, compared: set[str], called: Mapping[str, str]) -> dict[str, str]:
    """Layers with tensors of their own that were not compared, and the reasons.

    Args:
        pair: both sides.
        compared: paths of the compared layers.
        called: PyTorch's name of each layer that JAX calls with a single array -> its path.
    """
    tensors: dict[str, list[str]] = {}
    for path, name in pair.table.names(pair.port.leaves).items():
        tensors.setdefault(path.rpartition(".")[0], []).append(name)
    reasons = {}
    for layer, names in tensors.items():
        if not layer or layer in compared:
            continue
        if layer not in pair.layers:
            reasons[layer] = f"no one PyTorch module holds these tensors: {listing(names, 4)}"
        elif pair.layers[layer] not in called:
            reasons[layer] = "JAX does not call it with a single array"
        else:
            reasons[layer] = "PyTorch does not call it with a single tensor"
    return reasons


def _run_layer(
    run: Any, path: str, call: jax_side.WatchedCall, x: np.ndarray, goal: np.ndarray
) -> np.ndarray | None:
    """JAX's output on PyTorch's input, with PyTorch's axes; None if the layer cannot run alone.

    Where several layouts of the input fit, such as for 2, 8, 8, 8, the best result counts. A wrong
    layer before this one may have changed the size of JAX's own input.
    """
    fitting = layouts(x.shape, call.shape) or layouts_of_another_size(x.shape, call.shape)
    found = [run(path, call, layout.to_jax(x)) for layout in fitting]
    outputs = [in_torch_axes(goal, y) for y in found if y is not None]
    fit = [y for y in outputs if y.shape == goal.shape] or outputs[:1]
    return min(fit, key=lambda y: distance(y, goal), default=None)


def distance(y: np.ndarray, goal: np.ndarray) -> float:
    """The norm of the difference; 0 if the shapes differ."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.linalg.norm(y - goal)) if y.shape == goal.shape else 0.0


def in_torch_axes(torch: np.ndarray, jax: np.ndarray) -> np.ndarray:
    """JAX's array with PyTorch's axes; unchanged if the shapes do not fit each other."""
    layout = best_layout(torch, jax)
    return jax if layout is None else layout.to_torch(jax)


@contextlib.contextmanager
def one_thread(elements: int) -> Iterator[None]:
    """Run small layers of PyTorch in one thread.

    Several threads wait for each other by spinning, which takes many times as long on a busy
    machine.
    """
    torch = import_torch()
    threads = torch.get_num_threads()
    if elements >= _THREADED:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _label(path: str, number: int) -> str:
    return path if number == 0 else f"{path} (call {number + 1})"


def _by_call(
    seen: Mapping[str, Sequence[np.ndarray]], paths: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """The output of each call, by the layer's path and the number of the call."""
    return {
        _label(paths[name], i): value
        for name, values in seen.items()
        for i, value in enumerate(values)
    }


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """An input that both sides can represent."""
    if dtype == "float32":
        return x
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16).astype(np.float32)
