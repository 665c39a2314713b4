"""yourname: a dataset for fcn-jax, read from its folder in place.

    DIR/
      images/ID.jpg     or PNG
      masks/ID.png      indexed or gray: the value is the label, 255 is ignored
      train.txt         the IDs of a split, one a line; as many files as there are splits

Replace the layout and the classes with your own. Any fault of a folder must raise a `DataError`
that names it; the tests check that.
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.api import Classes, Dataset, Source
from fcn_jax.data.datasets import directory

_CLASSES = Classes(
    names=("background", "object"),  # the label is the position
    palette=((0, 0, 0), (200, 60, 60)),  # the colors in pictures of the results
)


def _open(root: Path | None, split: str) -> Source:
    """Open a split.

    Args:
        root: the folder that `--data` names; None if it is not given.
        split: name of a split.

    Raises:
        DataError: the folder, the split, an image or a mask is missing.
    """
    root = directory.require_root(root, "yourname", "images/, masks/ and train.txt")
    lists = {path.stem: path for path in sorted(root.glob("*.txt"))}
    directory.check_split(split, lists, root)
    images = directory.files_by_stem(root / "images", directory.IMAGE_SUFFIXES)
    masks = directory.files_by_stem(root / "masks", (".png",))
    # Nothing is decoded here. The pipeline calls the source's `decode`, in several threads or
    # processes.
    records = directory.match(
        directory.read_ids(lists[split]), images, masks, split=split, where=root
    )
    return directory.DirectorySource(_CLASSES, records)


YOURNAME = Dataset(
    name="yourname",
    summary="images/ and masks/ with a list of names for each split, read in place",
    reference="",  # the paper or page that it follows
    open=_open,
    api_version=(2, 0),
)
