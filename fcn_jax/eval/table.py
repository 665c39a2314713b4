"""Scores as a table for the terminal."""

from __future__ import annotations

import numpy as np

from fcn_jax.eval.evaluate import Evaluation


def scores_table(evaluation: Evaluation) -> str:
    """The IoU and the share of labeled pixels of each class, then the four figures, then notes.

    "-" stands for an undefined figure.
    """
    scores, names = evaluation.scores, evaluation.classes.names
    width = max(len("pixel accuracy"), *(len(name) for name in names))
    total = max(int(scores.pixels.sum()), 1)
    lines = [
        f"{evaluation.checkpoint} on {evaluation.dataset} {evaluation.split}, {evaluation.images} images",
        "",
    ]
    lines.append(f"{'class':<{width}}     IoU   share of pixels")
    for name, iou, pixels in zip(names, scores.iou, scores.pixels, strict=True):
        lines.append(f"{name:<{width}}  {_figure(iou)}   {pixels / total:14.2%}")
    lines.append("")
    fewer = (
        f" (over {scores.classes_scored} of {len(names)} classes)"
        if scores.classes_scored < len(names)
        else ""
    )
    lines += [
        f"{'mIoU':<{width}}  {_figure(scores.miou)}{fewer}",
        f"{'pixel accuracy':<{width}}  {_figure(scores.pixel_accuracy)}",
        f"{'class accuracy':<{width}}  {_figure(scores.class_accuracy)}",
        f"{'fwIoU':<{width}}  {_figure(scores.fwiou)}",
    ]
    if scores.void:
        lines += ["", f"{scores.void_share:.2%} of all pixels are void and do not count"]
    lines += [f"note: {note}" for note in evaluation.notes]
    return "\n".join(lines)


def _figure(value: float) -> str:
    return "     -" if np.isnan(value) else f"{value:6.4f}"
