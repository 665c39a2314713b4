"""Which submodule of one side is which of the other, and their comparison one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from flax import nnx

from fcn_jax.models.names import leaves
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify import jax_side
from fcn_jax.verify.compare import FACTORS, Comparison, Section, Yardstick
from fcn_jax.verify.torch_side import TRUTH, TorchSide, import_torch

if TYPE_CHECKING:
    import torch


def pair(network: torch.nn.Module, module: nnx.Module, table: Table) -> dict[str, str]:
    """Submodules that hold the same tensors by the table: Flax path -> PyTorch name, leaves and blocks alike.

    Where several modules, one around the other, hold the same tensors, they are paired from the
    outermost on if there are as many on both sides. Otherwise what they do besides cannot be told,
    such as adding a shortcut, and only the innermost are paired, if they hold the tensors
    themselves.
    """
    names = {}
    for path in leaves(module):
        found = table.to_torch(path)
        if found is not None:
            names[path] = found[0]
    present = set(network.state_dict())
    ours = _by_tensors(
        sorted(jax_side.submodules(module), key=lambda path: path.count(".")),
        {path: name for path, name in names.items() if name in present},
    )
    theirs = _by_tensors(
        [name for name, layer in network.named_modules() if name and _does_something(layer)],
        {n: n for n in present},
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
    """Modules by what they hold, in the order given.

    Args:
        modules: their names.
        tensors: name of each tensor as the modules have it -> what it is known by.
    """
    found: dict[frozenset[str], list[str]] = {}
    for module in modules:
        held = frozenset(known for name, known in tensors.items() if name.startswith(f"{module}."))
        if held:
            found.setdefault(held, []).append(module)
    return found


def _does_something(layer: torch.nn.Module) -> bool:
    """Whether a PyTorch module can be called and does more than its only child."""
    torch = import_torch()
    can_be_called = type(layer).forward is not torch.nn.Module.forward
    return can_be_called and not (
        type(layer) is torch.nn.Sequential and len(list(layer.children())) == 1
    )


def compare(
    side: TorchSide,
    module: nnx.Module,
    call: jax_side.Call,
    pairs: Mapping[str, str],
    inputs: Sequence[np.ndarray],
    dtype: str,
    advance: Callable[[str], None],
) -> tuple[Section, Section, tuple[str, ...]]:
    """Compare every pair, on PyTorch's own input and within the running network.

    Args:
        side: PyTorch's, in eval mode.
        module: JAX's, in eval mode.
        call: how to run the whole of it.
        pairs: Flax path -> PyTorch name.
        inputs: of the whole network, NHWC.
        dtype: compared precision.
        advance: told of every step done.

    Returns:
        The isolated errors, each layer fed PyTorch's own input, in the order of PyTorch's calls;
        the accumulated errors, in the same order; and the layers with tensors of their own that
        were not compared, since one side never calls them with a single tensor.
    """
    _, ours = jax_side.watched(module, call, inputs, tuple(pairs))
    advance("JAX")
    # A head, for one, takes several features by name here and a single tensor there.
    paths = {name: path for path, name in pairs.items() if path in ours}
    _, seen_in, truth = side.watched(TRUTH, inputs, tuple(paths))
    advance("PyTorch float64")
    order = list(
        seen_in
    )  # hooks fire when a module is done: the layers of a block before the block
    accumulated = Yardstick(_numbered(paths, truth), dtype)
    for variant in side.variants:
        _, _, seen = side.watched(variant, inputs, order)
        accumulated.add(_numbered(paths, seen))
        advance("PyTorch")
    factor = FACTORS["layers"]
    called = {paths[name] for name in order}
    whole = Section(
        "layers, accumulated",
        factor,
        accumulated.judge(_flat({path: ours[path] for path in ours if path in called}), factor),
    )
    del accumulated, truth, ours, seen

    modules, run_layer = jax_side.submodules(module), jax_side.layer_runner()
    isolated: list[Comparison] = []
    for name in order:
        path = paths[name]
        for number, x in enumerate(seen_in.pop(name)):
            x = _rounded(x, dtype)
            key = _label(path, number)
            yardstick = Yardstick({key: side.layer(TRUTH, name, x)}, dtype)
            for variant in side.variants:
                yardstick.add({key: side.layer(variant, name, x)})
            isolated += yardstick.judge({key: run_layer(modules[path], x)}, factor)
        advance(path)
    owners = dict.fromkeys(path.rpartition(".")[0] for path in leaves(module))
    uncompared = tuple(owner for owner in owners if owner not in called)
    return Section("layers, isolated", factor, tuple(isolated)), whole, uncompared


def guilty(isolated: Section, accumulated: Section) -> str:
    """Which layer is to blame, or "" if none is.

    The first that is wrong on PyTorch's own input; a block comes after the layers in it, so it is
    named only where they are right. Otherwise, where every layer is right by itself, the code
    between two of them is wrong.
    """
    first = next((c for c in isolated.comparisons if not c.equal), None)
    if first is not None:
        return str(first)
    before = "the input"
    for comparison in accumulated.comparisons:
        if not comparison.equal:
            return f"between {before} and {comparison}"
        before = comparison.name
    return ""


def _label(path: str, number: int) -> str:
    return path if number == 0 else f"{path} (call {number + 1})"


def _flat(seen: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        _label(path, i): value for path, values in seen.items() for i, value in enumerate(values)
    }


def _numbered(
    paths: Mapping[str, str], seen: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, np.ndarray]:
    return _flat({paths[name]: values for name, values in seen.items()})


def _rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """An input that both sides can represent."""
    if dtype == "float32":
        return x
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16).astype(np.float32)
