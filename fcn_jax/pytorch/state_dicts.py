"""The state dicts in what a file holds: training frameworks keep them under keys of their own, next to scores, settings and optimizers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fcn_jax.errors import WeightsError, listing
from fcn_jax.pytorch.unpickling import Foreign

_NO_WEIGHTS = re.compile(
    r"optim(izer)?s?(_.*)?|.*_optim(izer)?s?|.*optimizer.*|.*scheduler.*|.*scaler.*|(.*_)?rng(_.*)?|random_state",
    re.I,
)
"""Keys under which tensors lie that are no weights of a network."""

_AVERAGE = re.compile(
    r"(^|[._])(ema|averaged?|avg|swa|shadow|teacher|momentum|target|moving)([._]|$)|ema$|^ema", re.I
)
"""Keys and prefixes of running averages of the weights, and of networks that follow another one."""

_WEIGHT = re.compile(r"weight|kernel|filter|(^|_)w\d*$", re.I)
"""Names of what layers multiply by, as the last part of a tensor's name."""

_DEPTH, _NODES = 8, 200_000


class Entry(NamedTuple):
    """One tensor: what reads it, and its shape."""

    read: Callable[[], np.ndarray]
    shape: tuple[int, ...]


class Tensors(Mapping[str, np.ndarray]):
    """Arrays by name, each of which is read whenever it is looked up, and not kept; their shapes are known without reading.

    Attributes:
        keep: something that must live as long as the arrays may be read, such as the open file.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        """Take what reads each of the arrays."""
        self._entries = dict(entries)
        self.keep: Any = None

    def __getitem__(self, name: str) -> np.ndarray:
        return self._entries[name].read()

    def __contains__(self, name: object) -> bool:  # which Mapping would find out by looking it up
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, without reading it."""
        return self._entries[name].shape

    def entry(self, name: str) -> Entry:
        """What reads an array, and its shape."""
        return self._entries[name]

    def with_others(self, entries: Mapping[str, Entry]) -> Tensors:
        """The same arrays and more, of the same file."""
        tensors = Tensors({**self._entries, **entries})
        tensors.keep = self.keep
        return tensors

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """The same arrays by other names: new name -> old name."""
        tensors = Tensors({new: self._entries[old] for new, old in names.items()})
        tensors.keep = self.keep
        return tensors


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Named tensors and where they lie.

    Attributes:
        key: the keys that lead to them, joined by dots, such as "model" or "state.model_ema"; ""
            where they lie at the top.
        tensors: the tensors by name.
        beside: keys of what lies around them or among them and is no tensor of theirs, such as
            "epoch".
        joined: they are put together from nested dicts, whose keys are joined by dots.
    """

    key: str
    tensors: Tensors
    beside: tuple[str, ...] = ()
    joined: bool = False


def is_average(key: str) -> bool:
    """Whether a key or prefix is that of a running average, or of a network that follows another one."""
    return _AVERAGE.search(key) is not None


def holds_layers(state: StateDict) -> bool:
    """Whether a state dict holds a layer's weights, by names and shapes, and not only statistics, counts or class weights."""
    return any(
        len(state.tensors.shape(name)) > 1 and _WEIGHT.search(name.rpartition(".")[2])
        for name in state.tensors
    )


def find(tree: Any, entry: Callable[[str, Any], Entry | None], source: str) -> list[StateDict]:
    """Find the state dicts in a structure of dicts and lists.

    Every dict that holds tensors by name is one. So is one that holds such dicts, as {"encoder":
    ..., "decoder": ...}, whose names are then joined by dots. What lies under the keys of
    optimizers, schedulers and random states is passed over.

    Args:
        tree: plain Python values, `Foreign` objects and tensors.
        entry: a name and a value -> the tensor; None for values that are not tensors.
        source: what to call the structure in an error.

    Returns:
        At least one, those that lie nearest to the top first.

    Raises:
        WeightsError: there is none.
    """
    found: list[StateDict] = []
    seen: dict[int, Tensors | None] = {}
    budget = _NODES
    level: list[tuple[str, Any, tuple[str, ...]]] = [("", tree, ())]
    for _ in range(_DEPTH):
        below: list[tuple[str, Any, tuple[str, ...]]] = []
        for key, value, beside in level:
            budget -= 1
            if id(value) in seen or budget < 0:
                same = seen.get(id(value))
                if same is not None:  # the same dict under two keys
                    found.append(StateDict(key, same, beside))
                continue
            seen[id(value)] = None
            children = dict(_children(value))
            entries = {
                name: tensor
                for name, child in children.items()
                if (tensor := entry(name, child)) is not None
            }
            others = tuple(name for name in children if name not in entries)
            if entries and isinstance(value, (Mapping, Foreign)):
                seen[id(value)] = Tensors(entries)
                found.append(
                    StateDict(
                        key, Tensors(entries), (*beside, *(_joined(key, name) for name in others))
                    )
                )
            for name in others:
                if not _NO_WEIGHTS.fullmatch(name):
                    around = (
                        *beside,
                        *(_joined(key, other) for other in children if other != name),
                    )
                    below.append((_joined(key, name), children[name], around))
        level = below
    together = _together(found)
    if not found:
        raise WeightsError(f"{source}: {_nothing(tree, entry)}")
    return found + together


