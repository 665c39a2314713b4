"""The criterion: the error of JAX relative to the error of correct PyTorch runs.

The reference is PyTorch's result in float64. A tensor's error is its relative L2 distance to the
reference, `|x - reference| / |reference|`. The reference error is the worst error of several
correct PyTorch runs in the compared precision. It has a floor of a few roundings, because an
operation without rounding has no error at all. JAX passes if its error is at most a factor times
the reference error. If PyTorch's own error is one half or more, the comparison is inconclusive: the
report lists the tensor, and if there are more than a few of them, the verdict is INCONCLUSIVE.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

FACTORS = {"layers": 2.0, "outputs": 2.0, "gradients": 3.0, "training": 10.0}
"""Allowed error of JAX in units of the reference error, by kind of tensor. Training amplifies the
rounding errors of every step before."""

FLOOR = {"float32": 2.0**-21, "bfloat16": 2.0**-9}
"""Smallest reference error of a tensor, by compute dtype. Rounding every element once gives a
relative L2 error of about a quarter of a unit in the last place. A bfloat16 layer does no more,
since it sums in float32. A float32 layer also rounds its sums, in an order that differs from shape
to shape in both libraries: `python -m benchmarks.summation` shows PyTorch's own 3x3 convolution of
128 channels 1.5 units off at one size and 3.5 at the next. The verdict must not depend on the size
that happens to be compared."""

SCALAR_FLOOR = {"float32": 2.0**-21, "bfloat16": 2.0**-7}
"""Smallest reference error of a single number, whose error in one run may be small by chance."""

LARGEST_LIMIT = 0.9
"""Upper bound of all limits: a tensor of zeros has an error of 1."""

INCONCLUSIVE = 0.5
"""Reference error from which on a comparison is inconclusive."""

MAX_INCONCLUSIVE = 0.02
"""Largest share of the tensors of a section that may be inconclusive in a verdict of EQUAL."""

MAX_LOOSE = 5
"""Largest number of tensors of a section whose limit may be widened by units at a kink."""

MIN_VALUES = 4
"""Values per channel that a batch normalization needs in train mode. Of two values it leaves little
more than which is larger; if they are close, rounding errors become as large as the values. See
`fcn_jax.verify.few_values`."""

LAYERS, LAYER_GRADIENTS = "layers, isolated", "layer gradients, isolated"
"""Titles of the sections about single layers."""

ATTEMPTS = 4
"""Number of inputs that are compared at most; see `compare_repeatedly`."""

NEGLIGIBLE = 1e-6
"""Share of the norm of the whole gradient. Gradients with a smaller norm are measured relative to
it: they are zero except for rounding."""

NEGLIGIBLE_BFLOAT16 = 2.0**-7
"""The same for gradients in bfloat16. There, the gradient of a bias in front of a normalization,
which is zero, has rounding errors of this size."""

NOT_FINITE = "has values that are not finite (NaN or Inf)"
TORCH_NOT_FINITE = "PyTorch's own result has values that are not finite (NaN or Inf)"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One tensor on both sides.

    Attributes:
        name: the tensor's name.
        shape: in PyTorch's layout.
        error: relative L2 error of JAX against PyTorch in float64.
        reference_error: worst relative L2 error of PyTorch in the compared precision.
        limit: largest `error` that passes.
        largest: largest difference of an element, as a share of the largest absolute value. It is
            reported only.
        fault: why there is no error, such as values that are not finite or a wrong shape; "" if
            there is one.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    reference_error: float
    limit: float
    largest: float
    fault: str = ""

    @property
    def inconclusive(self) -> bool:
        """Whether PyTorch's own error is too large for a verdict."""
        return not self.fault and not self.reference_error < INCONCLUSIVE

    @property
    def equal(self) -> bool:
        """Whether the tensor passes. Inconclusive tensors do."""
        return not self.fault and (self.inconclusive or self.error <= self.limit)

    @property
    def excess(self) -> float:
        """The error in units of the limit: over 1 fails. 0 for inconclusive tensors."""
        if self.fault:
            return math.inf
        return 0.0 if self.inconclusive else self.error / self.limit

    def __str__(self) -> str:
        """Name and fault or errors, for messages."""
        errors = (
            f"error {self.error:.1e}, PyTorch's own {self.reference_error:.1e}, "
            f"allowed {self.limit:.1e}"
        )
        return f"{self.name}: {self.fault or errors}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite are None."""
        table = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in dataclasses.asdict(self).items()
        }
        return {**table, "equal": self.equal, "inconclusive": self.inconclusive}


