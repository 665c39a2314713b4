"""Pairs the tensors of a PyTorch module and a JAX network: by a given map, by names, or by values.

The result is a table of rules, as plugins write it.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fcn_jax.errors import WeightsError, listing
from fcn_jax.pytorch.rules import Drop, Op, Rule, Table

StateDictMap = Mapping[str, "str | tuple[str, Op] | None"]
"""Name in the state dict -> path on JAX's side; a path and an operation; or None to drop it."""

_COUNTS = Drop("*num_batches_tracked", "a count, which JAX's side does not have")

_SYNONYMS = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "gamma": "weight",
    "beta": "bias",
    "variance": "var",
}
_PREFIXES = ("params", "model", "module")


def table_by_map(
    tensors: Mapping[str, np.ndarray], leaves: Mapping[str, Any], names: StateDictMap
) -> Table:
    """A table from a map of names. The operations follow from shapes where none is given.

    Raises:
        WeightsError: all unknown names, and all shapes that do not fit, in one message.
    """
    problems: list[str] = []
    rules: list[Rule | Drop] = []
    for name, target in names.items():
        path, op = target if isinstance(target, tuple) else (target, None)
        if name not in tensors:
            problems.append(f"the state dict has no '{name}'{_nearest(name, tensors)}")
        elif path is None:
            rules.append(Drop(name, "dropped by state_dict_map"))
        elif path not in leaves:
            problems.append(f"JAX's side has no '{path}'{_nearest(path, leaves)}")
        else:
            found = op or next(
                iter(operations(tensors[name].shape, leaves[path].shape, path)), None
            )
            if found is None:
                problems.append(_unfit(name, tensors[name], path, leaves[path]))
            else:
                rules.append(Rule(name, path, found))
    if problems:
        raise WeightsError(f"state_dict_map: {'; '.join(problems)}")
    return Table(*rules, _COUNTS)


def table_by_matching(tensors: Mapping[str, np.ndarray], leaves: Mapping[str, Any]) -> Table:
    """A table found by names that differ only in separators and in the words of the two worlds.

    Tensors that have no counterpart by name are paired by equal values, up to the order of axes.

    Raises:
        WeightsError: tensors remain without a counterpart on either side.
    """
    pairs = _by_names(tensors, leaves)
    pairs.update(_by_values(tensors, leaves, pairs))
    without = [path for path in leaves if path not in pairs.values()]
    counts = [name for name in tensors if name.endswith("num_batches_tracked")]
    surplus = [name for name in tensors if name not in pairs and name not in counts]
    if without or surplus:
        raise WeightsError(
            "the tensors of the two sides cannot be paired by names or values: PyTorch's "
            f"{listing(surplus, 6) or 'none'} and JAX's {listing(without, 6) or 'none'} remain; "
            "pass `rules` or `state_dict_map`"
        )
    rules = [
        Rule(name, path, _operation(tensors[name], leaves[path], path))
        for name, path in pairs.items()
    ]
    return Table(*rules, _COUNTS)


def operations(torch: tuple[int, ...], jax: tuple[int, ...], path: str) -> Iterator[Op]:
    """Operations that give a tensor JAX's shape, the likeliest first.

    Kernels of Flax have their output channels last, weights of Equinox have PyTorch's axes.
    """
    last = path.rpartition(".")[2]
    orders: list[tuple[int, ...]] = [tuple(range(len(torch)))]
    if len(torch) >= 2:
        spatial = tuple(range(2, len(torch)))
        orders += [(*spatial, 1, 0), (*spatial, 0, 1)] if spatial else [(1, 0)]
    if last == "kernel":
        orders = [*orders[1:], orders[0]]
    for reshaped, order in itertools.product((False, True), orders):
        shape = tuple(torch[axis] for axis in order)
        fits = np.prod(shape) == np.prod(jax) if reshaped else shape == jax
        if fits:
            yield _permuted(torch, order, jax)


def _permuted(torch: tuple[int, ...], order: tuple[int, ...], jax: tuple[int, ...]) -> Op:
    moved = tuple(torch[axis] for axis in order)
    inverse = tuple(int(axis) for axis in np.argsort(order))

    def to_jax(x: np.ndarray) -> np.ndarray:
        return x.transpose(order).reshape(jax)

    def to_torch(x: np.ndarray) -> np.ndarray:
        return x.reshape(moved).transpose(inverse)

    return Op(f"axes {order} of {torch} as {jax}", to_jax, to_torch)


def _operation(tensor: np.ndarray, leaf: Any, path: str) -> Op:
    """The likeliest operation; one that gives the leaf's present values if there is one."""
    found = list(operations(tensor.shape, leaf.shape, path))
    if isinstance(leaf, np.ndarray) or hasattr(leaf, "__array__"):
        values = np.asarray(leaf)
        for op in found:
            if np.array_equal(op.to_jax(tensor), values):
                return op
    return found[0]


def _unfit(name: str, tensor: np.ndarray, path: str, leaf: Any) -> str:
    return f"'{name}' has shape {tensor.shape}, '{path}' {tuple(leaf.shape)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _words(name: str) -> tuple[str, ...]:
    """A name without separators and in common words."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    words = re.findall(r"[a-z]+|\d+", snake.lower())
    words = [_SYNONYMS.get(word, word) for word in words if word != "running"]
    return tuple(words[1:] if words[:1] and words[0] in _PREFIXES else words)


def _unique(names: Mapping[str, Any], key: Callable[[str], Any]) -> dict[Any, str]:
    """Names by their key, without keys that several names have."""
    found: dict[Any, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return {known: one[0] for known, one in found.items() if len(one) == 1 and known is not None}


def _by_names(tensors: Mapping[str, np.ndarray], leaves: Mapping[str, Any]) -> dict[str, str]:
    ours = _unique(leaves, _words)
    return {
        name: ours[words]
        for words, name in _unique(tensors, _words).items()
        if words in ours
        and any(operations(tensors[name].shape, leaves[ours[words]].shape, ours[words]))
    }


def _by_values(
    tensors: Mapping[str, np.ndarray], leaves: Mapping[str, Any], known: Mapping[str, str]
) -> dict[str, str]:
    """Pairs of tensors with equal elements; constants are paired if their neighbors are."""
    theirs = {name: x for name, x in tensors.items() if name not in known}
    ours = {path: x for path, x in leaves.items() if path not in known.values()}
    by_elements = _unique(ours, lambda path: _elements(ours[path]))
    pairs = {
        name: by_elements[elements]
        for elements, name in _unique(theirs, lambda name: _elements(theirs[name])).items()
        if elements in by_elements
    }
    parents = {
        name.rpartition(".")[0]: path.rpartition(".")[0]
        for name, path in {**known, **pairs}.items()
    }
    for name in theirs:
        parent, _, own = name.rpartition(".")
        if name in pairs or parent not in parents:
            continue
        siblings = [path for path in ours if _parent(path) == parents[parent]]
        alike = [p for p in siblings if _words(p.rpartition(".")[2]) == _words(own)]
        if len(alike) == 1 and alike[0] not in pairs.values():
            pairs[name] = alike[0]
    return pairs


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _elements(x: Any) -> Any:
    """The sorted elements, hashable; None for arrays without values."""
    if not (isinstance(x, np.ndarray) or hasattr(x, "__array__")):
        return None
    values = np.asarray(x, np.float32).ravel()
    return np.sort(values).tobytes()
