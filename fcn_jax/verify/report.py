"""The result of a comparison: verdict, text for a terminal, JSON."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from fcn_jax.convert.report import LoadReport
from fcn_jax.errors import listing
from fcn_jax.verify.compare import NOISE, NOT_FINITE, TORCH_NOT_FINITE, Comparison, Section

_PACKAGES = ("fcn-jax", "jax", "jaxlib", "flax", "optax", "torch", "torchvision", "timm", "numpy")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far the two sides' predictions agree at one image size, in eval mode.

    Attributes:
        size: height and width in pixels.
        argmax: share of pixels to which JAX gives the class that PyTorch float64 gives, 0 to 1.
        torch_argmax: the same of PyTorch in the compared precision, the worst run.
        miou: mean IoU of JAX's classes against PyTorch float64's, 0 to 1.
    """

    size: tuple[int, int]
    argmax: float
    torch_argmax: float
    miou: float


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What the two sides see in one image; all of one size.

    Attributes:
        image: u8[H,W,3] RGB.
        torch: u8[H,W] classes by PyTorch float64.
        jax: u8[H,W] classes by JAX.
        difference: f32[H,W], largest difference of a pixel's logits as a share of the largest
            absolute logit.
        num_classes: of the masks.
    """

    image: np.ndarray
    torch: np.ndarray
    jax: np.ndarray
    difference: np.ndarray
    num_classes: int


@dataclasses.dataclass
class Report:
    """What was compared, and how it came out.

    Attributes:
        subject: what was verified.
        dtype: compared precision.
        environment: versions, devices, and the precision of matrix products.
        sections: the comparisons by kind.
        coverage: which tensor of the state dict went where.
        guilty: the first layer or tensor to blame, "" if none.
        agreement: of the predictions, by image size; empty for what predicts no classes.
        uncompared: layers with tensors of their own that were not compared one by one, since one
            side does not call them with one tensor.
        weights: file or name of the weights and its SHA-256, or that they are random, with the
            seed.
        pictures: of the first image, or None.
    """

    subject: str
    dtype: str
    environment: Mapping[str, Any]
    sections: list[Section] = dataclasses.field(default_factory=list)
    coverage: LoadReport | None = None
    guilty: str = ""
    agreement: list[Agreement] = dataclasses.field(default_factory=list)
    uncompared: tuple[str, ...] = ()
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pictures: Pictures | None = None

    def add(self, *sections: Section) -> None:
        """Append comparisons."""
        self.sections.extend(sections)

    @property
    def equal(self) -> bool:
        """The verdict: whether every tensor is within its limit."""
        return bool(self.sections) and all(section.equal for section in self.sections)

    @property
    def failures(self) -> list[Comparison]:
        """Tensors over their limit. Those that are not finite come first: what they touch is wrong because of them."""
        failed = [c for section in self.sections for c in section.comparisons if not c.equal]
        return sorted(failed, key=lambda c: c.fault not in (NOT_FINITE, TORCH_NOT_FINITE))

    @property
    def blame(self) -> str:
        """One line on what is wrong, "" if nothing is."""
        failures = self.failures
        if failures and failures[0].fault in (NOT_FINITE, TORCH_NOT_FINITE):
            return str(failures[0])
        empty = [section.title for section in self.sections if not section.comparisons]
        return self.guilty or (
            str(failures[0])
            if failures
            else f"nothing was compared in: {', '.join(empty)}"
            if empty
            else ""
        )

    @property
    def verdict(self) -> str:
        """One line."""
        if self.equal:
            unjudged = sum(not c.judged for section in self.sections for c in section.comparisons)
            reserve = (
                f" ({unjudged} tensors are too noisy in PyTorch to be judged)" if unjudged else ""
            )
            return f"EQUAL: {self.subject} in {self.dtype} is the same function in JAX and PyTorch{reserve}"
        return f"NOT EQUAL: {self.subject} in {self.dtype}: {self.blame}"

    def remarks(self) -> list[str]:
        """What there is to say beside the comparisons, a line each: predictions, weights, layers left out."""
        lines = [
            f"{a.size[0]}x{a.size[1]}: argmax agrees on {a.argmax:.4%} of the pixels (PyTorch {self.dtype} on {a.torch_argmax:.4%}), "
            f"mIoU of one side against the other {a.miou:.4f}"
            for a in self.agreement
        ]
        if self.weights:
            digest = self.weights.get("sha256")
            lines.append(
                f"weights: {self.weights['source']}" + (f", SHA-256 {digest}" if digest else "")
            )
        if self.coverage:
            lines.append(f"loaded: {self.coverage}")
        if self.uncompared:
            lines.append(
                f"layers not compared one by one, since one side does not call them so: {listing(self.uncompared)}"
            )
        for section in self.sections:
            if section.attempts > 1:
                lines.append(
                    f"{section.title}: compared on {section.attempts} inputs, each tensor shown at its best, since a unit within rounding "
                    "of a ReLU's zero or a tie in a pooling window makes a correct gradient jump"
                )
            names = [c.name for c in section.comparisons if not c.judged]
            if names:
                lines.append(
                    f"{section.title}: {len(names)} of {len(section.comparisons)} not judged, since PyTorch's own error is {NOISE:g} or "
                    f"more (a larger batch or size may help): {listing(names, 6)}"
                )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; without the pictures."""
        return {
            "verdict": "equal" if self.equal else "not equal",
            "subject": self.subject,
            "dtype": self.dtype,
            "blame": self.blame,
            "weights": dict(self.weights),
            "environment": dict(self.environment),
            "coverage": dataclasses.asdict(self.coverage) if self.coverage else None,
            "agreement": [dataclasses.asdict(agreement) for agreement in self.agreement],
            "uncompared": list(self.uncompared),
            "sections": [
                {
                    "title": section.title,
                    "factor": section.factor,
                    "attempts": section.attempts,
                    "equal": section.equal,
                    "worst_factor": section.worst_factor
                    if math.isfinite(section.worst_factor)
                    else None,
                    "comparisons": [comparison.to_dict() for comparison in section.comparisons],
                }
                for section in self.sections
            ],
        }

    def __str__(self) -> str:
        """The verdict, then a table."""
        rows = [("", "tensors", "worst", "JAX", "PyTorch", "factor", "allowed")]
        for section in self.sections:
            worst = section.worst
            if worst is None:
                rows.append((section.title, "0", "", "", "", "", f"{section.factor:g}  FAILED"))
                continue
            rows.append(
                (
                    section.title,
                    str(len(section.comparisons)),
                    worst.name,
                    f"{worst.error:.1e}",
                    f"{worst.torch_error:.1e}",
                    f"{section.worst_factor:.2f}",
                    f"{section.factor:g}" + ("" if section.equal else "  FAILED"),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        right = {1, 3, 4, 5, 6}
        table = [
            "  ".join(
                cell.rjust(w) if i in right else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        lines = [self.verdict, "", *(line.rstrip() for line in table), "", *self.remarks()]
        failures = self.failures
        if failures:
            lines += [
                "",
                f"{len(failures)} tensors over their limit:",
                *(f"  {failure}" for failure in failures[:20]),
            ]
            if len(failures) > 20:
                lines.append(f"  and {len(failures) - 20} more")
        lines.append(
            "errors are relative L2 distances to PyTorch float64; factor: JAX's error in units of PyTorch's own, or of a few "
            "roundings where that is less, at the worst tensor"
        )
        return "\n".join(lines)


def environment() -> dict[str, Any]:
    """Versions, devices and settings that a result depends on."""
    import jax
    import torch

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": {"python": platform.python_version(), **versions},
        "jax_devices": [device.device_kind for device in jax.local_devices()],
        "jax_platform": jax.default_backend(),
        "jax_matmul_precision": "highest",
        "torch_threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }
