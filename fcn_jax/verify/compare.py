"""The criterion: error against PyTorch in float64, held against the error of correct PyTorch runs in the same precision.

No tolerance is guessed. A tensor's error is its relative L2 distance to the truth, `|x - truth| /
|truth|`, where the truth is PyTorch's result in float64. The yardstick is the worst error of several PyTorch runs in the compared precision, all of them correct; it has a floor
of a rounding or a few, since an operation without rounding has no error at all. JAX must stay
within a factor of it. Where PyTorch itself is off by half of the truth or more, there is nothing to
hold JAX against: such a tensor is listed as not judged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

FACTORS = {"layers": 2.0, "outputs": 2.0, "gradients": 3.0, "training": 10.0}
"""How many yardsticks of error JAX may have, by kind of tensor. Training amplifies the rounding of every step before."""

FLOOR = {"float32": 2.0**-21, "bfloat16": 2.0**-9}
"""The least yardstick of a tensor, by compute dtype. Rounding every element once gives a relative L2 error of about a quarter of a unit
in the last place, and that is all a bfloat16 layer does: it sums in float32. A float32 layer rounds
its sums too, in an order that differs from shape to shape in either library: `python -m
benchmarks.summation` shows PyTorch's own 3x3 convolution of 128 channels 1.5 units off at one size
and 3.5 at the next, so that the size that happens to be compared must not decide."""

SCALAR_FLOOR = {"float32": 2.0**-21, "bfloat16": 2.0**-7}
"""The least yardstick of a single number, whose error in any one run may be small by luck."""

LARGEST_LIMIT = 0.9
"""No limit is larger: a tensor of nothing but zeros is off by 1."""

NOISE = 0.5
"""From this error of PyTorch's own on, a tensor is not judged."""

ATTEMPTS = 4
"""How many inputs a gradient may be compared on; see `persistent`."""

NOT_FINITE = "has values that are not finite (NaN or Inf)"
TORCH_NOT_FINITE = "PyTorch's own result has values that are not finite (NaN or Inf)"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One tensor on both sides.

    Attributes:
        name: what it is called.
        shape: in PyTorch's layout.
        error: relative L2 error of JAX against PyTorch float64.
        torch_error: worst relative L2 error of PyTorch in the compared precision.
        limit: largest `error` that counts as equal.
        largest: largest single difference, as a share of the largest absolute value. Reported, not
            judged.
        fault: why there is no number, such as values that are not finite or another shape; empty if
            there is one.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    torch_error: float
    limit: float
    largest: float
    fault: str = ""

    @property
    def judged(self) -> bool:
        """Whether PyTorch's own error is small enough to say anything."""
        return bool(self.fault) or self.torch_error < NOISE

    @property
    def equal(self) -> bool:
        """Whether the tensor passes; one that is not judged does."""
        return not self.fault and (not self.judged or self.error <= self.limit)

    @property
    def excess(self) -> float:
        """The error in units of the limit: over 1 fails. 0 for what is not judged."""
        if self.fault:
            return math.inf
        return self.error / self.limit if self.judged else 0.0

    def __str__(self) -> str:
        """For messages: name, and what is wrong or how far off it is."""
        said = (
            self.fault
            or f"error {self.error:.1e}, PyTorch's own {self.torch_error:.1e}, allowed {self.limit:.1e}"
        )
        return f"{self.name}: {said}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; a number that JSON has no word for is None."""
        table = dataclasses.asdict(self)
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in table.items()
        } | {
            "equal": self.equal,
            "judged": self.judged,
        }


@dataclasses.dataclass(frozen=True)
class Section:
    """Comparisons of one kind, in the order in which the network computes them.

    Attributes:
        title: such as "layers, isolated".
        factor: how many yardsticks of error were allowed.
        comparisons: the tensors.
        attempts: on how many inputs they were compared; each tensor is shown where it came out
            best.
    """

    title: str
    factor: float
    comparisons: tuple[Comparison, ...]
    attempts: int = 1

    @property
    def equal(self) -> bool:
        """Whether every tensor passes, and there is one."""
        return bool(self.comparisons) and all(comparison.equal for comparison in self.comparisons)

    @property
    def worst(self) -> Comparison | None:
        """The tensor nearest to its limit, or farthest over it; None if there is no tensor."""
        return max(self.comparisons, key=lambda comparison: comparison.excess, default=None)

    @property
    def worst_factor(self) -> float:
        """The largest error in units of the yardstick, of those judged."""
        return self.factor * self.worst.excess if self.worst else 0.0


