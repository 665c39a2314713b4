"""A folder of JPEG files with masks: drawn scenes with noise, in the size of photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fcn_jax.data.datasets.shapes import SHAPES_CLASSES, draw_scene

SIZE = (375, 500)
CAMERA = (3000, 4000)
QUALITY = 92


def write(root: Path, count: int, size: tuple[int, int] = SIZE) -> Path:
    """Write `count` images as split `train`, in the layout of the `folder` dataset.

    A file is about as large as one of VOC's, 100 KB, at its size; at a camera's, where the scene is
    enlarged, it is 3 MB.
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
