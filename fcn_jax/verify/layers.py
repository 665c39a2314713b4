"""Which submodules of the two sides are the same layer, and their comparison one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from flax import nnx

from fcn_jax.models.names import leaves
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify import jax_side
from fcn_jax.verify.compare import FACTORS, Comparison, ReferenceErrors, Section
from fcn_jax.verify.torch_side import REFERENCE, import_torch
from fcn_jax.verify.types import Advance, Pair

if TYPE_CHECKING:
    import torch


def match_layers(network: torch.nn.Module, module: nnx.Module, table: Table) -> dict[str, str]:
    """Match submodules that hold the same tensors, layers and blocks alike.

    Several modules, one around the other, may hold the same tensors. They are matched from the
    outermost on if there are as many on both sides. Otherwise it is unknown which of them adds, for
    example, a shortcut, and only the innermost are matched, if they hold the tensors themselves.

    Returns:
        Flax path -> PyTorch name.
    """
    names = {path: found[0] for path in leaves(module) if (found := table.to_torch(path))}
    present = set(network.state_dict())
    ours = _by_tensors(
        sorted(jax_side.submodules(module), key=lambda path: path.count(".")),
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
    return {path: pairs[path] for path in jax_side.submodules(module) if path in pairs}


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
        skipped: layers with tensors of their own that one side never calls with a single tensor.
    """

    isolated: Section
    accumulated: Section
    skipped: tuple[str, ...]

    @property
    def sections(self) -> list[Section]:
        """The sections that are not empty. If there are none, `skipped` names the layers."""
        return [section for section in (self.isolated, self.accumulated) if section.comparisons]

    @property
    def first_failing(self) -> str:
        """The first layer that fails on PyTorch's own input; "" if no layer fails.

        A block comes after its layers, so it is named only if they pass. If every layer passes
        alone, but not in the network, the code between two of them is wrong.
        """
        first = next((c for c in self.isolated.comparisons if not c.equal), None)
        if first is not None:
            return str(first)
        before = "the input"
        for comparison in self.accumulated.comparisons:
            if not comparison.equal:
                return f"between {before} and {comparison}"
            before = comparison.name
        return ""


def compare_layers(pair: Pair, inputs: Sequence[np.ndarray], advance: Advance) -> Layers:
    """Compare every matched layer, on PyTorch's own input and within the running network.

    Args:
        pair: both sides, in eval mode.
        inputs: the whole network's inputs, NHWC.
        advance: called after every step.
    """
    side, factor = pair.torch, FACTORS["layers"]
    ours = jax_side.watched(pair.jax, pair.call, inputs, tuple(pair.layers))
    advance("JAX")
    # Some layers are called with several tensors on one side only, such as a head with its features
    # by name.
    paths = {name: path for path, name in pair.layers.items() if path in ours}
    seen_in, reference = side.watched(REFERENCE, inputs, tuple(paths))
    advance("PyTorch float64")
    order = list(seen_in)  # hooks run when a module is done: first the layers, then their block
    errors = ReferenceErrors(_by_call(reference, paths), pair.dtype)
    for variant in side.variants:
        _, seen = side.watched(variant, inputs, order)
        errors.add(_by_call(seen, paths))
        advance("PyTorch")
    found = _by_call({name: ours[paths[name]] for name in order}, paths)
    accumulated = Section("layers, accumulated", factor, errors.compare(found, factor))
    del errors, reference, ours, found, seen

    modules, run_layer = jax_side.submodules(pair.jax), jax_side.layer_runner()
    isolated: list[Comparison] = []
    for name in order:
        path = paths[name]
        for number, x in enumerate(seen_in.pop(name)):
            x = _rounded(x, pair.dtype)
            key = _label(path, number)
            errors = ReferenceErrors({key: side.layer(REFERENCE, name, x)}, pair.dtype)
            for variant in side.variants:
                errors.add({key: side.layer(variant, name, x)})
            isolated += errors.compare({key: run_layer(modules[path], x)}, factor)
        advance(path)
    owners = dict.fromkeys(path.rpartition(".")[0] for path in leaves(pair.jax))
    called = {paths[name] for name in order}
    skipped = tuple(owner for owner in owners if owner not in called)
    return Layers(Section("layers, isolated", factor, tuple(isolated)), accumulated, skipped)


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


def _rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """An input that both sides can represent."""
    if dtype == "float32":
        return x
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16).astype(np.float32)
