"""The order in which the two networks use their tensors, and the layers that it pairs.

Names such as Linen's `Conv_3` say nothing about PyTorch's. But both networks use their tensors in
nearly the same order.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.extend import core

from fcn_jax.verify import tags
from fcn_jax.verify.outputs import by_name
from fcn_jax.verify.torch_side import import_torch

if TYPE_CHECKING:
    import torch

    from fcn_jax.verify.ports import Port

_KINDS = ("weight", "bias", "mean", "var")
"""Tensors that a layer has together."""

_VIEWS = frozenset(
    ("convert_element_type", "reshape", "transpose", "broadcast_in_dim", "squeeze", "rev", "copy")
)
"""Operations whose result is the same tensor, so they are no use of it."""


def torch_order(
    module: torch.nn.Module, inputs: tuple[Any, ...], call: Callable[[Any, Any], Any]
) -> list[str]:
    """Names in the state dict in the order in which a call in eval mode first uses them."""
    torch = import_torch()
    network = copy.deepcopy(module).float().eval()
    names = {id(x): name for name, x in network.state_dict(keep_vars=True).items()}
    used: dict[str, None] = {}

    class Uses(torch.overrides.TorchFunctionMode):  # type: ignore[name-defined]
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            for x in torch.utils._pytree.tree_leaves((args, kwargs)):
                if id(x) in names:
                    used.setdefault(names[id(x)])
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Uses():
        call(network, inputs)
    return [*used, *(name for name in names.values() if name not in used)]


def jax_order(port: Port, inputs: tuple[np.ndarray, ...]) -> list[str]:
    """Paths of leaves in the order in which a call in eval mode first uses them.

    Args:
        port: JAX's side.
        inputs: with the axes that the port takes.
    """
    leaves = port.leaves
    paths = list(leaves)

    def run(values: Sequence[Any], inputs: Any) -> Any:
        return by_name(port.run(dict(zip(paths, values, strict=True)), inputs, watch=None)[0])

    jaxpr = jax.make_jaxpr(run)([leaves[path] for path in paths], inputs).jaxpr
    used: dict[str, None] = {}
    _visit(jaxpr, dict(zip(jaxpr.invars, paths, strict=False)), used)
    return [*used, *(path for path in paths if path not in used)]


def _visit(jaxpr: Any, paths: dict[Any, str], used: dict[str, None]) -> None:
    for eqn in jaxpr.eqns:
        given = [None if isinstance(x, core.Literal) else paths.get(x) for x in eqn.invars]
        called = tags.inner(eqn)
        if called is not None and len(called[0].invars) == len(given):
            inside = zip(called[0].invars, given, strict=True)
            _visit(called[0], {var: path for var, path in inside if path}, used)
        elif eqn.primitive.name in _VIEWS and given[0]:
            paths[eqn.outvars[0]] = given[0]
        else:
            used.update(dict.fromkeys(path for path in given if path))


@dataclasses.dataclass(frozen=True)
class _Unit:
    """A layer's own tensors, or a single tensor: kind -> name; and what they have in common."""

    signature: tuple[Any, ...]
    tensors: Mapping[str, str]


def pair_in_order(
    theirs: Sequence[str],
    ours: Sequence[str],
    sizes: Mapping[str, int],
    kind: Callable[[str], str],
    known: Mapping[str, str],
    roles: Mapping[str, str],
) -> dict[str, str]:
    """Pair tensors by the order of use of layers that have as many elements.

    A layer whose sizes occur once on either side is paired first, and with it those that directly
    follow on both sides. The others are paired in order. So a shortcut that one side computes
    before the branch, and the other after it, is paired correctly if its sizes are not the
    branch's.

    Args:
        theirs: PyTorch's names in the order of use.
        ours: JAX's paths in the order of use.
        sizes: number of elements by name and path.
        kind: name or path -> what it is in its layer, such as "weight".
        known: pairs, PyTorch's name -> JAX's path.
        roles: what only a tensor with the same role can be paired with; may be empty.

    Returns:
        The new pairs.
    """
    left, right = _units(theirs, sizes, kind, roles), _units(ours, sizes, kind, roles)
    held = {*known, *known.values()}
    free_left = {i for i, unit in enumerate(left) if held.isdisjoint(unit.tensors.values())}
    free_right = {j for j, unit in enumerate(right) if held.isdisjoint(unit.tensors.values())}
    pairs: list[tuple[_Unit, _Unit]] = []

    def pair(i: int, j: int) -> None:
        """Pair two layers and those that follow."""
        while i in free_left and j in free_right and left[i].signature == right[j].signature:
            pairs.append((left[i], right[j]))
            free_left.discard(i)
            free_right.discard(j)
            i, j = i + 1, j + 1

    places = {path: j for j, unit in enumerate(right) for path in unit.tensors.values()}
    for i, unit in enumerate(left):
        found = {places.get(known.get(name, "")) for name in unit.tensors.values()}
        if len(found) == 1 and (j := found.pop()) is not None:
            pair(i + 1, j + 1)
    lefts, rights = _by_signature(left, free_left), _by_signature(right, free_right)
    for signature, ones in lefts.items():
        if len(ones) == len(rights.get(signature, ())) == 1:
            pair(ones[0], rights[signature][0])
    for i, unit in enumerate(left):
        candidates = _by_signature(right, free_right).get(unit.signature)
        if candidates and i in free_left:
            pair(i, candidates[0])
    return dict(names for one, other in pairs for names in _tensors_of(one, other))


def _by_signature(units: Sequence[_Unit], which: Iterable[int]) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {}
    for i in sorted(which):
        found.setdefault(units[i].signature, []).append(i)
    return found


def _tensors_of(left: _Unit, right: _Unit) -> list[tuple[str, str]]:
    if len(left.tensors) == 1:
        return list(zip(left.tensors.values(), right.tensors.values(), strict=True))
    return [(name, right.tensors[kind]) for kind, name in left.tensors.items()]


def _units(
    names: Iterable[str],
    sizes: Mapping[str, int],
    kind: Callable[[str], str],
    roles: Mapping[str, str],
) -> list[_Unit]:
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        parent, own = name.rpartition(".")[0], kind(name)
        group = groups.setdefault(f"{parent}." if own in _KINDS else name, {})
        group[own if own in _KINDS else name] = name

    def signature(group: Mapping[str, str]) -> tuple[Any, ...]:
        several = len(group) > 1
        held = sorted((key if several else "", sizes[name]) for key, name in group.items())
        return (roles.get(next(iter(group.values())), ""), *held)

    return [_Unit(signature(group), group) for group in groups.values()]
