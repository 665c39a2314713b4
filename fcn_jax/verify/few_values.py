"""Batch normalizations that have too few values per channel in train mode.

An image of 32x32 pixels is a single pixel at a stride of 32. With a batch of two, a normalization
there has two values per channel. It turns them into -1 and 1, nearly whatever they are, so that the
gradients of all layers before it are differences of nearly equal numbers. An error there is no
fault of the port. A single value has no variance, and PyTorch refuses to normalize it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fcn_jax.errors import listing
from fcn_jax.verify.criterion import MIN_VALUES, Section
from fcn_jax.verify.torch_side import TorchSide, import_torch

_LARGEST = 256
"""Height and width of the largest images that are tried, in pixels."""


@dataclasses.dataclass(frozen=True)
class FewValues:
    """Which normalizations have fewer than `MIN_VALUES` values per channel.

    Attributes:
        layers: PyTorch's names -> number of values, in the order of the calls.
        before: names of the buffers of the normalizations that were called before these.
        remedy: larger inputs that have enough values, in words.
    """

    layers: Mapping[str, int]
    before: frozenset[str]
    remedy: str

    @property
    def impossible(self) -> bool:
        """Whether there is no train mode, because one of them has a single value."""
        return 1 in self.layers.values()

    @property
    def reason(self) -> str:
        """Which layers have too few values, and what to do; "" if none has."""
        if not self.layers:
            return ""
        least = min(self.layers.values())
        names = listing([name for name, count in self.layers.items() if count == least], 2)
        values = "a single value" if least == 1 else f"{least} values"
        return (
            f"in train mode, {names} must normalize {values} per channel (at least {MIN_VALUES} "
            f"are needed); {self.remedy}"
        )

    def skipped(self, title: str, factor: float) -> Section:
        """A section without tensors."""
        return Section(title, factor, (), reason=self.reason)

    def settled(self, section: Section, kept: frozenset[str] = frozenset()) -> Section:
        """The section without the failures that may come from these normalizations.

        Args:
            section: compared in train mode.
            kept: names of tensors that do not depend on them.
        """
        unstable = tuple(c.name for c in section.failures if not c.fault and c.name not in kept)
        if not self.layers or not unstable:
            return section
        return dataclasses.replace(section, unstable=unstable, reason=self.reason)


def find(side: TorchSide, inputs: Sequence[np.ndarray], *, resize: bool = False) -> FewValues:
    """Count the values per channel of each batch normalization.

    Args:
        side: PyTorch's side in eval mode.
        inputs: the network's inputs, NHWC.
        resize: whether images of any size are allowed, so that a size is part of the remedy.
    """
    counts = _counts(side, inputs)
    few = {name: count for name, count in counts.items() if count < MIN_VALUES}
    if not few:
        return FewValues({}, frozenset(), "")
    before = list(counts)[: list(counts).index(next(iter(few)))]
    network = dict(side.network(side.variants[0]).named_modules())
    buffers = {f"{name}.{own}" for name in before for own, _ in network[name].named_buffers()}
    batch = len(inputs[0]) * math.ceil(MIN_VALUES / min(few.values()))
    remedy = f"use a batch of {batch} or larger inputs"
    if resize and (length := _smallest(side, inputs)):
        remedy = f"use images of at least {length}x{length} pixels or a batch of {batch}"
    return FewValues(few, frozenset(buffers), remedy)


def _counts(side: TorchSide, inputs: Sequence[np.ndarray]) -> dict[str, int]:
    """The smallest number of values per channel of each batch normalization, in order of calls."""
    torch = import_torch()
    variant, found = side.variants[0], dict[str, int]()
    network = side.network(variant)
    names = {
        layer: name
        for name, layer in network.named_modules()
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
    }

    def count(layer: Any, args: tuple[Any, ...]) -> None:
        number = args[0].numel() // args[0].shape[1]
        found[names[layer]] = min(number, found.get(names[layer], number))

    handles = [layer.register_forward_pre_hook(count) for layer in names]
    try:
        with torch.no_grad():
            if names:
                side.outputs(variant, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _smallest(side: TorchSide, inputs: Sequence[np.ndarray]) -> int | None:
    """Smallest height and width with enough values everywhere; None if none is found."""
    (x,) = inputs

    def enough(length: int) -> bool:
        image = np.zeros((len(x), length, length, x.shape[-1]), x.dtype)
        return min(_counts(side, (image,)).values()) >= MIN_VALUES

    low, high = min(x.shape[1:3]), _LARGEST
    if max(x.shape[1:3]) >= high or not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
