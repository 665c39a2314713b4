"""The result of an evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fcn_jax.eval.boundary import DILATION_RATIO
from fcn_jax.eval.calibration import BINS
from fcn_jax.eval.metrics import Scores
from fcn_jax.eval.protocols import Protocol
from fcn_jax.plugins.api import Classes

SCHEMA = "fcn_jax.evaluation/1"
"""Format of `Evaluation.to_dict`. The number rises if a key changes its meaning or is removed."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a model on a split.

    Attributes:
        checkpoint: the directory that was read; None for a model in memory.
        dataset: registered name; None for a source in memory.
        split: name of the split; None for a source in memory.
        images: number of images that were scored.
        classes: names and colors.
        scores: over all scored pixels that are not ignored.
        protocol: which pixels were scored, and how.
        notes: lines about assumptions and about the limits of the scores.
        padded_to_multiple: the multiple in pixels to which images were padded; None if each ran at
            its own size.
        weights: "ema", averages of the weights, or "raw".
        images_skipped: number of images that the protocol leaves out.
    """

    checkpoint: Path | None
    dataset: str | None
    split: str | None
    images: int
    classes: Classes
    scores: Scores
    protocol: Protocol
    notes: tuple[str, ...] = ()
    padded_to_multiple: int | None = None
    weights: str = "raw"
    images_skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what was scored and how, `Scores.to_dict`, the confusion matrix, the notes."""
        where: dict[str, Any] = {
            "schema": SCHEMA,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "weights": self.weights,
            "dataset": self.dataset,
            "split": self.split,
            "protocol": self.protocol.to_dict(),
            "images": self.images,
            "images_skipped": self.images_skipped,
            "pixels_scored": int(self.scores.pixels.sum()),
            "pixels_ignored": self.scores.ignored,
            "padded_to_multiple": self.padded_to_multiple,
        }
        if self.scores.ece is not None:
            where["ece_bins"] = BINS
        if self.scores.boundary_iou is not None:
            where["boundary_dilation_ratio"] = DILATION_RATIO
        return {
            **where,
            **self.scores.to_dict(self.classes),
            **self._confusion(),
            "notes": list(self.notes),
        }

    def _confusion(self) -> dict[str, Any]:
        counts = self.scores.counts.tolist()
        if self.scores.counts.ndim == 2:
            return {"confusion": counts}
        return {"confusion": None, "confusion_by_class": counts}

    def __str__(self) -> str:
        """A table for the terminal, then the notes."""
        which = " (ema)" if self.weights == "ema" else ""
        split = " ".join(part for part in (self.dataset, self.split) if part)
        on = f"{self.checkpoint}{which} on {split}, " if self.checkpoint else ""
        skipped = f" ({self.images_skipped} left out)" if self.images_skipped else ""
        title = f"{on}{self.images} images{skipped}, protocol {self.protocol}"
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([title, "", self.scores.table(self.classes), *notes])
