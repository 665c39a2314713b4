"""Folder datasets of drawn scenes with noise, as large as photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fcn_jax.data.datasets.shapes import SHAPES_CLASSES, draw_scene

SIZE = (375, 500)
"""Height and width of an image of Pascal VOC."""

CAMERA = (3000, 4000)
"""Height and width of a camera's photograph."""

QUALITY = 92


def write(root: Path, count: int, size: tuple[int, int] = SIZE) -> Path:
    """Write `count` JPEG images and their masks as split `train` of a `folder` dataset.

    A file takes about 100 KB at the default size, as in Pascal VOC, and 3 MB at the size `CAMERA`.

    Args:
        root: the folder.
        count: number of images.
        size: height and width; scenes are enlarged to it.
    """
    images, masks = root / "images" / "train", root / "masks" / "train"
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for number in range(count):
        image, mask = draw_scene(number, SIZE)
        if size != SIZE:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
            mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        grain = np.random.default_rng(number).normal(0, 12 if size == SIZE else 4, image.shape)
        noisy = np.clip(image + grain, 0, 255).astype(np.uint8)
        cv2.imwrite(
            str(images / f"{number:04d}.jpg"), noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        )
        cv2.imwrite(str(masks / f"{number:04d}.png"), mask)
    (root / "classes.txt").write_text("\n".join(SHAPES_CLASSES.names) + "\n")
    return root
