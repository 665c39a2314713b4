"""Any folder of images and masks, read in place.

    DIR/
      classes.txt          one class a line, in the order of the labels: `name`, or `name R G B`
      images/ID.jpg        JPEG, PNG, BMP, TIFF or WebP
      masks/ID.png         indexed or gray PNG whose values are labels; in colors where every class has its color
      splits/train.txt     optional: the IDs of a split, one a line; as many files as there are splits

In place of `splits/`, each split may have subfolders: `images/train/ID.jpg` and `masks/train/ID.png`. With neither, the images
are divided into `train` and `val` by a hash of their names, about nine to one: the same on every machine, and adding images
moves none from one side to the other.

In `classes.txt` blank lines and lines that start with `#` are skipped. Lines named `void` come last: their labels, and 255, are
pixels that neither the loss nor a metric counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fcn_jax.api import IGNORE_INDEX, Classes, Dataset, Source
from fcn_jax.data.decode import Color
from fcn_jax.data.directory import IMAGE_SUFFIXES, DirectorySource, check_split, files_by_stem, match, read_ids, require_root
from fcn_jax.errors import DataError, listing
from fcn_jax.palette import voc_palette
from fcn_jax.text_file import read_text

_MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")


def read_classes(path: Path) -> tuple[Classes, tuple[int, ...], dict[Color, int] | None]:
    """Read a `classes.txt`; see the module's docstring.

    Returns:
        The classes; the void labels; and RGB color -> label where every line has a color, else None.

    Raises:
        DataError: the file is missing or empty, a name or color stands twice, a color is not three numbers of 0 to 255, only
            some lines have colors, or `void` is not last. All that is wrong is reported at once.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(
            f"{path}: cannot read the list of classes ({reason}); write one class a line: `name`, or `name R G B`"
        ) from error
    names: list[str] = []
    colors: list[Color | None] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, color = _parse(line)
        if color is not None and max(color) > 255:
            problems.append(f"line {number}: color {color} has a value over 255")
            color = (0, 0, 0)
        if name in names and name != "void":
            problems.append(f"line {number}: class '{name}' stands twice")
        if color is not None and color in colors:
            problems.append(f"line {number}: color {color} is already '{names[colors.index(color)]}'")
        if name != "void" and "void" in names:
            problems.append(
                f"line {number}: '{name}' follows void; void must come last, so that labels count from 0 without gaps"
            )
        names.append(name)
        colors.append(color)
    count = len(names) - names.count("void")
    given = [color for color in colors if color is not None]
    if given and len(given) < len(colors):
        bare = [name for name, color in zip(names, colors, strict=True) if color is None]
        problems.append(f"only some classes have colors; give one to {listing(bare)} too, or to none")
    if not 1 <= count <= 255 or len(names) > 256:
        problems.append(f"{count} classes and {len(names) - count} void lines; there must be 1 to 255 classes, 256 lines at most")
    if problems:
        raise DataError(f"{path}: {'; '.join(problems)}")
    void = (*range(count, len(names)), *(() if len(names) == 256 else (IGNORE_INDEX,)))
    palette = {color: label for label, color in enumerate(given)} if given else None
    shown = tuple(given[:count]) if given else voc_palette(count)
    return Classes(tuple(names[:count]), shown), void, palette


def hash_split(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Divide names into "train" and "val": val takes those whose SHA-256's first eight bytes are divisible by ten.

    Where that leaves a side of two or more images empty, the name of lowest hash goes to val, or that of highest to train.

    Args:
        names: image names without ending.

    Returns:
        The names of each split, in the order given.
    """
    hashes = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names}
    val = {name for name, value in hashes.items() if value % 10 == 0}
    if len(hashes) > 1 and not val:
        val = {min(hashes, key=hashes.__getitem__)}
    elif len(hashes) > 1 and len(val) == len(hashes):
        val.remove(max(hashes, key=hashes.__getitem__))
    return {"train": tuple(name for name in hashes if name not in val), "val": tuple(name for name in hashes if name in val)}


def _parse(line: str) -> tuple[str, Color | None]:
    words = line.split()
    if len(words) >= 4 and all(word.isdecimal() for word in words[-3:]):
        red, green, blue = map(int, words[-3:])
        return " ".join(words[:-3]), (red, green, blue)
    return " ".join(words), None


def _open(root: Path | None, split: str) -> Source:
    root = require_root(root, "folder", "images/, masks/ and classes.txt")
    lacking = [name for name in ("images/", "masks/", "classes.txt") if not (root / name).exists()]
    if lacking:
        raise DataError(f"{root}: {listing(lacking)} missing here; a folder data set holds images/, masks/ and classes.txt")
    classes, void, palette = read_classes(root / "classes.txt")
    subfolders = [path.name for path in sorted((root / "images").iterdir()) if path.is_dir() and not path.name.startswith(".")]
    lists = {path.stem: path for path in sorted((root / "splits").glob("*.txt"))}
    if subfolders and not lists:
        check_split(split, subfolders, root / "images")
        images = files_by_stem(root / "images" / split, IMAGE_SUFFIXES)
        masks = files_by_stem(root / "masks" / split, _MASK_SUFFIXES)
        ids = tuple(images)
    else:
        images = files_by_stem(root / "images", IMAGE_SUFFIXES)
        masks = files_by_stem(root / "masks", _MASK_SUFFIXES)
        if lists:
            check_split(split, lists, root / "splits")
            ids = read_ids(lists[split])
        else:
            parts = hash_split(images)
            check_split(split, parts, root)
            ids = parts[split]
    return DirectorySource(classes, match(ids, images, masks, split=split, where=root), void=void, palette=palette)


FOLDER = Dataset(
    name="folder",
    summary="any folder with images/, masks/ and classes.txt, read in place",
    open=_open,
)
