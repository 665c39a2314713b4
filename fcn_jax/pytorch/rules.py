"""Two-way tables between the names and layouts of a PyTorch state dict and a Flax module.

A rule is a pair of brace templates and a two-way operation. Import, export and comparison use it:

    Table(
        conv("layer{s}.{b}.conv{k}"),  # the same name on both sides
        batch_norm("layer{s}.{b}.downsample.1", "layer{s}.{b}.downsample.bn"),
        drop("fc.*", "the ImageNet classifier"),
    )

A field such as `{s}` stands for a number and must appear on both sides. Flax paths are joined by
dots.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Callable, Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Op:
    """A two-way operation on one tensor: `to_torch(to_jax(x)) == x`, bit for bit."""

    name: str
    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def _permutation(name: str, to_jax: tuple[int, ...], ndim: int) -> Op:
    inverse = tuple(int(axis) for axis in np.argsort(to_jax))

    def check(x: np.ndarray) -> np.ndarray:
        if x.ndim != ndim:
            raise ValueError(f"{name} needs {ndim} axes, got shape {x.shape}")
        return x

    return Op(name, lambda x: check(x).transpose(to_jax), lambda x: check(x).transpose(inverse))


IDENTITY = Op("identity", lambda x: x, lambda x: x)
CONV = _permutation("conv OIHW <-> HWIO", (2, 3, 1, 0), 4)
CONV_TRANSPOSE = _permutation("conv_transpose IOHW <-> HWIO", (2, 3, 0, 1), 4)
LINEAR = _permutation("linear OI <-> IO", (1, 0), 2)


def _narrowed(x: np.ndarray) -> np.ndarray:
    if (np.abs(x) >= 2**31).any():
        raise OverflowError(f"a count of {x} does not fit 32 bits")
    return x.astype(np.int32)


COUNT = Op("count i64 <-> i32", _narrowed, lambda x: x.astype(np.int64))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Maps one tensor, or one for each value of the templates' fields.

    Attributes:
        torch: template of its name in the state dict.
        jax: template of its path in the Flax module.
        op: conversion of its value.
        optional: whether a state dict may lack it. The module then keeps its initial value.
    """

    torch: str
    jax: str
    op: Op = IDENTITY
    optional: bool = False

    def __post_init__(self) -> None:
        """Raise `ValueError` if the templates cannot be inverted."""
        if _fields(self.torch) != _fields(self.jax):
            raise ValueError(f"templates '{self.torch}' and '{self.jax}' must have the same fields")


@dataclasses.dataclass(frozen=True)
class Drop:
    """Tensors of a state dict that the module does not have: a glob over names, and the reason."""

    torch: str
    reason: str


class Table:
    """An ordered set of rules; the first that matches a name decides."""

    def __init__(self, *rules: Rule | Drop | Iterable[Rule]) -> None:
        """Collect rules, and groups of rules as `conv` returns them."""
        self.rules: list[Rule] = []
        self.drops: list[Drop] = []
        for item in rules:
            if isinstance(item, Drop):
                self.drops.append(item)
            elif isinstance(item, Rule):
                self.rules.append(item)
            else:
                self.rules.extend(item)

    def to_jax(self, name: str) -> tuple[str, Rule] | None:
        """The Flax path and the rule for a name of the state dict; None if no rule matches."""
        return self._first(name, "torch", "jax")

    def to_torch(self, path: str) -> tuple[str, Rule] | None:
        """The name in the state dict and the rule for a Flax path; None if no rule matches."""
        return self._first(path, "jax", "torch")

    def names(self, paths: Iterable[str]) -> dict[str, str]:
        """Flax paths -> names in the state dict, without the paths that no rule matches."""
        found = {path: self.to_torch(path) for path in paths}
        return {path: place[0] for path, place in found.items() if place is not None}

    def dropped(self, name: str) -> str | None:
        """The reason to drop a name of the state dict; None if it is not dropped."""
        return next(
            (drop.reason for drop in self.drops if fnmatch.fnmatchcase(name, drop.torch)), None
        )

    def under(self, torch: str, jax: str) -> Table:
        """The same table for a submodule: with prefixes, such as "backbone.", on both sides."""
        rules = [dataclasses.replace(r, torch=torch + r.torch, jax=jax + r.jax) for r in self.rules]
        return Table(*rules, *(dataclasses.replace(d, torch=torch + d.torch) for d in self.drops))

    def __add__(self, other: Table) -> Table:
        """Both tables. The rules of this one come first."""
        return Table(*self.rules, *other.rules, *self.drops, *other.drops)

    def _first(self, name: str, source: str, target: str) -> tuple[str, Rule] | None:
        for rule in self.rules:
            match = _pattern(getattr(rule, source)).fullmatch(name)
            if match:
                return getattr(rule, target).format(**match.groupdict()), rule
        return None


def _kernel(torch: str, jax: str | None, op: Op, bias: bool) -> list[Rule]:
    jax = torch if jax is None else jax
    rules = [Rule(f"{torch}.weight", f"{jax}.kernel", op)]
    return [*rules, Rule(f"{torch}.bias", f"{jax}.bias")] if bias else rules


