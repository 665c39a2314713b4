"""Finds the state dicts in a structure, such as a checkpoint with settings and scores."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fcn_jax.errors import WeightsError, listing
from fcn_jax.pytorch.pickled import Foreign

_NO_WEIGHTS = re.compile(
    r"optim(izer)?s?(_.*)?|.*_optim(izer)?s?|.*optimizer.*|.*scheduler.*|.*scaler.*"
    r"|(.*_)?rng(_.*)?|random_state",
    re.I,
)
"""Keys whose tensors are not weights of a network."""

_AVERAGE = re.compile(
    r"(^|[._])(ema|averaged?|avg|swa|shadow|teacher|momentum|target|moving)([._]|$)|ema$|^ema", re.I
)
"""Keys and prefixes of running averages of the weights, and of networks that follow another one."""

_WEIGHT = re.compile(r"weight|kernel|filter|(^|_)w\d*$", re.I)
"""The last part of the name of a tensor that a layer multiplies by."""

_DEPTH, _NODES = 8, 200_000


class Entry(NamedTuple):
    """One tensor: the function that reads it, and its shape."""

    read: Callable[[], np.ndarray]
    shape: tuple[int, ...]


FindEntry = Callable[[str, Any], Entry | None]
"""(name, value) -> the tensor; None for values that are not tensors."""


class Tensors(Mapping[str, np.ndarray]):
    """Arrays by name. Each is read whenever it is looked up, and is not kept."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        """Take the entries by name."""
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._entries[name].read()

    def __contains__(self, name: object) -> bool:  # Mapping's would read the tensor
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, without reading it."""
        return self._entries[name].shape

    def entry(self, name: str) -> Entry:
        """The entry of an array."""
        return self._entries[name]


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Named tensors and their place in a structure.

    Attributes:
        key: the keys that lead to them, joined by dots, such as "model" or "state.model_ema"; ""
            for the top.
        tensors: the tensors by name.
        other_keys: keys around them or among them whose values are not their tensors, such as
            "epoch".
        joined: whether they come from several nested dicts, whose keys are joined by dots.
    """

    key: str
    tensors: Tensors
    other_keys: tuple[str, ...] = ()
    joined: bool = False


def is_average(key: str) -> bool:
    """Whether a key or prefix is of a running average or of a network that follows another one."""
    return _AVERAGE.search(key) is not None


def holds_layers(state: StateDict) -> bool:
    """Whether a state dict holds a layer's weights, not only statistics or class weights."""
    return any(
        len(state.tensors.shape(name)) > 1 and _WEIGHT.search(name.rpartition(".")[2])
        for name in state.tensors
    )


def find(tree: Any, entry: FindEntry, source: str) -> list[StateDict]:
    """Find the state dicts in a structure of dicts and lists.

    Every dict that holds tensors by name is one. A dict of such dicts, as {"encoder": ...,
    "decoder": ...}, is one too; its names are joined by dots. The keys of optimizers, schedulers
    and random states are skipped.

    Args:
        tree: plain Python values, `Foreign` objects and tensors.
        entry: finds the tensors.
        source: the name of the structure in error messages.

    Returns:
        At least one, those nearest to the top first.

    Raises:
        WeightsError: there is none.
    """
    found: list[StateDict] = []
    seen: dict[int, Tensors | None] = {}
    budget = _NODES
    level: list[tuple[str, Any, tuple[str, ...]]] = [("", tree, ())]
    for _ in range(_DEPTH):
        below: list[tuple[str, Any, tuple[str, ...]]] = []
        for key, value, around in level:
            budget -= 1
            if id(value) in seen or budget < 0:
                same = seen.get(id(value))
                if same is not None:  # the same dict under two keys
                    found.append(StateDict(key, same, around))
                continue
            children = dict(_children(value))
            keys = {name: f"{key}.{name}" if key else name for name in children}
            entries = {
                name: tensor
                for name, child in children.items()
                if (tensor := entry(name, child)) is not None
            }
            others = [name for name in children if name not in entries]
            seen[id(value)] = None
            if entries and isinstance(value, (Mapping, Foreign)):
                seen[id(value)] = tensors = Tensors(entries)
                found.append(StateDict(key, tensors, (*around, *(keys[name] for name in others))))
            for name in others:
                if not _NO_WEIGHTS.fullmatch(name):
                    siblings = (keys[other] for other in children if other != name)
                    below.append((keys[name], children[name], (*around, *siblings)))
        level = below
    if not found:
        raise WeightsError(f"{source}: {_nothing(tree, entry)}")
    return found + _joined(found)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(name), child) for name, child in value.items() if _is_name(name))
    elif isinstance(value, Foreign):
        yield from _children(value.items)
        if isinstance(value.state, dict) and not _is_network(value):
            yield from _children(value.state)
    elif isinstance(value, (list, tuple)) and len(value) <= 64:
        containers = (Mapping, Foreign, list, tuple)
        yield from (
            (str(i), child) for i, child in enumerate(value) if isinstance(child, containers)
        )