def under(states: list[StateDict], key: str, source: str) -> list[StateDict]:
    """Those at a key. Raises `WeightsError` with the keys that there are, if there is none."""
    chosen = [state for state in states if state.key == key]
    if chosen:
        return chosen
    keys = dict.fromkeys(state.key for state in states if state.key)
    raise WeightsError(f"{source}: has no weights under the key '{key}'; {_available(keys)}")


def _available(keys: Mapping[str, Any]) -> str:
    return f"there are: {listing(keys)}" if keys else "they lie at the top, without a key"


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from (
            (str(name), child) for name, child in value.items() if isinstance(name, (str, int))
        )
    elif isinstance(value, Foreign):
        yield from _children(value.items)
        if (
            isinstance(value.state, dict) and "_parameters" not in value.state
        ):  # a pickled network is no state dict
            yield from _children(value.state)
    elif isinstance(value, (list, tuple)) and len(value) <= 64:
        yield from (
            (str(i), child)
            for i, child in enumerate(value)
            if isinstance(child, (Mapping, Foreign, list, tuple))
        )


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _together(found: list[StateDict]) -> list[StateDict]:
    """What nested dicts are as one, for each key that several lie under."""
    parents: dict[str, list[StateDict]] = {}
    for state in found:
        parts = state.key.split(".") if state.key else []
        for i in range(len(parts)):
            parents.setdefault(".".join(parts[:i]), []).append(state)
    joined = []
    for parent, states in parents.items():
        own = [state for state in found if state.key == parent]
        if len(states) + len(own) < 2:
            continue
        entries: dict[str, Entry] = {}
        for state in own + states:
            prefix = state.key[len(parent) :].lstrip(".")
            entries.update(
                {_joined(prefix, name): state.tensors._entries[name] for name in state.tensors}
            )
        inside = tuple(state.key for state in states)
        beside = dict.fromkeys(name for state in own + states for name in state.beside)
        joined.append(
            StateDict(
                parent,
                Tensors(entries),
                tuple(
                    name
                    for name in beside
                    if name not in inside and not any(key.startswith(f"{name}.") for key in inside)
                ),
                True,
            )
        )
    return joined


def _nothing(tree: Any, entry: Callable[[str, Any], Entry | None]) -> str:
    """Why there is no state dict."""
    if (alone := entry("", tree)) is not None:
        return f"holds one tensor, of shape {alone.shape}, without a name; save a state dict: torch.save(model.state_dict(), ...)"
    if (unnamed := _unnamed(tree, entry)) is not None:
        kind = type(unnamed).__name__
        return f"the names of its tensors are of type {kind} ({unnamed!r}), not text; save them as a dict of str to tensor"
    networks = _networks(tree)
    if networks:
        return (
            f"refused, because it holds a whole pickled network ({networks[0]}), and loading it could run code; save its state dict "
            "instead: torch.save(model.state_dict(), ...)"
        )
    if isinstance(tree, Foreign):
        return (
            f"refused, because it holds more than tensors ({tree.kind}), and loading it could run code; save a state dict instead: "
            "torch.save(model.state_dict(), ...)"
        )
    if isinstance(tree, Mapping):
        keys = [str(key) for key in tree]
        return (
            "holds no state dict but an empty one"
            if not keys
            else f"holds no state dict but {listing(keys)}, without tensors by name"
        )
    return f"holds no state dict but a {type(tree).__name__}"


def _unnamed(tree: Any, entry: Callable[[str, Any], Entry | None]) -> Any:
    """The first key of a tensor that is no name, such as bytes."""
    level = [tree]
    for _ in range(4):
        below: list[Any] = []
        for value in level[:1000]:
            if isinstance(value, Mapping):
                for key, child in value.items():
                    if not isinstance(key, (str, int)) and entry("", child) is not None:
                        return key
            below += [child for _, child in _children(value)]
        level = below
    return None


def _networks(tree: Any) -> list[str]:
    level, found = [tree], []
    for _ in range(4):
        below: list[Any] = []
        for value in level[:1000]:
            if (
                isinstance(value, Foreign)
                and isinstance(value.state, dict)
                and "_parameters" in value.state
            ):
                found.append(value.kind)
            else:
                below += [child for _, child in _children(value)]
        level = below
    return found
