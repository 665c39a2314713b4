"""Definitions of losses in float64, as plain as possible.

Logits are f64[P, K] and labels i64[P] over all pixels of a batch; for sigmoids, labels are targets
i64[P, K] of 0, 1 or 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

IGNORED = 255


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def cross_entropy(logits, labels, weights=None, smoothing=0.0):
    logs, classes = log_softmax(logits), logits.shape[1]
    weights = np.ones(classes) if weights is None else np.asarray(weights)
    total = divisor = 0.0
    for p in np.flatnonzero(labels != IGNORED):
        y = labels[p]
        total += (1 - smoothing) * weights[y] * -logs[p, y]
        total += smoothing / classes * (weights * -logs[p]).sum()
        divisor += weights[y]
    return total / divisor if divisor else 0.0


def ohem(logits, labels, images, threshold=0.7, min_kept=100_000, fraction=None):
    valid = labels != IGNORED
    losses = -log_softmax(logits)[valid, labels[valid]]
    if not losses.size:
        return 0.0
    losses = np.sort(losses)[::-1]
    if fraction is not None:
        return losses[: max(1, math.floor(np.float32(fraction) * losses.size))].mean()
    kept = min_kept * images
    limit = -math.log(threshold)
    hard = losses[:kept] if (losses > limit).sum() < kept else losses[losses > limit]
    return hard.mean() if hard.size else 0.0


def focal(logits, labels, gamma=2.0, weights=None):
    valid = labels != IGNORED
    if not valid.any():
        return 0.0
    logs = log_softmax(logits)[valid, labels[valid]]
    losses = (1 - np.exp(logs)) ** gamma * -logs
    if weights is not None:
        losses = losses * np.asarray(weights)[labels[valid]]
    return losses.mean()


def sigmoid_focal(logits, targets, divisor, gamma=2.0, alpha=None):
    losses = softplus(np.where(targets == 1, -logits, logits))
    losses = (1 - np.exp(-losses)) ** gamma * losses
    if alpha is not None:
        losses = losses * np.where(targets == 1, alpha, 1 - alpha)
    return losses[targets != IGNORED].sum() / max(divisor, 1)


def bce(logits, targets, pos_weight=1.0, smooth_factor=0.0):
    valid = targets != IGNORED
    t = np.where(targets == 1, 1 - smooth_factor, smooth_factor)
    losses = np.asarray(pos_weight) * t * softplus(-logits) + (1 - t) * softplus(logits)
    return losses[valid].mean() if valid.any() else 0.0


def tversky(
    probabilities, targets, alpha=0.5, beta=0.5, gamma=1.0, smooth=0.0, log=False, classes=None
):
    """Of probabilities f64[P, K] and targets i64[P, K]."""
    losses = []
    for k in range(targets.shape[1]):
        counted = targets[:, k] != IGNORED
        p, t = probabilities[counted, k], targets[counted, k]
        hits, wrong, missed = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
        score = (hits + smooth) / max(hits + alpha * wrong + beta * missed + smooth, 1e-7)
        loss = -math.log(max(score, 1e-7)) if log else 1 - score
        losses.append(loss if t.sum() else 0.0)
    losses = losses if classes is None else [losses[k] for k in classes]
    return float(np.mean(losses)) ** gamma


def lovasz_extension(errors, truth):
    """Sum of the sorted errors times the rises of the Jaccard loss."""
    order = np.argsort(-errors, kind="stable")
    errors, truth = errors[order], truth[order]
    total = before = 0.0
    for i in range(len(errors)):
        wrong = truth[: i + 1].sum()
        union = truth.sum() + (1 - truth[: i + 1]).sum()
        jaccard = 1 - (truth.sum() - wrong) / union
        total += errors[i] * (jaccard - before)
        before = jaccard
    return total


def lovasz_softmax(logits, labels, present=True):
    valid = labels != IGNORED
    if not valid.any():
        return 0.0
    q, y = np.exp(log_softmax(logits[valid])), labels[valid]
    classes = [k for k in range(q.shape[1]) if not present or (y == k).any()]
    each = [lovasz_extension(np.abs((y == k) - q[:, k]), (y == k).astype(int)) for k in classes]
    return float(np.mean(each))


def lovasz_hinge(logits, targets):
    valid = targets != IGNORED
    z, t = logits[valid], targets[valid]
    return lovasz_extension(np.maximum(1 - z * (2 * t - 1), 0), t) if t.size else 0.0


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Targets i64[P, K] of labels i64[P]."""
    found = (labels[:, None] == np.arange(classes)).astype(np.int64)
    found[labels == IGNORED] = IGNORED
    return found


def gradient(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences."""
    found, step = np.zeros_like(at), 1e-6
    for index in np.ndindex(at.shape):
        change = np.zeros_like(at)
        change[index] = step
        found[index] = (function(at + change) - function(at - change)) / (2 * step)
    return found
