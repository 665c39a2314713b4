"""Drawn scenes on which models are compared."""

from __future__ import annotations

import numpy as np

from fcn_jax.data.datasets.shapes import draw_scene
from fcn_jax.plugins.api import IGNORE_INDEX
from fcn_jax.train.losses import segmentation_loss
from fcn_jax.verify.runs import SGD, torch_loss
from fcn_jax.verify.torch_side import import_torch
from fcn_jax.verify.types import Loss


def scenes(
    size: tuple[int, int], batch: int, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Drawn scenes u8[N,H,W,3] and labels u8[N,H,W] below `num_classes` or 255."""
    drawn = (max(64, size[0]), max(64, size[1]))
    scenes = [draw_scene(1000 * seed + i, drawn) for i in range(batch)]
    images = np.stack([image[: size[0], : size[1]] for image, _ in scenes])
    labels = np.stack([mask[: size[0], : size[1]] for _, mask in scenes])
    valid = labels != IGNORE_INDEX
    return images, np.where(valid, labels % num_classes, IGNORE_INDEX).astype(np.uint8)


def thinned(images: np.ndarray) -> np.ndarray:
    """Every n-th pixel of images f32[N,H,W,3], such that 64 to 127 are left, where there are."""
    rows, cols = (max(1, size // 64) for size in images.shape[1:3])
    return images[:, ::rows, ::cols]


def cross_entropy(labels: np.ndarray) -> Loss:
    """The loss of training, on labels u8[N,H,W]."""
    torch = import_torch()
    target = torch.from_numpy(labels).long()
    return Loss(
        lambda outputs: torch_loss(outputs, target),
        lambda outputs, labels: segmentation_loss(outputs, labels, SGD.aux_weight),
        labels,
    )


def training_batch(
    size: tuple[int, int], batch: int, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scenes with noise. Without it, flat areas tie the pixels of whole pooling windows."""
    images, labels = scenes(size, batch, num_classes, seed)
    noise = np.random.default_rng(seed).integers(-16, 17, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8), labels
