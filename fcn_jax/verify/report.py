"""The result of a comparison: verdict, text for a terminal, JSON."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from fcn_jax.convert.report import LoadReport
from fcn_jax.errors import listing
from fcn_jax.runtime.versions import package_versions
from fcn_jax.verify.compare import INCONCLUSIVE, NOT_FINITE, TORCH_NOT_FINITE, Comparison, Section
from fcn_jax.verify.layers import Layers
from fcn_jax.verify.sensitivity import Sensitivity

_PACKAGES = ("fcn-jax", "jax", "jaxlib", "flax", "optax", "torch", "torchvision", "timm", "numpy")

_NOT_FINITE = (NOT_FINITE, TORCH_NOT_FINITE)

_LISTED_FAILURES = 20


def environment() -> dict[str, Any]:
    """Versions, devices and settings that a result depends on."""
    import jax
    import torch

    installed = {name: version for name, version in package_versions(_PACKAGES).items() if version}
    return {
        "versions": {"python": platform.python_version(), **installed},
        "jax_devices": [device.device_kind for device in jax.local_devices()],
        "jax_platform": jax.default_backend(),
        "jax_matmul_precision": "highest",
        "torch_threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of the two sides' predictions at one image size, in eval mode.

    Attributes:
        size: height and width in pixels.
        argmax: share of pixels to which JAX assigns the same class as PyTorch float64, 0 to 1.
        torch_argmax: the same for PyTorch in the compared precision, its worst run.
        miou: mean IoU of JAX's classes against PyTorch float64's, 0 to 1.
    """

    size: tuple[int, int]
    argmax: float
    torch_argmax: float
    miou: float


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The two sides' predictions for one image; all arrays have one size.

    Attributes:
        image: u8[H,W,3] RGB.
        torch: u8[H,W] classes by PyTorch float64.
        jax: u8[H,W] classes by JAX.
        difference: f32[H,W], largest difference of a pixel's logits as a share of the largest
            absolute logit.
        num_classes: number of classes.
    """

    image: np.ndarray
    torch: np.ndarray
    jax: np.ndarray
    difference: np.ndarray
    num_classes: int


@dataclasses.dataclass
class Report:
    """The comparisons and their verdict.

    Attributes:
        subject: what was verified.
        dtype: compared precision.
        environment: versions, devices, and the precision of matrix products.
        sections: the comparisons by kind.
        coverage: which tensor of the state dict went where.
        first_failing_layer: the first layer that fails, and how; "" if none does.
        agreement: of the predictions, by image size; empty for networks without classes.
        skipped: layers with tensors of their own that were not compared one by one, because one
            side does not call them with one tensor.
        weights: the weights' file or name and SHA-256, or the seed of random weights.
        mutation: which planted faults were caught, or None if none were planted.
        pictures: of the first image, or None.
        notes: what was decided about the inputs.
        sensitivity: how far the outputs depend on each tensor; empty if it was not measured.
    """

    subject: str
    dtype: str
    environment: Mapping[str, Any] = dataclasses.field(default_factory=environment)
    sections: list[Section] = dataclasses.field(default_factory=list)
    coverage: LoadReport | None = None
    first_failing_layer: str = ""
    agreement: list[Agreement] = dataclasses.field(default_factory=list)
    skipped: tuple[str, ...] = ()
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mutation: Any = None
    pictures: Pictures | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    sensitivity: tuple[Sensitivity, ...] = ()

    def add_layers(self, layers: Layers) -> None:
        """Append the comparison of layers."""
        self.sections += layers.sections
        self.first_failing_layer, self.skipped = layers.first_failing, layers.skipped

    @property
    def equal(self) -> bool:
        """The verdict: whether every tensor is within its limit."""
        return bool(self.sections) and all(section.equal for section in self.sections)

    @property
    def not_proven(self) -> tuple[Sensitivity, ...]:
        """Tensors about which equal outputs prove nothing."""
        return tuple(entry for entry in self.sensitivity if entry.reason)

    @property
    def inconclusive(self) -> int:
        """Number of inconclusive tensors, over all sections."""
        return sum(len(section.inconclusive) for section in self.sections)

    @property
    def failures(self) -> list[Comparison]:
        """Tensors over their limit. Those that are not finite come first, as they affect others."""
        failed = [c for section in self.sections for c in section.comparisons if not c.equal]
        return sorted(failed, key=lambda c: c.fault not in _NOT_FINITE)

    @property
    def failure(self) -> str:
        """One line about the first failure; "" if there is none."""
        first = next(iter(self.failures), None)
        if self.first_failing_layer and (first is None or first.fault not in _NOT_FINITE):
            return self.first_failing_layer
        if first is not None:
            return str(first)
        empty = [section.title for section in self.sections if not section.comparisons]
        return f"nothing was compared in: {', '.join(empty)}" if empty else ""

    @property
    def verdict(self) -> str:
        """One line."""
        subject = f"{self.subject} in {self.dtype}"
        doubts = [section.doubt for section in self.sections if section.doubt]
        if doubts and not self.failure:
            return f"INCONCLUSIVE: {subject}: {'; '.join(doubts)}"
        if not self.equal:
            return f"NOT EQUAL: {subject}: {self.failure}"
        unproven = listing([entry.name for entry in self.not_proven], 3)
        reserve = f", except {len(self.not_proven)} tensors that are not proven: {unproven}"
        subject = f"EQUAL{reserve if self.not_proven else ''}: {subject}"
        number = self.inconclusive
        noisy = f" ({number} tensors are inconclusive: too noisy in PyTorch)" if number else ""
        return f"{subject} is the same function in JAX and PyTorch{noisy}"

    def remarks(self) -> list[str]:
        """Lines about predictions, weights, skipped layers and inconclusive tensors."""
        lines = [
            f"{a.size[0]}x{a.size[1]}: argmax agrees on {a.argmax:.4%} of the pixels (PyTorch "
            f"{self.dtype} on {a.torch_argmax:.4%}), mIoU between the two sides {a.miou:.4f}"
            for a in self.agreement
        ]
        if self.weights:
            digest = self.weights.get("sha256")
            suffix = f", SHA-256 {digest}" if digest else ""
            lines.append(f"weights: {self.weights['source']}{suffix}")
        lines += self.notes
        if self.coverage:
            lines.append(f"loaded: {self.coverage}")
        if self.skipped:
            lines.append(
                "skipped layers, which one side does not call with a single tensor: "
                f"{listing(self.skipped)}"
            )
        reasons = {entry.reason: 0 for entry in self.not_proven}
        for reason in reasons:
            names = [entry.name for entry in self.not_proven if entry.reason == reason]
            lines.append(f"not proven, since {reason}: {listing(names, 10)}")
        for section in self.sections:
            lines += section.remarks
            if section.attempts > 1:
                lines.append(
                    f"{section.title}: compared on {section.attempts} inputs, each tensor with its "
                    "best result, because a correct gradient jumps if a unit is within rounding of "
                    "a ReLU's zero or of a tie in a pooling window"
                )
            if inconclusive := section.inconclusive:
                lines.append(
                    f"{section.title}: {len(inconclusive)} of {len(section.comparisons)} inconclusive, "
                    f"since PyTorch's own error is {INCONCLUSIVE:g} or more (a larger batch or "
                    f"size may help): {listing(inconclusive, 6)}"
                )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; without the pictures."""
        return {
            "verdict": self.verdict.partition(":")[0].partition(",")[0].lower(),
            "subject": self.subject,
            "dtype": self.dtype,
            "failure": self.failure,
            "weights": dict(self.weights),
            "environment": dict(self.environment),
            "coverage": dataclasses.asdict(self.coverage) if self.coverage else None,
            "agreement": [dataclasses.asdict(agreement) for agreement in self.agreement],
            "skipped": list(self.skipped),
            "mutation": self.mutation.to_dict() if self.mutation else None,
            "notes": list(self.notes),
            "sensitivity": [dataclasses.asdict(entry) for entry in self.sensitivity],
            "not_proven": [entry.name for entry in self.not_proven],
            "sections": [
                {
                    "title": section.title,
                    "factor": section.factor,
                    "attempts": section.attempts,
                    "loose": list(section.loose),
                    "remarks": list(section.remarks),
                    "equal": section.equal,
                    "inconclusive": len(section.inconclusive),
                    "worst_factor": _finite(section.worst_factor),
                    "comparisons": [comparison.to_dict() for comparison in section.comparisons],
                }
                for section in self.sections
            ],
        }

    def __str__(self) -> str:
        """The verdict, a table of the sections, remarks, and the failures."""
        rows: list[tuple[str, ...]] = [
            ("", "tensors", "worst", "JAX", "PyTorch", "factor", "allowed")
        ]
        rows += [
            (*summary_row(section)[:-1], f"{section.factor:g}{'' if section.equal else '  FAILED'}")
            for section in self.sections
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        align = (str.ljust, str.rjust, str.ljust, *[str.rjust] * 4)
        table = [
            "  ".join(place(cell, w) for place, cell, w in zip(align, row, widths, strict=True))
            for row in rows
        ]
        lines = [self.verdict, "", *map(str.rstrip, table), "", *self.remarks()]
        if failures := self.failures:
            lines += ["", f"{len(failures)} tensors over their limit:"]
            lines += [f"  {failure}" for failure in failures[:_LISTED_FAILURES]]
            if len(failures) > _LISTED_FAILURES:
                lines.append(f"  and {len(failures) - _LISTED_FAILURES} more")
        if self.mutation:
            lines += ["", str(self.mutation), ""]
        lines.append(
            "errors are relative L2 distances to PyTorch float64; factor: JAX's error in units of "
            "PyTorch's own (at least a few roundings), at the worst tensor"
        )
        return "\n".join(lines)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summary_row(section: Section) -> tuple[str, ...]:
    """Title, tensors, worst tensor, error, reference error, factor and allowed factor, as text."""
    worst, count = section.worst, str(len(section.comparisons))
    numbers = ("", "", "", "")
    if worst is not None:
        errors = (f"{worst.error:.1e}", f"{worst.reference_error:.1e}")
        numbers = (worst.name, *errors, f"{section.worst_factor:.2f}")
    return (section.title, count, *numbers, f"{section.factor:g}")
