"""Masks: valid files, whose labels are known, and damaged files, whose labels must not change."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzz import damage, product
from fuzz.cases import Trial, mutation
from fuzz.encoders import (
    GRAY,
    GRAY_ALPHA,
    INDEXED,
    by_pillow,
    chunk,
    exif,
    png,
    png_chunks,
    stored,
    tiff,
)
from fuzz.images import write

Rng = np.random.Generator


def labels(rng: Rng, classes: int, void: bool = True) -> np.ndarray:
    """Draw labels in patches, without symmetry: u8[H,W].

    All classes occur, and also 255 if `void`.
    """
    height, width = int(rng.integers(9, 30)), int(rng.integers(9, 30))
    patches = rng.integers(0, classes, (height // 3 + 1, width // 3 + 1), np.uint8)
    result = np.kron(patches, np.ones((3, 3), np.uint8))[:height, :width]
    result.flat[: 2 * classes : 2] = np.arange(classes)
    if void and classes < 255:
        result[-1, : width // 2] = 255
    return np.ascontiguousarray(result)


def same(expected: np.ndarray) -> Callable[[np.ndarray], str | None]:
    """Check that the result has these labels."""

    def right(result: np.ndarray) -> str | None:
        if result.shape != expected.shape:
            return f"{list(result.shape)}, expected {list(expected.shape)}"
        wrong = result != expected
        if wrong.any():
            found, label = int(result[wrong][0]), int(expected[wrong][0])
            return f"{int(wrong.sum())} of {wrong.size} labels differ: {found}, expected {label}"
        return None

    return right


def _trial(
    place: Path,
    data: bytes,
    expected: np.ndarray | None,
    classes: int,
    *,
    refusable: bool = False,
    palette: dict[tuple[int, int, int], int] | None = None,
    name: str = "mask.png",
    void: tuple[int, ...] = (255,),
) -> Trial:
    path = write(place, name, data)
    return Trial(
        call=lambda: product.read_mask(path, classes, palette=palette, void=void),
        right=None if expected is None else same(expected),
        refusable=refusable,
        names=[name],
    )


def _colors(rng: Rng, count: int) -> np.ndarray:
    """Draw different colors: u8[count,3]."""
    codes = rng.choice(2**24, count, replace=False)
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1).astype(np.uint8)


def _mask_of_any_kind(rng: Rng, orientation: int = 1) -> tuple[bytes, np.ndarray, int]:
    """Return a gray or indexed PNG of 1 to 8 bits, its labels, and the number of classes."""
    depth = int(rng.choice([1, 2, 4, 8]))
    classes = int(rng.integers(2, min(2**depth, 200) + 1))
    # Only eight bits can store 255.
    expected = labels(rng, classes, void=depth == 8 and bool(rng.integers(2)))
    options: dict[str, Any] = {
        "depth": depth,
        "interlaced": bool(rng.integers(2)),
        "rng": rng,
        "orientation": orientation,
    }
    kept = stored(expected, orientation)
    if rng.integers(2):
        palette = _colors(rng, 2**depth)
        return png(kept, color=INDEXED, palette=palette, **options), expected, classes
    return png(kept, color=GRAY, **options), expected, classes


@mutation("masks", 5)
def png_of_any_depth(rng: Rng, place: Path) -> Trial:
    """Gray values and palette indices are the labels at any depth: the value 1 is label 1."""
    data, expected, classes = _mask_of_any_kind(rng)
    return _trial(place, data, expected, classes)


@mutation("masks", 3)
def orientation(rng: Rng, place: Path) -> Trial:
    """A mask with an orientation is rotated upright, as viewers do."""
    data, expected, classes = _mask_of_any_kind(rng, int(rng.integers(2, 9)))
    return _trial(place, data, expected, classes, refusable=True)


@mutation("masks", 2)
def sixteen_bits(rng: Rng, place: Path) -> Trial:
    """Values of 16 bits are the labels; they are never scaled."""
    classes = int(rng.integers(2, 200))
    expected = labels(rng, classes, void=bool(rng.integers(2)))
    wide = expected.astype(np.uint16)
    data = (
        png(wide, depth=16, rng=rng)
        if rng.integers(2)
        else tiff(wide, depth=16, order=str(rng.choice(["<", ">"])))
    )
    return _trial(place, data, expected, classes, refusable=True)


@mutation("masks", 1)
def sixteen_bits_beyond_the_classes(rng: Rng, place: Path) -> Trial:
    """Labels above 255 are rejected, and not reduced to their lowest byte."""
    wide = labels(rng, 3, void=False).astype(np.uint16)
    wide[0, 0] = int(rng.choice([256, 257, 300, 511, 512, 65280]))
    data = png(wide, depth=16) if rng.integers(2) else tiff(wide, depth=16)
    return _trial(place, data, None, 3, refusable=True)


@mutation("masks", 3)
def colors(rng: Rng, place: Path) -> Trial:
    """The colors of an RGB or RGBA mask select the classes."""
    classes = int(rng.integers(2, 20))
    expected, table = labels(rng, classes, void=False), _colors(rng, classes)
    palette = {(int(r), int(g), int(b)): label for label, (r, g, b) in enumerate(table)}
    pixels = table[expected]
    if rng.integers(2):
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    return _trial(place, png(pixels, rng=rng), expected, classes, palette=palette)


@mutation("masks", 2)
def one_color_off(rng: Rng, place: Path) -> Trial:
    """One pixel has a color of no class, as at a smoothed edge."""
    classes = int(rng.integers(2, 20))
    expected, table = labels(rng, classes, void=False), _colors(rng, classes)
    palette = {(int(r), int(g), int(b)): label for label, (r, g, b) in enumerate(table)}
    pixels = table[expected]
    y, x = int(rng.integers(pixels.shape[0])), int(rng.integers(pixels.shape[1]))
    pixels[y, x, int(rng.integers(3))] ^= 1
    if tuple(map(int, pixels[y, x])) in palette:
        return colors(rng, place)
    return _trial(place, png(pixels), None, classes, palette=palette)


@mutation("masks", 2)
def indexed_with_colors(rng: Rng, place: Path) -> Trial:
    """A palette has the colors at other indices: the colors select the classes, or an error."""
    classes = int(rng.integers(2, 20))
    expected, table = labels(rng, classes, void=False), _colors(rng, classes)
    palette = {(int(r), int(g), int(b)): label for label, (r, g, b) in enumerate(table)}
    order = rng.permutation(classes)
    data = png(np.argsort(order).astype(np.uint8)[expected], color=INDEXED, palette=table[order])
    return _trial(place, data, expected, classes, palette=palette, refusable=True)


@mutation("masks", 1)
def colors_without_a_palette(rng: Rng, place: Path) -> Trial:
    """A mask is RGB, but the classes have no colors."""
    table = _colors(rng, 3)
    return _trial(place, png(table[labels(rng, 3, void=False)]), None, 3)


@mutation("masks", 2)
def label_out_of_range(rng: Rng, place: Path) -> Trial:
    """One pixel has a label that is neither a class nor a void label."""
    classes = int(rng.integers(2, 200))
    expected = labels(rng, classes, void=False)
    expected[int(rng.integers(expected.shape[0])), int(rng.integers(expected.shape[1]))] = int(
        rng.integers(classes, 255)
    )
    return _trial(place, png(expected, rng=rng), None, classes)


@mutation("masks", 1)
def void_labels(rng: Rng, place: Path) -> Trial:
    """Void labels become 255."""
    classes, voids = int(rng.integers(2, 20)), int(rng.integers(1, 4))
    kept = labels(rng, classes + voids)
    expected = np.where(kept >= classes, 255, kept).astype(np.uint8)
    return _trial(place, png(kept), expected, classes, void=(*range(classes, classes + voids), 255))


@mutation("masks", 2)
def other_formats(rng: Rng, place: Path) -> Trial:
    """TIFF in both byte orders, of 1 to 8 bits, with an orientation; BMP."""
    depth = int(rng.choice([1, 4, 8]))
    classes = int(rng.integers(2, min(2**depth, 100) + 1))
    expected = labels(rng, classes, void=False)
    if rng.integers(4) == 0:
        return _trial(place, by_pillow(expected, "BMP"), expected, classes, name="mask.bmp")
    turn = int(rng.integers(1, 9))
    data = tiff(
        stored(expected, turn),
        depth=depth,
        order=str(rng.choice(["<", ">"])),
        deflated=bool(rng.integers(2)),
        orientation=turn,
    )
    return _trial(place, data, expected, classes, name="mask.tif", refusable=turn > 1 or depth < 8)


@mutation("masks", 1)
def lossy(rng: Rng, place: Path) -> Trial:
    """JPEG and lossy WebP masks are rejected, because they change labels."""
    base = labels(rng, 3, void=False)
    kind = str(rng.choice(["JPEG", "WEBP"]))
    name = str(rng.choice(["mask.png", "mask.tif"]))
    return _trial(
        place,
        by_pillow(np.dstack([base] * 3) if kind == "WEBP" else base, kind, quality=90),
        None,
        3,
        name=name,
    )


@mutation("masks", 1)
def floats(rng: Rng, place: Path) -> Trial:
    """A TIFF of floats: whole numbers are read exactly or rejected, others are rejected."""
    expected = labels(rng, 5, void=False)
    values = expected.astype(np.float32)
    fraction = bool(rng.integers(2))
    if fraction:
        values[0, 0] += 0.5
    return _trial(
        place, tiff(values), None if fraction else expected, 5, refusable=True, name="mask.tif"
    )


@mutation("masks", 1)
def gray_with_alpha(rng: Rng, place: Path) -> Trial:
    """Opaque alpha changes no label; transparent pixels are rejected or keep their label."""
    expected = labels(rng, 5)
    alpha = np.full(expected.shape, 255, np.uint8)
    if rng.integers(2):
        alpha[0, 0] = int(rng.integers(0, 255))
    return _trial(
        place, png(np.dstack([expected, alpha]), color=GRAY_ALPHA), expected, 5, refusable=True
    )


@mutation("masks", 1)
def transparent_color(rng: Rng, place: Path) -> Trial:
    """A tRNS chunk in a gray or indexed mask does not change the labels."""
    expected = labels(rng, 5)
    if rng.integers(2):
        data = png(
            expected, color=GRAY, before=[chunk(b"tRNS", struct.pack(">H", int(rng.integers(5))))]
        )
    else:
        data = png(
            expected,
            color=INDEXED,
            palette=_colors(rng, 256),
            before=[chunk(b"tRNS", rng.bytes(5))],
        )
    return _trial(place, data, expected, 5)


def _damaged(kind: str) -> Callable[[Rng, Path], Trial]:
    def make(rng: Rng, place: Path) -> Trial:
        data, expected, classes = _mask_of_any_kind(rng, int(rng.choice([1, 1, 1, 6])))
        return _trial(place, damage.ALL[kind](rng, data), expected, classes, refusable=True)

    make.__name__ = f"png_{kind}"
    make.__doc__ = "The checksums detect the damage, or the labels are unchanged."
    return make


for _kind, _weight in {
    "flip": 5,
    "overwrite": 3,
    "zero": 3,
    "cut": 4,
    "remove": 2,
    "insert": 2,
    "repeat": 2,
    "newlines": 1,
}.items():
    mutation("masks", _weight)(_damaged(_kind))


@mutation("masks", 2)
def png_data_after_its_checksum(rng: Rng, place: Path) -> Trial:
    """Compressed pixels are damaged, but the chunk's checksum is correct: zlib's detects it."""
    data, expected, classes = _mask_of_any_kind(rng)
    parts = png_chunks(data)
    at = next(k for k, part in enumerate(parts) if part[4:8] == b"IDAT")
    parts[at] = chunk(b"IDAT", damage.some(rng, parts[at][8:-4]))
    return _trial(place, b"".join(parts), expected, classes, refusable=True)


@mutation("masks", 2)
def another_size(rng: Rng, place: Path) -> Trial:
    """The sizes of image and mask differ by a pixel or a factor, or are swapped."""
    height, width = int(rng.integers(5, 30)), int(rng.integers(31, 50))
    other = [
        (width, height),
        (height + 1, width),
        (height, width - 1),
        (height * 2, width * 2),
        (1, 1),
    ][int(rng.integers(5))]
    image = write(place, "photo.png", png(rng.integers(0, 256, (height, width, 3), np.uint8)))
    mask = write(place, "photo_mask.png", png(rng.integers(0, 3, other, np.uint8)))
    return Trial(call=lambda: product.decode_pair(image, mask, 3), names=["photo_mask.png"])


@mutation("masks", 3)
def pairs_with_orientations(rng: Rng, place: Path) -> Trial:
    """An image has an orientation tag, and its mask is upright or has the same tag."""
    expected = labels(rng, 3)
    picture = np.stack([expected * 40, 255 - expected, expected], -1).astype(np.uint8)
    turn = int(rng.integers(2, 9))
    both = bool(rng.integers(2))
    kind = str(rng.choice(["png", "jpg", "webp"]))
    kept = stored(picture, turn)
    if kind == "png":
        data = png(kept, orientation=turn)
    else:
        data = by_pillow(kept, "JPEG" if kind == "jpg" else "WEBP", exif=exif(turn), quality=95)
    image = write(place, f"photo.{kind}", data)
    mask = write(
        place,
        "photo_mask.png",
        png(stored(expected, turn), orientation=turn) if both else png(expected),
    )

    def right(result: tuple[np.ndarray, np.ndarray]) -> str | None:
        pixels, found = result
        if fault := same(expected)(found):
            return f"the mask: {fault}"
        if pixels.shape != picture.shape:
            return f"the image: {list(pixels.shape)}, expected {list(picture.shape)}"
        off = float(np.abs(pixels.astype(int) - picture).mean())
        return f"the image: mean error {off:.0f}" if off > 25 else None

    return Trial(
        call=lambda: product.decode_pair(image, mask, 3),
        right=right,
        refusable=both,
        names=["photo"],
    )


@mutation("masks", 1)
def no_mask_at_all(rng: Rng, place: Path) -> Trial:
    """A file is not a mask."""
    data = [
        b"",
        b"label",
        rng.bytes(200),
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a\1\0\1\0",
        b"II*\0\x08\0\0\0",
    ][int(rng.integers(6))]
    return _trial(place, data, None, 3)