def persistent(
    attempt: Callable[[int], Sequence[Section]], attempts: int = ATTEMPTS
) -> list[Section]:
    """Compare again, on other inputs, while a tensor is over its limit; each tensor counts where it came out best.

    A gradient jumps where a ReLU's input is zero, or where two pixels of a pooling window are
    equal. A unit that is within rounding of such a place falls on either side of it in one correct
    run or another, and among a network's millions of units there is about one: `python -m
    benchmarks.equivalence` sees PyTorch's own float32 runs jump so by 1e-3 to 1e-2. It is another
    unit on other inputs, and other tensors that jump; a fault stays where it is. What cannot be
    measured at all (NaN, another shape) counts as soon as it is seen.

    Args:
        attempt: the number of the attempt, from 0 -> sections, of the same titles and tensors each
            time.
        attempts: at most so many.
    """
    sections = list(attempt(0))
    for number in range(1, attempts):
        comparisons = [comparison for section in sections for comparison in section.comparisons]
        if all(comparison.equal for comparison in comparisons) or any(
            comparison.fault for comparison in comparisons
        ):
            break
        sections = [
            _better(ours, other) for ours, other in zip(sections, attempt(number), strict=True)
        ]
    return sections


def _better(section: Section, other: Section) -> Section:
    """Tensor by tensor, the lesser excess; a fault is kept, and what could not be judged excuses nothing."""
    pairs = zip(section.comparisons, other.comparisons, strict=True)
    kept = tuple(
        b if b.fault else min(a, b, key=lambda c: (not c.judged, c.excess)) for a, b in pairs
    )
    return dataclasses.replace(section, comparisons=kept, attempts=section.attempts + 1)


def relative_error(found: np.ndarray, truth: np.ndarray, least_norm: float = 0.0) -> float:
    """`|found - truth| / max(|truth|, least_norm)` in L2, computed in float64; `|found|` itself where that would divide by 0."""
    wide = truth.astype(np.float64, copy=False)
    distance = float(np.linalg.norm((found.astype(np.float64) - wide).ravel()))
    return distance / (max(float(np.linalg.norm(wide.ravel())), least_norm) or 1.0)


class Yardstick:
    """The worst error of PyTorch's correct runs, tensor by tensor."""

    def __init__(
        self, truth: Mapping[str, np.ndarray], dtype: str, *, least_norm: float = 0.0
    ) -> None:
        """Start from the truth.

        Args:
            truth: float64 results by name; the order is the report's.
            dtype: compared precision, "float32" or "bfloat16".
            least_norm: tensors of a smaller norm are measured by this one: a gradient that is zero
                but for rounding has no relative error worth the name.
        """
        self.truth = dict(truth)
        self._dtype = dtype
        self._least_norm = least_norm
        self._worst = dict.fromkeys(truth, 0.0)
        self._not_finite = {name for name, value in truth.items() if not np.isfinite(value).all()}

    def add(self, run: Mapping[str, np.ndarray]) -> None:
        """Take in one correct run of PyTorch in the compared precision."""
        for name, value in run.items():
            if not np.isfinite(value).all():
                self._not_finite.add(name)
                continue
            self._worst[name] = max(
                self._worst[name], relative_error(value, self.truth[name], self._least_norm)
            )

    def judge(self, found: Mapping[str, np.ndarray], factor: float) -> tuple[Comparison, ...]:
        """Hold JAX's results, by the same names and in PyTorch's layout, against the truth; a name on one side alone is a fault."""
        surplus = (
            Comparison(
                name, value.shape, math.inf, 0.0, 0.0, math.inf, "PyTorch has no such tensor"
            )
            for name, value in found.items()
            if name not in self.truth
        )
        return (*(self._judged(name, found.get(name), factor) for name in self.truth), *surplus)

    def _judged(self, name: str, found: np.ndarray | None, factor: float) -> Comparison:
        truth = self.truth[name]
        limit = allowed(self._worst[name], factor, self._dtype, single=truth.size == 1)
        fault = ""
        if name in self._not_finite:
            fault = TORCH_NOT_FINITE
        elif found is None:
            fault = "JAX has no such tensor"
        elif found.shape != truth.shape:
            fault = f"shape {tuple(found.shape)}, in PyTorch {tuple(truth.shape)}"
        elif not np.isfinite(found.astype(np.float32, copy=False)).all():
            fault = NOT_FINITE
        if fault or found is None:
            return Comparison(
                name, truth.shape, math.inf, self._worst[name], limit, math.inf, fault
            )
        difference = np.abs(found.astype(np.float64) - truth).max(initial=0.0)
        largest = float(difference / max(np.abs(truth).max(initial=0.0), 1e-300))
        error = relative_error(found, truth, self._least_norm)
        return Comparison(name, truth.shape, error, self._worst[name], limit, largest)


def allowed(worst: float, factor: float, dtype: str, *, single: bool = False) -> float:
    """The largest error that counts as equal, where PyTorch's own is `worst`; `single` for a tensor of one number."""
    return min(factor * max(worst, (SCALAR_FLOOR if single else FLOOR)[dtype]), LARGEST_LIMIT)


def total_norm(tensors: Iterable[np.ndarray]) -> float:
    """L2 norm over all tensors together."""
    return math.sqrt(sum(float(np.square(tensor.astype(np.float64)).sum()) for tensor in tensors))
