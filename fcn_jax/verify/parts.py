"""Finds tensors that one side holds as one and the other as query, key and value."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fcn_jax.pytorch.rules import Op
from fcn_jax.verify.axes import Axes, fitting, is_kernel

_ROLES = {
    "query": ("query", "q", "q_proj", "to_q", "wq"),
    "key": ("key", "k", "k_proj", "to_k", "wk"),
    "value": ("value", "v", "v_proj", "to_v", "wv"),
}
_ROLE_OF = {word: role for role, words in _ROLES.items() for word in words}

_FUSED = re.compile(r"(^|[._])(qkv|in_proj|c_attn|to_qkv)([._]|$)")


@dataclasses.dataclass(frozen=True)
class Parts:
    """Leaves to join and to split; see `PartsPort`."""

    joined: dict[str, dict[str, Op]]
    split: dict[str, tuple[Op, list[str]]]

    def join(self, paths: Sequence[str], leaves: Mapping[str, Any]) -> str:
        """Join leaves; the new path."""
        steps = [path.split(".") for path in paths]
        same = 0
        while len({tuple(step[: same + 1]) for step in steps}) == 1:
            same += 1
        # Below the parts' own layers, which do not hold the joined tensor.
        rest = "+".join("/".join(step[same:]) for step in steps)
        name = ".".join([*steps[0][:same], rest])
        self.joined[name] = {path: _in_torch_axes(leaves[path].shape, path).op for path in paths}
        return name

    def cut(self, path: str, names: Sequence[str], leaves: Mapping[str, Any]) -> list[str]:
        """Split a leaf into equal parts, which have PyTorch's axes; their paths."""
        self.split[path] = (_in_torch_axes(leaves[path].shape, path).op, list(names))
        return list(names)

    @property
    def paths(self) -> frozenset[str]:
        """The new paths. Their leaves have PyTorch's axes."""
        return frozenset(self.joined).union(*(names for _, names in self.split.values()))

    def __add__(self, other: Parts) -> Parts:
        """Both."""
        return Parts({**self.joined, **other.joined}, {**self.split, **other.split})


def role(name: str) -> str:
    """Whether a tensor makes "query", "key" or "value"; "" otherwise."""
    return next((_ROLE_OF[step] for step in name.split(".") if step in _ROLE_OF), "")


def find_parts(
    tensors: Collection[str], leaves: Mapping[str, Any], known: Collection[str], given: Parts
) -> Parts:
    """What to join or split where only one side has queries, keys and values of their own.

    Args:
        tensors: PyTorch's names.
        leaves: JAX's leaves.
        known: names and paths that are paired already.
        given: parts that are known.
    """
    used = {*known, *given.split, *(x for ones in given.joined.values() for x in ones)}
    theirs = _triples(name for name in tensors if name not in used)
    ours = _triples(path for path in leaves if path not in used)
    parts = Parts({}, {})
    if ours and not theirs and any(map(_FUSED.search, tensors)):
        for triple in ours:
            parts.join(triple, leaves)
    elif theirs and not ours:
        words = [_word(name) for name in theirs[0]]
        for path in leaves:
            if path not in used and (found := _FUSED.search(path)):
                head, tail = path[: found.start(2)], path[found.end(2) :]
                tail = re.sub(r"(^|\.)(kernel|w)$", r"\1weight", tail)
                parts.cut(path, [f"{head}{word}{tail}" for word in words], leaves)
    return parts


def _word(name: str) -> str:
    return next(step for step in name.split(".") if step in _ROLE_OF)


def _triples(names: Any) -> list[tuple[str, str, str]]:
    """Names that differ only in the word for query, key and value."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        if role(name):
            key = ".".join("*" if step in _ROLE_OF else step for step in name.split("."))
            found.setdefault(key, {})[role(name)] = name
    return [
        (ones["query"], ones["key"], ones["value"]) for ones in found.values() if len(ones) == 3
    ]


def _in_torch_axes(shape: tuple[int, ...], path: str) -> Axes:
    """PyTorch's axes of a leaf of a linear layer: output features, then inputs."""
    shape = tuple(shape)
    if len(shape) < 2 or not is_kernel(path):
        # The bias of heads has several axes, a weight has PyTorch's two.
        torch = shape if not path.endswith("bias") else (math.prod(shape),)
    else:
        torch = (math.prod(shape[1:]), shape[0])
    return fitting(torch, shape, path)[0]