@dataclasses.dataclass(frozen=True)
class Section:
    """Comparisons of one kind, in the order in which the network computes the tensors.

    Attributes:
        title: such as "layers, isolated".
        factor: allowed error in units of the reference error.
        comparisons: the tensors.
        attempts: number of inputs that were compared; each tensor counts with its best result.
        loose: names of tensors whose limit is wide because a unit lies at a kink of PyTorch's side.
        remarks: lines for the report.
        unstable: names of tensors whose failure proves nothing.
        reason: why it does not, or why there are no tensors; "" if all tensors count.
    """

    title: str
    factor: float
    comparisons: tuple[Comparison, ...]
    attempts: int = 1
    loose: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    unstable: tuple[str, ...] = ()
    reason: str = ""

    @property
    def failures(self) -> tuple[Comparison, ...]:
        """The tensors that fail, except for the unstable ones."""
        return tuple(c for c in self.comparisons if not c.equal and c.name not in self.unstable)

    @property
    def equal(self) -> bool:
        """Whether there are tensors, all of them pass, and few of them are inconclusive."""
        return bool(self.comparisons) and not self.failures and not self.doubt

    @property
    def mark(self) -> str:
        """FAILED or INCONCLUSIVE; "" if the section is equal."""
        return "" if self.equal else "FAILED" if self.failures or not self.doubt else "INCONCLUSIVE"

    @property
    def doubt(self) -> str:
        """Why nothing can be said if no tensor fails; "" if something can."""
        number, total = len(self.inconclusive), len(self.comparisons)
        if self.reason and not total:
            return f"{self.title}: not compared, because {self.reason}"
        if self.unstable:
            over = f"{len(self.unstable)} of {total} tensors are over their limits"
            return f"{self.title}: {over}, which proves nothing, because {self.reason}"
        if number > MAX_INCONCLUSIVE * total:
            return (
                f"{self.title}: PyTorch's own error is {INCONCLUSIVE:g} or more for {number} of "
                f"{total} tensors (at most {MAX_INCONCLUSIVE:.0%} may be so); use a larger batch "
                "or size"
            )
        if len(self.loose) > MAX_LOOSE:
            return (
                f"{self.title}: units at a kink widen the limits of {len(self.loose)} of {total} "
                f"tensors (at most {MAX_LOOSE} may be so); use other inputs or another seed"
            )
        return ""

    @property
    def noisy(self) -> bool:
        """Whether the only doubt is about tensors for which PyTorch's own error is too large."""
        few_loose = len(self.loose) <= MAX_LOOSE and not self.unstable
        return bool(self.comparisons and self.doubt) and few_loose and not self.failures

    @property
    def worst(self) -> Comparison | None:
        """The tensor with the largest error in units of its limit; None if there is no tensor."""
        return max(self.comparisons, key=lambda comparison: comparison.excess, default=None)

    @property
    def worst_factor(self) -> float:
        """The largest error in units of the reference error, without inconclusive tensors."""
        return self.factor * self.worst.excess if self.worst else 0.0

    @property
    def inconclusive(self) -> tuple[str, ...]:
        """Names of the inconclusive tensors."""
        return tuple(c.name for c in self.comparisons if c.inconclusive)


def compare_repeatedly(
    attempt: Callable[[int], Sequence[Section]], attempts: int = ATTEMPTS
) -> list[Section]:
    """Compare on further inputs while a tensor is over its limit; each counts with its best result.

    A gradient jumps where a ReLU's input is zero, or where two pixels of a pooling window are
    equal. A unit that is within rounding of such a point falls on either side of it in one correct
    run or another, and among a network's millions of units there is about one. PyTorch's own
    float32 runs jump so by 1e-3 to 1e-2 (docs/equivalence.md). On other inputs other units jump,
    but a fault stays where it is. A tensor that cannot be compared (NaN, wrong shape) fails at
    once.

    Args:
        attempt: (number of the attempt, from 0) -> sections with the same titles and tensors.
        attempts: largest number of attempts.
    """
    sections = list(attempt(0))
    for number in range(1, attempts):
        comparisons = [comparison for section in sections for comparison in section.comparisons]
        if all(c.equal for c in comparisons) or any(c.fault for c in comparisons):
            break
        sections = [
            better(ours, other) for ours, other in zip(sections, attempt(number), strict=True)
        ]
    return sections


