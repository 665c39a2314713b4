"""Encoded images and masks to arrays, with an error that names the file for each fault.

Both come out upright, as a viewer shows them and an annotation tool lets one draw on them: the EXIF
orientation that a file may carry is applied. Images become 8-bit RGB (`fcn_jax.data.value_range`
says how where they have more bits); masks keep their stored values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fcn_jax.data.images import formats, jpeg, orientation, png, tiff
from fcn_jax.data.images.formats import Wide
from fcn_jax.data.labels.label_map import Color, LabelMap, label_map
from fcn_jax.data.labels.mask_labels import to_labels
from fcn_jax.data.labels.mask_values import StoredMask
from fcn_jax.data.transforms import resize_image, resize_mask
from fcn_jax.data.value_range import Assumed, Range, to_u8
from fcn_jax.errors import DamagedError, DataError
from fcn_jax.plugins.api import IGNORE_INDEX, Example, Record

_REDUCTIONS = ((1 / 16, 8), (1 / 6, 4), (1 / 2, 2))
"""(largest factor, reduction) of JPEGs that are to be shrunk. The decoder leaves out high
frequencies, where averaging pixels damps them: the more averaging follows, the smaller the
difference. At these factors it is about 2 of 255 in the mean over VOC's photographs, and tens on
stripes or chequers of a few pixels that are no multiple of the reduction: averaging in two steps
beats with them in another way."""


def read_image(
    image: Path | bytes,
    *,
    name: str | None = None,
    value_range: Range | Assumed | None = None,
    reduction: int = 1,
) -> np.ndarray:
    """Decode a color or gray image, upright; an alpha channel is dropped.

    Args:
        image: a file, or its contents.
        name: what to call it in an error; the path where there is one.
        value_range: of an image of more than 8 bits, the stored numbers that become 0 and 255, or
            what is assumed over a dataset (`fcn_jax.data.value_range.assumed`). None takes what
            the file declares, or else the smallest of 8, 10, 12, 14 and 16 bits that holds its
            largest value (of floating point numbers, the smallest of 1, 255, 1023, 4095, 16383 and
            65535).
        reduction: 1, or for a JPEG 2, 4 or 8, by which its sides are divided while it is decoded,
            and rounded up.

    Returns:
        u8[H,W,3], RGB.

    Raises:
        DamagedError: the file is truncated or corrupt, or not an image.
        DataError: the file is missing or unreadable, too large, or of a kind that is not decoded;
            its values do not fit the range.
    """
    name = name or _name(image)
    return orientation.upright(*_stored_image(_contents(image, name), name, value_range, reduction))


def read_mask(
    mask: Path | bytes,
    num_classes: int | LabelMap,
    *,
    void: tuple[int, ...] = (IGNORE_INDEX,),
    palette: Mapping[Color, int] | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Decode a mask, upright, to labels; see `fcn_jax.data.labels.mask_labels` for the rules.

    Args:
        mask: a file, or its contents; of a lossless format.
        num_classes: labels 0 to `num_classes - 1` are classes; or what the stored values mean,
            instead of `void` and `palette`.
        void: labels that become `IGNORE_INDEX`.
        palette: RGB color -> label. Where it is given, colors decide for indexed masks, too.
        name: what to call it in an error; the path where there is one.

    Returns:
        u8[H,W] of labels 0 to `num_classes - 1` or `IGNORE_INDEX`.

    Raises:
        DamagedError: the file is truncated or corrupt, or not an image.
        DataError: as `read_stored_mask`; or the mask is in colors without a palette, or with one
            that lacks a color; it holds a label that is neither a class nor void.
    """
    name = name or _name(mask)
    return to_labels(
        read_stored_mask(mask, name=name), label_map(num_classes, void, palette), name=name
    )


def read_stored_mask(mask: Path | bytes, *, name: str | None = None) -> StoredMask:
    """Decode a mask, upright, to the values that its file stores, before they become labels.

    Gray values of any depth are not scaled: of a PNG or TIFF of n bits they are 0 to 2**n - 1, also
    where the lowest is shown as white. Alpha is dropped; of a gray mask it must be the same
    everywhere.

    Args:
        mask: a file, or its contents; of a lossless format.
        name: what to call it in an error; the path where there is one.

    Raises:
        DamagedError: the file is truncated or corrupt, or not an image.
        DataError: the file is missing, unreadable or lossy; its pixels are neither gray, indexed
            nor RGB; its values are not whole numbers from 0 to 65535, or of RGB, 0 to 255.
    """
    name = name or _name(mask)
    return _stored_mask(_contents(mask, name), name)[0]


def decode_record(
    record: Record,
    num_classes: int | LabelMap,
    *,
    void: tuple[int, ...] = (IGNORE_INDEX,),
    palette: Mapping[Color, int] | None = None,
    factor: float = 1.0,
    value_range: Range | Assumed | None = None,
) -> Example:
    """Decode an image and its mask, and resize them.

    See `read_image`, `read_mask` and `fcn_jax.data.transforms.resize`.

    Args:
        record: the encoded pair.
        num_classes: labels 0 to `num_classes - 1` are classes; or what the stored values mean,
            instead of `void` and `palette`.
        void: labels that become `IGNORE_INDEX`.
        palette: RGB color -> label. Where it is given, colors decide for indexed masks, too.
        factor: of the resize, over 0. A JPEG that is to be shrunk to half or less is decoded at a
            fraction of its size, which takes less time and memory; its mask is decoded whole.
        value_range: of an image of more than 8 bits; see `read_image`.

    Returns:
        The decoded pair, of one size.

    Raises:
        DamagedError: as `read_image` and `read_mask`.
        DataError: as `read_image` and `read_mask`, or the two differ in size.
    """
    image_name = str(record.image) if isinstance(record.image, Path) else f"image of {record.id}"
    mask_name = str(record.mask) if isinstance(record.mask, Path) else f"mask of {record.id}"
    try:
        data = _contents(record.image, image_name)
        whole = jpeg.stored_size(data, image_name) if data.startswith(jpeg.SIGNATURE) else None
        # Where less than a pixel is left in height or width, that pixel would have to be enlarged
        # again.
        reducible = whole is not None and min(whole) * factor >= 1
        reduction = next((by for largest, by in _REDUCTIONS if reducible and factor <= largest), 1)
        image, image_turn = _stored_image(data, image_name, value_range, reduction)
        stored, mask_turn = _stored_mask(_contents(record.mask, mask_name), mask_name)
    except DamagedError as error:
        raise DamagedError(f"{error}, or leave out damaged files with data.damaged=skip") from error
    whole = whole or (image.shape[0], image.shape[1])
    size = whole[::-1] if orientation.swaps_sides(image_turn) else whole
    if size != stored.values.shape[:2]:
        raise DataError(
            f"{mask_name}: the mask is {_wide_by_high(stored.values.shape)} (width x height) but its image {record.id} is "
            f"{_wide_by_high(size)}; {_why_sizes_differ(size, image_turn, stored.values.shape[:2], mask_turn)}"
        )
    mask = to_labels(stored, label_map(num_classes, void, palette), name=mask_name)
    if reduction > 1:
        # Before the turn: pixels of a reduced image that lie beyond the edge in part are its last
        # ones.
        image = orientation.upright(
            resize_image(image, whole, factor, reduction=reduction), image_turn
        )
    else:
        image = resize_image(orientation.upright(image, image_turn), size, factor)
    return Example(record.id, image, resize_mask(mask, factor))


def _name(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else f"{len(source)} bytes in memory"


def _contents(source: Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = source.read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"{name}: the file does not exist; check the path") from error
        except OSError as error:
            raise DataError(
                f"{name}: cannot read the file ({error.strerror}); check the path and its permissions"
            ) from error
    if not data:
        raise DamagedError(f"{name}: the file is empty; copy or download it again")
    return data


def _stored_image(
    data: bytes, name: str, value_range: Range | Assumed | None, reduction: int
) -> tuple[np.ndarray, int]:
    """The image before it is turned, u8[H,W,3], and the orientation that its file names."""
    pixels, turn = formats.decode(data, name, reduction)
    return (
        formats.rgb(to_u8(pixels, value_range, name)) if isinstance(pixels, Wide) else pixels
    ), turn


def _stored_mask(data: bytes, name: str) -> tuple[StoredMask, int]:
    """The upright mask and the orientation that its file names."""
    if data.startswith(jpeg.SIGNATURE):
        raise DataError(
            f"{name}: a mask must not be a JPEG, whose compression changes labels; save it as an indexed or gray PNG"
        )
    if data.startswith(png.SIGNATURE):
        parsed = png.parse(data, name)
        values, colors, turn = _of_png(parsed)
        bits = parsed.depth
    elif data.startswith(tiff.SIGNATURES):
        tags = tiff.parse(data, name)
        values, colors, turn = _of_tiff(tags, data)
        # Where 0 is shown as white, a value is not its gray on a screen.
        bits = tags.bits if tags.photometric == tiff.BLACK_IS_ZERO else 8
    else:
        values, colors, turn, bits = _by_pillow(data, name)
    if colors is not None or values.ndim == 3:
        bits = 8
    palette = None if colors is None else np.ascontiguousarray(colors[:256], np.uint8)
    return StoredMask(orientation.upright(np.ascontiguousarray(values), turn), palette, bits), turn


def _of_png(parsed: png.Png) -> tuple[np.ndarray, np.ndarray | None, int]:
    values, colors = parsed.values(), None
    if parsed.color == png.INDEXED:
        colors = np.frombuffer(parsed.palette, np.uint8, len(parsed.palette) // 3 * 3).reshape(
            -1, 3
        )
    elif parsed.color == png.GRAY_ALPHA:
        values = _without_alpha(values, parsed.name)
    elif parsed.color in (png.RGB, png.RGBA):
        values = _rgb_of_8_bits(_with_plain_alpha(values, parsed.name), parsed.name)
    return values, colors, parsed.orientation


def _of_tiff(tags: tiff.Tiff, data: bytes) -> tuple[np.ndarray, np.ndarray | None, int]:
    name = tags.name
    if tags.is_lossy:
        raise DataError(
            f"{name}: a mask must not have a lossy compression, which changes labels; save it as an indexed or gray PNG"
        )
    if tags.format not in (tiff.UNSIGNED, tiff.SIGNED):
        raise DataError(
            f"{name}: a mask of floating point values; save it as a gray PNG of 8 or 16 bits whose values are the labels"
        )
    single = (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO, tiff.INDEXED)
    if not (
        (tags.photometric in single and tags.channels == (2 if tags.has_alpha else 1))
        or (tags.photometric == tiff.RGB and tags.channels in (3, 4))
    ):
        raise DataError(
            f"{name}: a mask of {tags.channels} channels and photometric interpretation {tags.photometric}; "
            "save it as an indexed, gray or RGB PNG"
        )
    values = tiff.samples(tags, data)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{name}: the mask holds values from {values.min()} to {values.max()}; labels are at least 0 and at most 65535"
        )
    values = values.astype(np.uint8 if tags.bits <= 8 else np.uint16)
    if tags.photometric == tiff.RGB:
        if tags.bits < 8:
            raise DataError(
                f"{name}: a mask of RGB values of {tags.bits} bits; save it with 8 bits, as RGB or indexed PNG"
            )
        return _rgb_of_8_bits(_with_plain_alpha(values, name), name), None, tags.orientation
    values = values[..., 0] if tags.channels == 1 else _without_alpha(values, name)
    if tags.photometric != tiff.INDEXED:
        return values, None, tags.orientation
    if values.max() > 255:
        raise DataError(
            f"{name}: an indexed mask with indices over 255 (up to {values.max()}); save it as a gray PNG of 16 bits"
        )
    return values.astype(np.uint8), tags.colors, tags.orientation


