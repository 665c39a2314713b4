"""Pairs the tensors of a PyTorch module and a JAX network, as a table of rules.

A tensor is paired by the given map, else by its name, else by equal values, else by the order in
which both networks use their tensors.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_jax.errors import WeightsError, listing
from fcn_jax.pytorch.rules import Drop, Op, Rule, Table
from fcn_jax.verify.axes import Axes, fitting, is_kernel
from fcn_jax.verify.order import jax_order, pair_in_order, torch_order
from fcn_jax.verify.parts import Parts, find_parts, role
from fcn_jax.verify.ports import PartsPort, Port
from fcn_jax.verify.torch_side import array, import_torch

if TYPE_CHECKING:
    import torch

Target = str | tuple[str, Op] | Sequence[str] | None
"""A path on JAX's side; a path and an operation; paths of parts, one after the other; or None."""

StateDictMap = Mapping[str, Target]
"""Name in the state dict -> its target. Names may be globs where the target is None."""

_COUNT = "num_batches_tracked"
_COUNTS = Drop(f"*{_COUNT}", "a count, which JAX's side does not have")

_SYNONYMS = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "gamma": "weight",
    "w": "weight",
    "beta": "bias",
    "b": "bias",
    "variance": "var",
}
_PREFIXES = ("params", "model", "module")

