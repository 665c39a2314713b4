"""VOC2012 with the additional training images of SBD: 10,582 images to train on, 1,449 to evaluate.

    train = (VOC train + SBD train + SBD val) - VOC val

SBD's lists contain images of VOC val, which are left out. VOC's own masks are used where there are
any. The masks of the other images come from SBD's `.mat` files, or from `SegmentationClassAug/`
next to VOC's `SegmentationClass/`, as DeepLab and mmsegmentation have them; then the list
`train_aug.txt` or `trainaug.txt` is read if there is one.

Reference: Chen et al., "DeepLab", arXiv:1606.00915, section 4.1.1.
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.datasets import directory, sbd, voc
from fcn_jax.data.datasets.files import Files
from fcn_jax.data.source import Source
from fcn_jax.errors import DataError, listing
from fcn_jax.plugins.api import Dataset

_NAME = "voc2012_aug"
_COMPLETE = 10_582
_TRAIN = ("train", "train_aug", "trainaug")
_HOLDS = f"{voc.HOLDS}, and the masks of SBD: SegmentationClassAug/ in VOC2012/, or {sbd.HOLDS}"


def find(root: Path) -> tuple[Path, Path] | None:
    """VOC's folder, and SegmentationClassAug or SBD's folder."""
    devkit = voc.find_devkit(root)
    if devkit is None:
        return None
    converted = devkit / "SegmentationClassAug"
    # Other folders next to VOC's may hold anything, so they are not searched.
    neighbor = sbd.find(devkit.parent, nested=False)
    more = converted if converted.is_dir() else sbd.find(root) or neighbor
    return (devkit, more) if more else None


def _open(root: Path | None, split: str) -> Source:
    devkit, more = directory.locate(root, _NAME, _HOLDS, find, (*voc.PACKED, *sbd.PACKED))
    if split not in _TRAIN:
        lists = voc.split_lists(devkit)
        directory.check_split(split, {"train", *(set(lists) - set(_TRAIN))}, devkit)
        return voc.open_devkit(devkit, split)
    return _open_train(devkit, more, split)


def _open_train(devkit: Path, more: Path, split: str) -> Source:
    lists = voc.split_lists(devkit)
    for name in ("train", "val"):
        directory.check_split(name, lists, devkit)
    train, val = (dict.fromkeys(directory.read_ids(lists[name])) for name in ("train", "val"))
    if more.name == "SegmentationClassAug":
        added = directory.files_by_stem(more, (".png",))
        own_lists = [lists[name] for name in _TRAIN[1:] if name in lists]
        ids = _names_in(own_lists[0], val) if own_lists else [*train, *added]
        images = directory.files_by_stem(devkit / "JPEGImages", (".jpg", ".jpeg"))
    else:
        ids = [*train, *sbd.read_split(more, "train"), *sbd.read_split(more, "val")]
        added = directory.files_by_stem(more / "cls", (".mat",))
        images = directory.files_by_stem(more / "img", (".jpg",))
        images |= directory.files_by_stem(devkit / "JPEGImages", (".jpg", ".jpeg"))
    own = directory.files_by_stem(devkit / "SegmentationClass", (".png",))
    masks = Files(more, {**added, **own})
    names = [name for name in dict.fromkeys(ids) if name not in val]
    records = directory.match(names, Files(images.folder, images), masks, split=split, where=devkit)
    source = directory.DirectorySource(voc.VOC_CLASSES, records, voc.VOC_LABELS)
    if len(names) != _COMPLETE:
        of_voc = len(own.keys() & set(names))
        source.notes += (
            f"split '{split}' has {len(names)} images, {of_voc} of them with VOC's masks; the "
            f"complete sets give {_COMPLETE}",
        )
    return source


def _names_in(path: Path, val: dict[str, None]) -> list[str]:
    """The names in a list of names, or of paths of images and masks; none may be in VOC val."""
    names = [Path(line.split()[0]).stem for line in directory.read_ids(path)]
    both = [name for name in names if name in val]
    if both:
        raise DataError(
            f"{path}: {len(both)} images of VOC val are listed for training: {listing(both)}; "
            "remove them, or the whole list, and it is made from the masks"
        )
    return names


VOC2012_AUG = Dataset(
    name=_NAME,
    summary="VOC2012 and SBD, 10,582 training images, without those of VOC val, read in place",
    open=_open,
    classes=voc.VOC_CLASSES,
    reference="https://arxiv.org/abs/1606.00915",
)
