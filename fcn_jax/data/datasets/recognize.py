"""Which dataset a folder holds, by its layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fcn_jax.data.datasets import ade20k, camvid, cityscapes, coco, cvat, pets, sbd, voc, voc_aug
from fcn_jax.errors import DataError

_FINDERS: dict[str, tuple[str, Callable[[Path], object | None]]] = {
    "cvat": ("a CVAT export", cvat.find),
    "camvid": ("CamVid", camvid.find),
    "cityscapes": ("Cityscapes", cityscapes.find),
    "ade20k": ("ADE20K", ade20k.find),
    "pets": ("the Oxford-IIIT Pet dataset", pets.find),
    "coco_voc": ("COCO", coco.find),
    "voc2012_aug": ("PASCAL VOC with SBD's masks", voc_aug.find),
    "sbd": ("SBD", sbd.find),
    "voc2012": ("PASCAL VOC", voc.find_devkit),
}
"""Dataset -> its name in messages, and the function that finds it in a folder. More special layouts
come first."""


def recognize(root: Path, without: str = "") -> str | None:
    """The registered dataset whose layout a folder has; None if nothing is known.

    Args:
        root: the folder.
        without: a dataset that is known not to fit.
    """
    for name, (_, find) in _FINDERS.items():
        try:
            if name != without and find(root) is not None:
                return name
        except DataError:  # a folder cannot be read
            return None
    return None


def looks_like(root: Path, without: str = "") -> str:
    """A phrase such as "data looks like CamVid: use the dataset camvid"; see `recognize`."""
    name = recognize(root, without)
    return f"{root} looks like {_FINDERS[name][0]}: use the dataset {name}" if name else ""