def _by_pillow(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray | None, int, int]:
    opened = formats.open_by_pillow(data, name)
    mode, kind = opened.mode, opened.format
    if kind == "AVIF" or (kind == "WEBP" and formats.is_lossy_webp(data)):
        raise DataError(
            f"{name}: a mask must not be a lossy {kind}, whose compression changes labels; save it as an indexed or gray PNG"
        )
    if mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise DataError(
            f"{name}: a mask of Pillow mode {mode!r}; save it as an 8-bit indexed or gray PNG whose values are the labels"
        )
    colors = np.array(opened.getpalette("RGB"), np.uint8).reshape(-1, 3) if mode == "P" else None
    values = np.array(opened, np.uint8)
    if mode == "RGBA":
        values = _with_plain_alpha(values, name)[..., :3]
    return (
        values,
        colors,
        orientation.from_exif(opened.info.get("exif") or b""),
        1 if mode == "1" else 8,
    )


def _without_alpha(values: np.ndarray, name: str) -> np.ndarray:
    """[H,W] of gray values with alpha, [H,W,2]."""
    if (values[..., 1] != values[0, 0, 1]).any():
        raise DataError(
            f"{name}: a gray mask whose alpha varies, so that it is not clear what transparent pixels mean; "
            "save it without alpha, void pixels with the value of void"
        )
    return values[..., 0]


def _with_plain_alpha(values: np.ndarray, name: str) -> np.ndarray:
    """RGB or RGBA values, whose alpha says nothing that the colors do not."""
    if values.shape[-1] == 3 or (values[..., 3] == values[0, 0, 3]).all():
        return values
    colors, transparent = values[..., :3], values[..., 3] == 0
    # Editors leave a transparent background black, and what was erased in its old color.
    if colors[transparent].any() or (colors == colors[0, 0]).all():
        raise DataError(
            f"{name}: an RGBA mask whose transparent pixels have colors, or whose colors are the same everywhere, so that it is not "
            "clear what transparent pixels mean; save it without alpha"
        )
    return values


def _rgb_of_8_bits(values: np.ndarray, name: str) -> np.ndarray:
    """u8[H,W,3] of RGB or RGBA values, of which those of 16 bits hold the same byte twice."""
    colors = values[..., :3]
    if colors.dtype == np.uint8:
        return colors
    if ((colors >> 8) != (colors & 255)).any():
        raise DataError(
            f"{name}: a mask of RGB values of 16 bits that no 8 bits hold; save it as an indexed, gray or 8-bit RGB PNG"
        )
    return (colors & 255).astype(np.uint8)


def _wide_by_high(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _why_sizes_differ(
    image: tuple[int, ...], image_turn: int, mask: tuple[int, ...], mask_turn: int
) -> str:
    if image != mask[::-1]:
        return "export the mask at the image's size (an editor may have scaled or cut one of them)"
    tags = [
        f"the EXIF orientation tag of the {what}'s file is {turn}"
        for what, turn in (("image", image_turn), ("mask", mask_turn))
        if turn != 1
    ]
    if not tags:
        return (
            "they are a quarter turn apart and neither file has an EXIF orientation tag: one of them was turned, or lost its tag, "
            "when it was saved. Turn it, or export it again"
        )
    return (
        f"they are a quarter turn apart: {' and '.join(tags)}, and files are read upright, as a viewer shows them. Draw or export the "
        "mask on the upright picture; if the mask follows the stored pixels, remove the tag from the image"
    )
