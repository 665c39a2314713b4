"""Draw a small dataset as people bring it: photographs, masks of 0 and 255, no list of classes.

    python examples/draw_photographs.py mydata

writes mydata/images/*.jpg, mydata/masks/*.png (white where there is a shape) and mydata/new/*.jpg,
which have no masks. The pictures are textured shapes on textured ground, from fixed seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fcn_jax.data.datasets.shapes import draw_scene

COUNT, NEW = 60, 4
SIZE = (120, 160)


def main(root: Path) -> None:
    """Write the dataset; the folder must be new."""
    for name in ("images", "masks", "new"):
        (root / name).mkdir(parents=True)
    for seed in range(COUNT + NEW):
        image, labels = draw_scene(seed, SIZE)
        folder, name = ("images" if seed < COUNT else "new"), f"photo_{seed:02}"
        Image.fromarray(image).save(root / folder / f"{name}.jpg", quality=95)
        if seed < COUNT:
            # The narrow border around shapes (255) counts as part of them.
            white = np.where(labels == 0, 0, 255).astype(np.uint8)
            Image.fromarray(white).save(root / "masks" / f"{name}.png")
    print(f"{root}: {COUNT} photographs with masks, and {NEW} new ones")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