_NUMBERED = re.compile(r"(^|\.)[A-Z]\w*_\d+(\.|$)")
"""Names that Flax Linen gives to layers: class and number, in the order of their creation."""


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Attributes: JAX's side, whose leaves fit PyTorch's tensors; the rules; remarks."""

    port: Port
    table: Table
    notes: tuple[str, ...] = ()


def pair_tensors(
    module: torch.nn.Module,
    port: Port,
    names: StateDictMap,
    inputs: tuple[tuple[Any, ...], tuple[np.ndarray, ...]],
    call: Callable[[Any, Any], Any],
) -> Pairing:
    """Find the counterpart of every tensor.

    Args:
        module: PyTorch's side.
        port: JAX's side.
        names: what is known.
        inputs: of PyTorch's side and of JAX's. They are used if tensors remain after the first
            three steps.
        call: calls PyTorch's side.

    Raises:
        WeightsError: all names in the map that are unknown and shapes that do not fit, or all
            tensors that remain without a counterpart, in one message.
    """
    tensors = {name: array(value) for name, value in module.state_dict().items()}
    given = _read(names, tensors, port)
    drops = {name for name in tensors if any(fnmatch.fnmatchcase(name, x) for x in given.drops)}
    counts = {name for name in tensors if name.endswith(_COUNT)} - given.pairs.keys()
    wanted = {name: x for name, x in tensors.items() if name not in drops | counts}
    known = given.parts
    parts = known + find_parts(wanted, port.leaves, {*given.pairs, *given.pairs.values()}, known)
    notes = _square_parts(parts, port.leaves)
    if parts.joined or parts.split:
        port = PartsPort(port, joined=parts.joined, split=parts.split)
    leaves = port.leaves
    plain = {path: x for path, x in leaves.items() if not path.endswith(_COUNT)}
    pairs = dict(given.pairs)
    pairs.update(_by_names(wanted, plain, pairs))
    pairs.update(_by_values(wanted, plain, pairs))
    if len(pairs) < len(wanted) and len(pairs) < len(plain):
        found = _by_order(module, port, wanted, pairs, inputs, call)
        pairs.update(found)
        if found:
            notes.append(
                f"{len(found)} tensors are paired by the order in which both sides use them, since "
                f"their names say nothing, such as {_example(found)}; state_dict_map changes that"
            )
    pairs.update(_counts(counts, pairs, leaves))
    surplus = [f"{name} {x.shape}" for name, x in wanted.items() if name not in pairs]
    taken = set(pairs.values())
    without = [f"{path} {tuple(x.shape)}" for path, x in leaves.items() if path not in taken]
    if surplus or without:
        raise WeightsError(
            "the tensors of the two sides cannot be paired by names, values or order of use: "
            f"PyTorch's {listing(surplus, 6) or 'none'} and JAX's {listing(without, 6) or 'none'} "
            "remain; name them in `state_dict_map` (None drops one of PyTorch's) or pass `rules`"
        )
    free = {name: path for name, path in pairs.items() if name not in given.ops}
    ops, decisions = _operations(module, port, tensors, free, parts.paths)
    notes += decisions
    rules = [Rule(name, path, {**ops, **given.ops}[name]) for name, path in pairs.items()]
    dropped = [Drop(name, "dropped by state_dict_map") for name in given.drops]
    return Pairing(port, Table(*rules, *dropped, _COUNTS), tuple(notes))


@dataclasses.dataclass(frozen=True)
class _Given:
    pairs: dict[str, str]
    ops: dict[str, Op]
    drops: list[str]
    parts: Parts


def _read(names: StateDictMap, tensors: Mapping[str, np.ndarray], port: Port) -> _Given:
    """The given map, checked."""
    leaves = port.leaves
    problems: list[str] = []
    given = _Given({}, {}, [], Parts({}, {}))
    sharing: dict[str, list[str]] = {}
    for name, target in names.items():
        paths = [target[0]] if isinstance(target, tuple) else target
        paths = [paths] if isinstance(paths, str) else paths
        if target is None and fnmatch.filter(tensors, name):
            given.drops.append(name)
        elif name not in tensors:
            problems.append(f"the state dict has no '{name}'{_nearest(name, tensors)}")
        elif unknown := [path for path in paths or () if path not in leaves]:
            problems += [f"JAX's side has no '{x}'{_nearest(x, leaves)}" for x in unknown]
        elif isinstance(target, tuple):
            given.pairs[name], given.ops[name] = target
        elif len(paths or ()) > 1:
            given.pairs[name] = given.parts.join(list(paths or ()), leaves)
        else:
            sharing.setdefault((paths or [""])[0], []).append(name)
    sizes = {name: tensors[name].size for ones in sharing.values() for name in ones}
    for path, sharers in sharing.items():
        wanted = tuple(leaves[path].shape)
        if len(sharers) > 1 and sum(map(sizes.__getitem__, sharers)) == math.prod(wanted):
            pieces = given.parts.cut(path, [f"{path}/{i}" for i in range(len(sharers))], leaves)
            given.pairs.update(zip(sharers, pieces, strict=True))
            continue
        problems += [
            f"'{name}' has shape {tensors[name].shape}, '{path}' {wanted}"
            for name in sharers
            if not fitting(tensors[name].shape, wanted, path)
        ]
        given.pairs[sharers[0]] = path
    for path, ones in given.parts.joined.items():
        name = next(name for name, found in given.pairs.items() if found == path)
        if sum(math.prod(leaves[x].shape) for x in ones) != tensors[name].size:
            shapes = ", ".join(f"'{x}' {tuple(leaves[x].shape)}" for x in ones)
            problems.append(f"'{name}' has shape {tensors[name].shape}, its parts {shapes}")
    if problems:
        raise WeightsError(f"state_dict_map: {'; '.join(problems)}")
    return given


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _example(pairs: Mapping[str, str]) -> str:
    name, path = next(iter(pairs.items()))
    return f"{name} and {path}"


def _operations(
    module: torch.nn.Module,
    port: Port,
    tensors: Mapping[str, np.ndarray],
    pairs: Mapping[str, str],
    parts: Collection[str],
) -> tuple[dict[str, Op], list[str]]:
    """The operation of each pair, and notes about those that could be another one.

    Joined and split leaves, `parts`, have PyTorch's axes. Where several orders of axes fit, as for
    square matrices, the order counts that gives the leaf's present values, else the one that most
    other tensors of the same name have, else the one of the name.
    """
    leaves = port.leaves
    flipped = _flipped(module, port, pairs)
    axes = {
        name: fitting(tensors[name].shape, leaves[path].shape, path, flipped=name in flipped)
        for name, path in pairs.items()
    }
    axes.update({name: axes[name][:1] for name, path in pairs.items() if path in parts})
    votes: dict[str, collections.Counter[tuple[int, ...]]] = collections.defaultdict(
        collections.Counter
    )
    for name, found in axes.items():
        if len({x.order for x in found}) == 1:
            votes[_own(pairs[name])][found[0].order] += 1
    decided: dict[str, list[str]] = collections.defaultdict(list)

    def best(name: str, found: Sequence[Axes]) -> Axes:
        path, x = pairs[name], tensors[name]
        if len(found) == 1 or all(np.array_equal(y.to_jax(x), found[0].to_jax(x)) for y in found):
            return found[0]
        has_values = hasattr(leaves[path], "__array__")
        values = np.asarray(leaves[path]) if has_values else np.empty(0)
        same = [y for y in found if has_values and np.array_equal(y.to_jax(x), values)]
        counted = votes[_own(path)]
        most = max(same or found, key=lambda y: counted[y.order])
        reason = f"the name '{_own(path)}'"
        if same:
            reason = "their present values"
        elif counted[most.order]:
            reason = f"the order of most other tensors named '{_own(path)}'"
        decided[reason].append(f"{name} -> {path}: {most.op.name}")
        return most

    ops = {
        # A tensor that no order of axes fits is wrong, which loading says.
        name: best(name, found).op if found else Op("as it is", np.asarray, np.asarray)
        for name, found in axes.items()
    }
    notes = [
        f"several orders of axes fit {len(names)} tensors, whose lengths are equal; decided by "
        f"{reason}: {listing(names, 3)} (a pair of path and Op in state_dict_map states it)"
        for reason, names in decided.items()
    ]
    return ops, notes


def _square_parts(parts: Parts, leaves: Mapping[str, Any]) -> list[str]:
    """A note about joined matrices that could be transposed: their names decide."""
    paths = [path for ones in parts.joined.values() for path in ones]
    shapes = {path: tuple(leaves[path].shape) for path in paths}
    square = [path for path, shape in shapes.items() if len(shape) == 2 and len({*shape}) == 1]
    if not square:
        return []
    first = "inputs" if is_kernel(square[0]) else "outputs"
    return [f"square parts are taken with the {first} first, by their names: {listing(square, 3)}"]


def _flipped(module: torch.nn.Module, port: Port, pairs: Mapping[str, str]) -> set[str]:
    """Kernels of transposed convolutions that JAX's side does not mirror, unlike PyTorch."""
    torch = import_torch()
    transposed = {
        f"{name}.weight" if name else "weight"
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.modules.conv._ConvTransposeNd)
    }
    return {name for name in transposed if pairs.get(name, "").rpartition(".")[0] in port.flipped}


def _own(name: str) -> str:
    return name.rpartition(".")[2]


def _words(name: str) -> tuple[str, ...]:
    """A name without separators and in common words."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    words = re.findall(r"[a-z]+|\d+", snake.lower())
    words = [_SYNONYMS.get(word, word) for word in words if word != "running"]
    return tuple(words[1:] if words[:1] and words[0] in _PREFIXES else words)


def _unique(names: Iterable[str], key: Callable[[str], Any]) -> dict[Any, str]:
    """Names by their key, without keys that several names have."""
    found: dict[Any, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return {known: one[0] for known, one in found.items() if len(one) == 1 and known is not None}


def _by_names(
    tensors: Mapping[str, np.ndarray], leaves: Mapping[str, Any], known: Mapping[str, str]
) -> dict[str, str]:
    """Pairs of names that differ only in separators and in the words of the two worlds."""
    ours = _unique((path for path in leaves if path not in known.values()), _words)
    pairs = {
        name: ours[words]
        for words, name in _unique((x for x in tensors if x not in known), _words).items()
        if words in ours and fitting(tensors[name].shape, leaves[ours[words]].shape, ours[words])
    }
    if len(pairs) + len(known) == len(leaves):
        return pairs
    # `Conv_1` is the second convolution, and by chance the name of another one in PyTorch.
    return {name: path for name, path in pairs.items() if not _NUMBERED.search(path)}


def _by_values(
    tensors: Mapping[str, np.ndarray], leaves: Mapping[str, Any], known: Mapping[str, str]
) -> dict[str, str]:
    """Pairs of tensors with equal elements; constants are paired if their neighbors are."""
    taken = set(known.values())
    theirs = {name: x for name, x in tensors.items() if name not in known}
    ours = {path: x for path, x in leaves.items() if path not in taken}
    by_elements = _unique(ours, lambda path: _elements(ours[path]))
    pairs = {
        name: by_elements[elements]
        for elements, name in _unique(theirs, lambda name: _elements(theirs[name])).items()
        if elements in by_elements
    }
    parents = {_parent(name): _parent(path) for name, path in {**known, **pairs}.items()}
    for name in theirs:
        if name in pairs or _parent(name) not in parents:
            continue
        siblings = [path for path in ours if _parent(path) == parents[_parent(name)]]
        alike = [p for p in siblings if _words(_own(p)) == _words(_own(name))]
        if (
            len(alike) == 1
            and alike[0] not in pairs.values()
            and fitting(theirs[name].shape, ours[alike[0]].shape, alike[0])
        ):
            pairs[name] = alike[0]
    return pairs


def _counts(
    names: Iterable[str], pairs: Mapping[str, str], leaves: Mapping[str, Any]
) -> dict[str, str]:
    """Pairs of the counts of batches, by the layers of the other tensors; few ports have them."""
    parents = {_parent(name): _parent(path) for name, path in pairs.items()}
    found = {
        name: f"{parents[_parent(name)]}.{_COUNT}".lstrip(".")
        for name in names
        if _parent(name) in parents
    }
    return {name: path for name, path in found.items() if path in leaves}


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _elements(x: Any) -> Any:
    """The sorted elements, hashable; None for constants and arrays without values."""
    if not hasattr(x, "__array__"):
        return None
    values = np.sort(np.asarray(x, np.float32).ravel())
    return values.tobytes() if values.size and values[0] != values[-1] else None


def _by_order(
    module: torch.nn.Module,
    port: Port,
    tensors: Mapping[str, np.ndarray],
    known: Mapping[str, str],
    inputs: tuple[tuple[Any, ...], tuple[np.ndarray, ...]],
    call: Callable[[Any, Any], Any],
) -> dict[str, str]:
    leaves = port.leaves
    theirs = [name for name in torch_order(module, inputs[0], call) if name in tensors]
    ours = jax_order(port, inputs[1])
    sizes = {name: int(np.prod(x.shape)) for name, x in {**tensors, **leaves}.items()}
    roles = {name: role(name) for name in sizes}
    if not (any(roles[name] for name in theirs) and any(roles[path] for path in ours)):
        roles = {}

    def kind(name: str) -> str:
        words = _words(_own(name))
        return words[0] if len(words) == 1 else _own(name)

    found = pair_in_order(theirs, ours, sizes, kind, known, roles)
    return {
        name: path
        for name, path in found.items()
        if fitting(tensors[name].shape, leaves[path].shape, path)
    }