def _is_name(key: Any) -> bool:
    return isinstance(key, (str, int))


def _is_network(value: Any) -> bool:
    """Whether a value is a pickled network, which is not a state dict."""
    return (
        isinstance(value, Foreign)
        and isinstance(value.state, dict)
        and "_parameters" in value.state
    )


def _joined(found: list[StateDict]) -> list[StateDict]:
    """One state dict for each key that several lie under."""
    parents: dict[str, list[StateDict]] = {}
    for state in found:
        parts = state.key.split(".") if state.key else []
        for i in range(len(parts)):
            parents.setdefault(".".join(parts[:i]), []).append(state)
    joined = []
    for parent, states in parents.items():
        members = [state for state in found if state.key == parent] + states
        if len(members) < 2:
            continue
        entries: dict[str, Entry] = {}
        for state in members:
            prefix = state.key[len(parent) :].lstrip(".")
            prefix = prefix and f"{prefix}."
            entries |= {f"{prefix}{name}": state.tensors.entry(name) for name in state.tensors}
        others = dict.fromkeys(
            name
            for state in members
            for name in state.other_keys
            if not any(f"{inside.key}.".startswith(f"{name}.") for inside in states)
        )
        joined.append(StateDict(parent, Tensors(entries), tuple(others), True))
    return joined


def _nothing(tree: Any, entry: FindEntry) -> str:
    """Why there is no state dict."""
    advice = "save a state dict instead: torch.save(model.state_dict(), ...)"
    if (single := entry("", tree)) is not None:
        return f"holds one tensor, of shape {single.shape}, without a name; {advice}"
    values = list(_values(tree))
    for value in values:
        for key, child in value.items() if isinstance(value, Mapping) else ():
            if not _is_name(key) and entry("", child) is not None:
                return (
                    f"the names of its tensors are of type {type(key).__name__} ({key!r}), not "
                    "text; save them as a dict of str to tensor"
                )
    network = next(filter(_is_network, values), None)
    if network is not None:
        return (
            f"refused, because it holds a pickled network ({network.kind}), and loading it could "
            f"run code; {advice}"
        )
    if isinstance(tree, Foreign):
        return (
            f"refused, because it holds more than tensors ({tree.kind}), and loading it could run "
            f"code; {advice}"
        )
    if isinstance(tree, Mapping):
        keys = [str(key) for key in tree]
        if not keys:
            return "holds no state dict except an empty one"
        return f"holds no state dict, only {listing(keys)}, without tensors by name"
    return f"holds no state dict, only a {type(tree).__name__}"


def _values(tree: Any) -> Iterator[Any]:
    """The values of a structure's upper levels."""
    level = [tree]
    for _ in range(4):
        level = level[:1000]
        yield from level
        level = [child for value in level for _, child in _children(value)]
