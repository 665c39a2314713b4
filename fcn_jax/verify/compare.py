"""The criterion: error against PyTorch in float64, held against the error of correct PyTorch runs in the same precision.

No tolerance is guessed. A tensor's error is its relative L2 distance to the truth, `|x - truth| / |truth|`, where the truth is PyTorch's
result in float64. The yardstick is the worst error of several PyTorch runs in the compared precision, all of them correct; it is at
least a unit in the last place, since an operation without rounding has no error at all. JAX must stay within a factor of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

FACTORS = {"layers": 2.0, "outputs": 2.0, "gradients": 3.0, "training": 10.0}
"""How many yardsticks of error JAX may have, by kind of tensor. Training amplifies the rounding of every step before."""

FLOOR = {"float32": 2.0**-23, "bfloat16": 2.0**-9}
"""The least yardstick of a tensor, by compute dtype. Rounding every element once gives a relative L2 error of about a quarter of a unit
in the last place; a float32 network also rounds its sums, a bfloat16 network sums in float32."""

SCALAR_FLOOR = {"float32": 2.0**-21, "bfloat16": 2.0**-7}
"""The least yardstick of a single number, whose error in any one run may be small by luck."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One tensor on both sides.

    Attributes:
        name: what it is called.
        shape: in PyTorch's layout.
        error: relative L2 error of JAX against PyTorch float64.
        torch_error: worst relative L2 error of PyTorch in the compared precision.
        limit: largest `error` that counts as equal.
        largest: largest single difference, as a share of the largest absolute value. Reported, not judged.
        fault: why there is no number, such as values that are not finite or another shape; empty if there is one.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    torch_error: float
    limit: float
    largest: float
    fault: str = ""

    @property
    def equal(self) -> bool:
        """Whether the tensor passes."""
        return not self.fault and self.error <= self.limit

    @property
    def excess(self) -> float:
        """The error in units of the limit: over 1 fails."""
        return math.inf if self.fault else self.error / self.limit

    def __str__(self) -> str:
        """For messages: name, and what is wrong or how far off it is."""
        said = self.fault or f"error {self.error:.1e}, PyTorch's own {self.torch_error:.1e}, allowed {self.limit:.1e}"
        return f"{self.name}: {said}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; a number that JSON has no word for is None."""
        table = dataclasses.asdict(self)
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in table.items()} | {
            "equal": self.equal
        }


@dataclasses.dataclass(frozen=True)
class Section:
    """Comparisons of one kind, in the order in which the network computes them.

    Attributes:
        title: such as "layers, isolated".
        factor: how many yardsticks of error were allowed.
        comparisons: the tensors.
    """

    title: str
    factor: float
    comparisons: tuple[Comparison, ...]

    @property
    def equal(self) -> bool:
        """Whether every tensor passes."""
        return all(comparison.equal for comparison in self.comparisons)

    @property
    def worst(self) -> Comparison | None:
        """The tensor nearest to its limit, or farthest over it; None if there is no tensor."""
        return max(self.comparisons, key=lambda comparison: comparison.excess, default=None)

    @property
    def worst_factor(self) -> float:
        """The largest error in units of the yardstick."""
        return self.factor * self.worst.excess if self.worst else 0.0


def relative_error(found: np.ndarray, truth: np.ndarray, least_norm: float = 0.0) -> float:
    """`|found - truth| / max(|truth|, least_norm)` in L2, computed in float64; 0 where both are 0, infinity where only the truth is."""
    wide = truth.astype(np.float64, copy=False)
    distance = float(np.linalg.norm((found.astype(np.float64) - wide).ravel()))
    scale = max(float(np.linalg.norm(wide.ravel())), least_norm)
    return distance / scale if scale else (0.0 if distance == 0 else math.inf)


class Yardstick:
    """The worst error of PyTorch's correct runs, tensor by tensor."""

    def __init__(self, truth: Mapping[str, np.ndarray], dtype: str, *, least_norm: float = 0.0) -> None:
        """Start from the truth.

        Args:
            truth: float64 results by name; the order is the report's.
            dtype: compared precision, "float32" or "bfloat16".
            least_norm: tensors of a smaller norm are measured by this one: a gradient that is zero but for rounding has no
                relative error worth the name.
        """
        self.truth = dict(truth)
        self._dtype = dtype
        self._least_norm = least_norm
        self._worst = dict.fromkeys(truth, 0.0)

    def add(self, run: Mapping[str, np.ndarray]) -> None:
        """Take in one correct run of PyTorch in the compared precision."""
        for name, value in run.items():
            self._worst[name] = max(self._worst[name], relative_error(value, self.truth[name], self._least_norm))

    def judge(self, found: Mapping[str, np.ndarray], factor: float) -> tuple[Comparison, ...]:
        """Hold JAX's results, by the same names and in PyTorch's layout, against the truth."""
        return tuple(self._judged(name, found.get(name), factor) for name in self.truth)

    def _judged(self, name: str, found: np.ndarray | None, factor: float) -> Comparison:
        truth = self.truth[name]
        floor = FLOOR if truth.ndim else SCALAR_FLOOR
        limit = factor * max(self._worst[name], floor[self._dtype])
        fault = ""
        if not np.isfinite(truth).all():
            fault = "PyTorch's own result has values that are not finite"
        elif found is None:
            fault = "JAX has no such tensor"
        elif found.shape != truth.shape:
            fault = f"shape {tuple(found.shape)}, in PyTorch {tuple(truth.shape)}"
        elif not np.isfinite(found.astype(np.float32, copy=False)).all():
            fault = "has values that are not finite (NaN or Inf)"
        if fault or found is None:
            return Comparison(name, truth.shape, math.inf, self._worst[name], limit, math.inf, fault)
        difference = np.abs(found.astype(np.float64) - truth).max(initial=0.0)
        largest = float(difference / max(np.abs(truth).max(initial=0.0), 1e-300))
        error = relative_error(found, truth, self._least_norm)
        return Comparison(name, truth.shape, error, self._worst[name], limit, largest)


def total_norm(tensors: Iterable[np.ndarray]) -> float:
    """L2 norm over all tensors together."""
    return math.sqrt(sum(float(np.square(tensor.astype(np.float64)).sum()) for tensor in tensors))
