"""Small datasets in the layout of `folder`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fcn_jax.config import Config, parse
from fcn_jax.recipes import override

HEIGHT, WIDTH = 8, 12
CLASSES = "bg\nroad\ncar\n"


def stripes(*values: int) -> np.ndarray:
    """A mask u8[8,12] of equal vertical stripes of these values."""
    columns = np.array(values, np.uint8)[np.arange(WIDTH) * len(values) // WIDTH]
    return np.ascontiguousarray(np.broadcast_to(columns, (HEIGHT, WIDTH)))


def noise(seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A random image."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


class Folder:
    """A dataset that a test fills with pairs."""

    def __init__(self, root: Path, classes: str = CLASSES) -> None:
        self.root, self.count = root, 0
        root.mkdir(exist_ok=True)
        (root / "classes.txt").write_text(classes)

    def add(
        self, split: str, mask: np.ndarray, image: np.ndarray | None = None, name: str = ""
    ) -> tuple[Path, Path]:
        """Write a pair, with an image of its own by default; return the files."""
        self.count += 1
        name = name or f"{split[0]}{self.count}"
        arrays = {"images": noise(self.count) if image is None else image, "masks": mask}
        for kind, array in arrays.items():
            path = self.root / kind / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        return tuple(self.root / kind / split / f"{name}.png" for kind in arrays)

    def fill(self, train: int = 4, val: int = 2) -> "Folder":
        """Add sound pairs."""
        for split, count in (("train", train), ("val", val)):
            for _ in range(count):
                self.add(split, stripes(0, 1, 2))
        return self

    def config(self, *changes: str) -> Config:
        """The default settings, with a crop of the images' size and small batches."""
        table = {"data": {"root": str(self.root), "dataset": "folder", "batch_size": 2}}
        return parse(override(table, ["data.crop_size=[8,12]", *changes]))


def multilabel_folder(root: Path, masks: Sequence[np.ndarray]) -> Config:
    """Write masks of a channel for each class, the last one of val; return the settings."""
    for number, mask in enumerate(masks):
        split = "val" if number == len(masks) - 1 else "train"
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        image = noise(number, mask.shape[:2])
        Image.fromarray(image).save(root / "images" / split / f"{number}.png")
        np.save(root / "masks" / split / f"{number}.npy", mask)
    (root / "classes.txt").write_text("cracked\nwet\nrusty\n")
    changes = [f"data.root={root}", "data.dataset=folder", "model.task=multilabel"]
    return parse(override({}, [*changes, "data.crop_size=[4,6]", "data.batch_size=2"]))


def channels(*labeled: int) -> np.ndarray:
    """A mask u8[4,6,3], whose class k has the first `labeled[k]` rows; -1 ignores it everywhere."""
    mask = np.zeros((4, 6, 3), np.uint8)
    for label, rows in enumerate(labeled):
        mask[: rows if rows > 0 else None, :, label] = 1 if rows > 0 else 255 if rows else 0
    return mask
