"""Scores as a table for the terminal."""

from __future__ import annotations

import numpy as np

from fcn_jax.infer.evaluate import Evaluation


def scores_table(evaluation: Evaluation) -> str:
    """Per-class IoU, with each class's share of the true pixels, and the four figures below."""
    scores, names = evaluation.scores, evaluation.classes.names
    width = max(len("pixel accuracy"), *(len(name) for name in names))
    total = max(int(scores.pixels.sum()), 1)
    lines = [f"{evaluation.checkpoint} on {evaluation.dataset} {evaluation.split}, {evaluation.images} images", ""]
    lines.append(f"{'class':<{width}}     IoU   share of pixels")
    for name, iou, pixels in zip(names, scores.iou, scores.pixels, strict=True):
        lines.append(f"{name:<{width}}  {'     -' if np.isnan(iou) else f'{iou:6.4f}'}   {pixels / total:14.2%}")
    lines.append("")
    figures = {
        "mIoU": scores.miou,
        "pixel accuracy": scores.pixel_accuracy,
        "class accuracy": scores.class_accuracy,
        "fwIoU": scores.fwiou,
    }
    lines += [f"{name:<{width}}  {value:6.4f}" for name, value in figures.items()]
    return "\n".join(lines)