def conv(torch: str, jax: str | None = None, *, bias: bool = False) -> list[Rule]:
    """Rules of a convolution: weight OIHW <-> kernel HWIO, and the bias if there is one.

    Args:
        torch: template of its name in the state dict.
        jax: template of its path in the module; the same as `torch` if not given.
        bias: whether it has a bias.
    """
    return _kernel(torch, jax, CONV, bias)


def conv_transpose(torch: str, jax: str | None = None, *, bias: bool = False) -> list[Rule]:
    """Rules of a transposed convolution: weight IOHW <-> kernel HWIO; see `conv`."""
    return _kernel(torch, jax, CONV_TRANSPOSE, bias)


def linear(torch: str, jax: str | None = None, *, bias: bool = True) -> list[Rule]:
    """Rules of a linear layer: weight OI <-> kernel IO; see `conv`."""
    return _kernel(torch, jax, LINEAR, bias)


def linear_as_conv(torch: str, jax: str, *, size: tuple[int, int]) -> list[Rule]:
    """Rules of a linear layer over a flattened CHW feature that the module computes by convolution.

    Args:
        torch: template of its name in the state dict; weight [O, C * H * W], and a bias.
        jax: template of its path in the module; kernel [H, W, C, O].
        size: (H, W) of the kernel.
    """

    def to_jax(x: np.ndarray) -> np.ndarray:
        if x.ndim != 2 or x.shape[1] % (size[0] * size[1]):
            raise ValueError(
                f"a linear weight over {size[0]}x{size[1]} pixels needs 2 axes, got shape {x.shape}"
            )
        return CONV.to_jax(x.reshape(x.shape[0], -1, *size))

    def to_torch(x: np.ndarray) -> np.ndarray:
        return CONV.to_torch(x).reshape(x.shape[3], -1)

    op = Op(f"linear OI <-> HWIO of {size[0]}x{size[1]}", to_jax, to_torch)
    return [Rule(f"{torch}.weight", f"{jax}.kernel", op), Rule(f"{torch}.bias", f"{jax}.bias")]


def batch_norm(torch: str, jax: str | None = None) -> list[Rule]:
    """Rules of a batch normalization; see `conv` for the arguments.

    `num_batches_tracked` is optional, because files from before PyTorch 0.4.1 lack it.
    """
    jax = torch if jax is None else jax
    return [
        *layer_norm(torch, jax),
        Rule(f"{torch}.running_mean", f"{jax}.mean"),
        Rule(f"{torch}.running_var", f"{jax}.var"),
        Rule(f"{torch}.num_batches_tracked", f"{jax}.num_batches_tracked", COUNT, optional=True),
    ]


def group_norm(torch: str, jax: str | None = None) -> list[Rule]:
    """Rules of a group normalization; see `conv` for the arguments."""
    return layer_norm(torch, jax)


def conv_norm(
    torch_conv: str, torch_norm: str, jax: str, *, bias: bool = False, norm: str = "batch_norm"
) -> list[Rule]:
    """Rules of a convolution and a normalization that are one `ConvNormAct` in the module.

    `norm` is that of the `ConvNormAct`, "batch_norm" or "group_norm".
    """
    rules = {"batch_norm": batch_norm, "group_norm": group_norm}[norm]
    return [*conv(torch_conv, f"{jax}.conv", bias=bias), *rules(torch_norm, f"{jax}.bn")]


def layer_norm(torch: str, jax: str | None = None) -> list[Rule]:
    """Rules of a layer normalization with scale and bias; see `conv` for the arguments."""
    jax = torch if jax is None else jax
    return [Rule(f"{torch}.weight", f"{jax}.scale"), Rule(f"{torch}.bias", f"{jax}.bias")]


def layer_scale(torch: str, jax: str, *, spatial: bool = False) -> list[Rule]:
    """Rule of a layer scale.

    Args:
        torch: template of the name of the tensor itself, such as "blocks.{i}.ls1.gamma".
        jax: template of its path, such as "blocks.{i}.ls1.scale".
        spatial: whether PyTorch's shape is [C, 1, 1] instead of [C], as in torchvision's ConvNeXt.
    """

    def to_jax(x: np.ndarray) -> np.ndarray:
        if x.shape != (x.size, 1, 1):
            raise ValueError(f"a layer scale of this layout needs shape [C, 1, 1], got {x.shape}")
        return x.reshape(-1)

    op = Op("scale C11 <-> C", to_jax, lambda x: x.reshape(-1, 1, 1)) if spatial else IDENTITY
    return [Rule(torch, jax, op)]


def drop(torch: str, reason: str) -> Drop:
    """Drop the tensors whose names match the glob `torch`, for `reason`."""
    return Drop(torch, reason)


_FIELD = re.compile(r"\{(\w+)\}")


def _fields(template: str) -> set[str]:
    return set(_FIELD.findall(template))


@functools.lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    seen: set[str] = set()
    parts = []
    for i, part in enumerate(_FIELD.split(template)):
        if i % 2 == 0:
            parts.append(re.escape(part))
        else:
            parts.append(f"(?P={part})" if part in seen else rf"(?P<{part}>\d+)")
            seen.add(part)
    return re.compile("".join(parts))