def better(section: Section, other: Section) -> Section:
    """Each tensor's better result. Faults are kept, and an inconclusive result excuses nothing."""
    kept = tuple(
        b if b.fault else min(a, b, key=lambda c: (c.inconclusive, c.excess))
        for a, b in zip(section.comparisons, other.comparisons, strict=True)
    )
    return dataclasses.replace(section, comparisons=kept, attempts=section.attempts + 1)


class ReferenceErrors:
    """The worst error of PyTorch's correct runs, by tensor or by group of tensors."""

    def __init__(
        self,
        reference: Mapping[str, np.ndarray],
        dtype: str,
        *,
        start: Mapping[str, np.ndarray] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        least_norm: float | Mapping[str, float] = 0.0,
        rounding: Mapping[str, float] | None = None,
    ) -> None:
        """Start without runs.

        Args:
            reference: float64 results by name, in the order of the report.
            dtype: compared precision, "float32" or "bfloat16".
            start: initial values. If given, errors are relative to the change from them.
            groups: names of tensors that count as one vector, by the group's name; None compares
                each tensor.
            least_norm: the errors of tensors with a smaller norm are relative to this norm, which
                may differ by name.
            rounding: norm of the rounding errors with which a tensor is stored, by name. The
                reference error is at least that. The errors of tensors with a norm of less than
                eight times that are relative to eight times that.
        """
        self._reference = dict(reference)
        self._dtype = dtype
        self._groups = groups or {name: (name,) for name in reference}
        self._worst = dict.fromkeys(self._groups, 0.0)
        self._sizes = {
            group: _size(reference[name] - (start[name] if start else 0.0) for name in names)
            for group, names in self._groups.items()
        }
        self._rounding = rounding or {}
        self._scales = {}
        for group, (norm, _) in self._sizes.items():
            least = least_norm if isinstance(least_norm, float) else least_norm.get(group, 0.0)
            self._scales[group] = max(norm, least, 8 * self._rounding.get(group, 0.0)) or 1.0

    def add(self, run: Mapping[str, np.ndarray]) -> None:
        """Add a correct run of PyTorch in the compared precision."""
        for group in self._groups:
            # Unlike max, np.maximum keeps NaN.
            self._worst[group] = float(np.maximum(self._worst[group], self._errors(group, run)[0]))

    def compare(self, found: Mapping[str, np.ndarray], factor: float) -> tuple[Comparison, ...]:
        """Compare JAX's results, by the same names and in PyTorch's layout.

        A tensor that only one side has is a fault.
        """
        surplus = (
            Comparison(
                name, value.shape, math.inf, 0.0, 0.0, math.inf, "PyTorch has no such tensor"
            )
            for name, value in found.items()
            if name not in self._reference
        )
        return (*(self._compare(group, found, factor) for group in self._groups), *surplus)

    def _compare(self, group: str, found: Mapping[str, np.ndarray], factor: float) -> Comparison:
        names, worst = self._groups[group], self._worst[group]
        shapes = [self._reference[name].shape for name in names]
        shape = shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)
        floor = (SCALAR_FLOOR if math.prod(shape) == 1 else FLOOR)[self._dtype]
        floor = max(floor, self._rounding.get(group, 0.0) / self._scales[group])
        limit = min(factor * max(worst, floor), LARGEST_LIMIT)
        error = largest = math.inf
        fault = ""
        if not math.isfinite(worst + self._sizes[group][0]):
            fault = TORCH_NOT_FINITE
        elif any(name not in found for name in names):
            fault = "JAX has no such tensor"
        elif [found[name].shape for name in names] != shapes:
            fault = f"shape {found[names[0]].shape}, in PyTorch {shapes[0]}"
        else:
            error, largest = self._errors(group, found)
            if not math.isfinite(error):
                fault, error, largest = NOT_FINITE, math.inf, math.inf
        return Comparison(group, shape, error, worst, limit, largest, fault)

    def _errors(self, group: str, found: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Relative L2 error, and largest difference as a share of the largest value."""
        difference, largest_difference = _size(
            found[name] - self._reference[name] for name in self._groups[group]
        )
        _, largest = self._sizes[group]
        return difference / self._scales[group], largest_difference / (largest or 1.0)


def _size(arrays: Iterable[np.ndarray]) -> tuple[float, float]:
    """L2 norm and largest absolute value of all arrays together."""
    squares, largest = 0.0, 0.0
    with np.errstate(invalid="ignore"):  # the difference of infinite values is NaN
        for x in arrays:
            flat = np.ravel(x).astype(np.float64, copy=False)
            squares += float(flat @ flat)
            largest = max(largest, float(np.abs(flat).max(initial=0.0)))
    return math.sqrt(squares), largest
