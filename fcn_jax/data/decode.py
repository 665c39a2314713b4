"""Encoded images and masks to arrays. Every error names the file.

Both are turned upright by the EXIF orientation in their files, as a viewer shows them and an
annotation tool lets one draw on them. Images become 8-bit RGB, or other channels, or keep their
stored values (`fcn_jax.data.value_range`); masks keep their stored values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fcn_jax.data.contents import name_of, read_bytes
from fcn_jax.data.geometry import resize_image, resize_mask
from fcn_jax.data.images import formats, jpeg, mat, npy, orientation, png, tiff
from fcn_jax.data.images.formats import Wide
from fcn_jax.data.images.tiff_samples import samples
from fcn_jax.data.labels.label_map import LabelMap, as_label_map
from fcn_jax.data.labels.mask_labels import to_labels
from fcn_jax.data.labels.mask_values import StoredMask
from fcn_jax.data.value_range import Scaling, scaled
from fcn_jax.errors import DamagedError, DataError, SizeMismatchError
from fcn_jax.plugins.api import Example, Record

_REDUCTIONS = ((1 / 16, 8), (1 / 6, 4), (1 / 2, 2))
"""(largest factor, reduction) for JPEGs that are to be shrunk. The decoder leaves out high
frequencies, which averaging of pixels would only damp: the more averaging follows, the smaller the
difference. At these factors it is about 2 of 255 in the mean over VOC's photographs, and tens on
stripes or checkers of a few pixels that are not a multiple of the reduction."""

_SAVE = "save it as an indexed or gray PNG"


def read_image(
    image: Path | bytes,
    *,
    name: str | None = None,
    value_range: Scaling | None = None,
    reduction: int = 1,
    channels: int = 3,
) -> np.ndarray:
    """Decode an image, upright.

    Args:
        image: a file, or its contents.
        name: the name of the image in an error; by default its path.
        value_range: for an image of more than 8 bits, the stored numbers that become 0 and 255, or
            the assumption over a dataset (`fcn_jax.data.value_range.assumed`); or `Stored`, which
            keeps the stored numbers of every image. None takes the range
            that the file declares, or else the smallest of 8, 10, 12, 14 and 16 bits that holds its
            largest value (for floating point numbers, the smallest of 1, 255, 1023, 4095, 16383 and
            65535).
        reduction: 1, or for a JPEG 2, 4 or 8, by which its sides are divided during decoding,
            rounded up.
        channels: C. For 3, the picture in RGB that a viewer shows, without alpha; for 1, its gray;
            otherwise all channels of the file, of which there must be C.

    Returns:
        u8[H,W,C]; of the type of a `Stored`, if `value_range` is one.

    Raises:
        DamagedError: the file is truncated or corrupt, or not an image.
        DataError: the file is missing or unreadable, too large, of a kind that is not decoded, or
            has another number of channels; or its values do not fit the range.
    """
    name = name or name_of(image)
    data = read_bytes(image, name)
    return orientation.upright(*_stored_image(data, name, value_range, reduction, channels))


def read_mask(mask: Path | bytes, labels: int | LabelMap, *, name: str | None = None) -> np.ndarray:
    """Decode a mask, upright, to labels by the rules of `fcn_jax.data.labels.mask_labels`.

    Args:
        mask: a file, or its contents, in a lossless format.
        labels: the map of the stored values; or the number of classes K, for masks that store
            labels 0 to K-1 and `IGNORE_INDEX`.
        name: the name of the mask in an error; by default its path.

    Returns:
        u8[H,W] of labels 0 to K-1 or `IGNORE_INDEX`.

    Raises:
        DamagedError: the file is truncated or corrupt, or not an image.
        DataError: as for `read_stored_mask`; or a value or color of the mask has no label.
    """
    name = name or name_of(mask)
    return to_labels(read_stored_mask(mask, name=name), as_label_map(labels), name=name)


def read_stored_mask(mask: Path | bytes, *, name: str | None = None) -> StoredMask:
    """Decode a mask, upright, to the values that its file stores, before they become labels.

    Gray values are not scaled: in a PNG or TIFF of n bits they are 0 to 2**n - 1, even if the file
    shows the lowest as white. An alpha channel is dropped; in a gray mask it must be constant.

    Args:
        mask: a file, or its contents, in a lossless format.
        name: the name of the mask in an error; by default its path.

    Raises:
        DamagedError: the file is truncated or corrupt, or not an image.
        DataError: the file is missing, unreadable or lossy; its pixels are neither gray, indexed
            nor RGB; or its values are not whole numbers from 0 to 65535 (RGB: 0 to 255).
    """
    name = name or name_of(mask)
    return _stored_mask(read_bytes(mask, name), name)[0]


def decode_record(
    record: Record,
    labels: int | LabelMap,
    *,
    factor: float = 1.0,
    value_range: Scaling | None = None,
    channels: int = 3,
) -> Example:
    """Decode an image and its mask, and resize them as `fcn_jax.data.geometry.resize` does.

    Args:
        record: the encoded pair.
        labels: see `read_mask`.
        factor: the factor of the resize, over 0. A JPEG that is to be shrunk to half or less is
            decoded at a fraction of its size, which takes less time and memory.
        value_range: how values become those of the image; see `read_image`.
        channels: channels of the image; see `read_image`.

    Returns:
        The decoded pair, of one size.

    Raises:
        DamagedError: as for `read_image` and `read_mask`.
        SizeMismatchError: the two differ in size.
        DataError: as for `read_image` and `read_mask`.
    """
    image_name = name_of(record.image, f"image of {record.id}")
    mask_name = name_of(record.mask, f"mask of {record.id}")
    try:
        data = read_bytes(record.image, image_name)
        whole = jpeg.stored_size(data, image_name) if data.startswith(jpeg.SIGNATURE) else None
        # A side of less than a pixel would have to be enlarged again.
        reducible = whole is not None and min(whole) * factor >= 1
        reduction = next((by for largest, by in _REDUCTIONS if reducible and factor <= largest), 1)
        image, image_turn = _stored_image(data, image_name, value_range, reduction, channels)
        stored, mask_turn = _stored_mask(read_bytes(record.mask, mask_name), mask_name)
    except DamagedError as error:
        raise DamagedError(f"{error}, or skip damaged files with data.damaged=skip") from error
    whole = whole or (image.shape[0], image.shape[1])
    size = whole[::-1] if orientation.swaps_sides(image_turn) else whole
    mask_size = stored.values.shape[:2]
    if size != mask_size:
        raise SizeMismatchError(
            f"{mask_name}: the mask is {_wide_by_high(mask_size)} (width x height) but its image "
            f"{record.id} is {_wide_by_high(size)}; "
            f"{_why_sizes_differ(size, image_turn, mask_size, mask_turn)}"
        )
    mask = to_labels(stored, as_label_map(labels), name=mask_name)
    if reduction > 1:
        # Before the turn: the last pixels of a reduced image may lie partly beyond the edge.
        image = resize_image(image, whole, factor, reduction=reduction)
        image = orientation.upright(image, image_turn)
    else:
        image = resize_image(orientation.upright(image, image_turn), size, factor)
    return Example(record.id, image, resize_mask(mask, factor))


def _stored_image(
    data: bytes, name: str, value_range: Scaling | None, reduction: int, channels: int
) -> tuple[np.ndarray, int]:
    """The image before it is turned upright, [H,W,C], and its orientation."""
    pixels, turn = formats.decode(data, name, reduction, channels)
    result = scaled(pixels, value_range, name)
    # Gray and CMYK of more than 8 bits become RGB only now.
    is_wide = isinstance(pixels, Wide) and channels == 3
    return (formats.rgb(result, name) if is_wide else result), turn


def _stored_mask(data: bytes, name: str) -> tuple[StoredMask, int]:
    """The upright mask and the orientation in its file."""
    if data.startswith(jpeg.SIGNATURE):
        raise DataError(
            f"{name}: a mask must not be a JPEG, whose compression changes labels; {_SAVE}"
        )
    if data.startswith(png.SIGNATURE):
        parsed = png.parse(data, name)
        values, colors = _of_png(parsed)
        bits, turn = parsed.depth, parsed.orientation
    elif data.startswith(tiff.SIGNATURES):
        tags = tiff.parse(data, name)
        values, colors = _of_tiff(tags, data)
        # If 0 is shown as white, a value is not its gray on a screen.
        bits = tags.bits if tags.photometric == tiff.BLACK_IS_ZERO else 8
        turn = tags.orientation
    elif data.startswith(mat.SIGNATURE):
        values, colors, turn, bits = mat.segmentation(data, name), None, 1, 8
    elif data.startswith(npy.SIGNATURE):
        values, colors, turn = _of_npy(data, name), None, 1
        bits = 8 * values.dtype.itemsize
    else:
        values, colors, turn, bits = _by_pillow(data, name)
    if colors is not None or values.ndim == 3:
        bits = 8
    palette = None if colors is None else np.ascontiguousarray(colors[:256], np.uint8)
    return StoredMask(orientation.upright(np.ascontiguousarray(values), turn), palette, bits), turn


def _of_png(parsed: png.Png) -> tuple[np.ndarray, np.ndarray | None]:
    values, colors = parsed.values(), None
    if parsed.color == png.INDEXED:
        size = len(parsed.palette) // 3 * 3
        colors = np.frombuffer(parsed.palette, np.uint8, size).reshape(-1, 3)
    elif parsed.color == png.GRAY_ALPHA:
        values = _without_alpha(values, parsed.name)
    elif parsed.color in (png.RGB, png.RGBA):
        values = _plain_rgb(values, parsed.name)
    return values, colors


def _of_tiff(tags: tiff.Tiff, data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    name = tags.name
    if tags.is_lossy:
        raise DataError(
            f"{name}: a mask must not have a lossy compression, which changes labels; {_SAVE}"
        )
    if tags.format not in (tiff.UNSIGNED, tiff.SIGNED):
        raise DataError(
            f"{name}: a mask of floating point values; save it as a gray PNG of 8 or 16 bits whose "
            "values are the labels"
        )
    is_rgb = tags.photometric == tiff.RGB
    if tags.color_channels != (3 if is_rgb else 1):
        raise DataError(
            f"{name}: a mask of {tags.channels} channels and photometric interpretation "
            f"{tags.photometric}; save it as an indexed, gray or RGB PNG"
        )
    values = samples(tags, data)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(_beyond(values, name))
    values = values.astype(np.uint8 if tags.bits <= 8 else np.uint16)
    if is_rgb:
        if tags.bits < 8:
            raise DataError(
                f"{name}: a mask of RGB values of {tags.bits} bits; save it with 8 bits, as RGB or "
                "indexed PNG"
            )
        return _plain_rgb(values, name), None
    values = values[..., 0] if tags.channels == 1 else _without_alpha(values, name)
    if tags.photometric != tiff.INDEXED:
        return values, None
    if values.max() > 255:
        raise DataError(
            f"{name}: an indexed mask with indices over 255 (up to {values.max()}); save it as a "
            "gray PNG of 16 bits"
        )
    return values.astype(np.uint8), tags.colors


def _of_npy(data: bytes, name: str) -> np.ndarray:
    values = npy.decode(data, name, labels=True)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind == "f":
        several = values.ndim == 3 and np.isin(values, (0, 1, 255)).all()
        raise DataError(
            f"{name}: a mask as an array of {values.dtype.name} and shape {values.shape}; save its "
            "labels as uint8 or uint16 of shape (height, width)"
            + ", or set model.task=multilabel if each class has a channel"
            * bool(several)
        )
    if values.min() < 0 or values.max() > 65535:
        raise DataError(_beyond(values, name))
    return values.astype(np.uint8 if values.max() <= 255 else np.uint16)


def _beyond(values: np.ndarray, name: str) -> str:
    return (
        f"{name}: the mask holds values from {values.min()} to {values.max()}; labels are at least "
        "0 and at most 65535"
    )


def _by_pillow(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray | None, int, int]:
    opened = formats.open_by_pillow(data, name)
    mode, kind = opened.mode, opened.format
    if kind == "AVIF" or (kind == "WEBP" and formats.is_lossy_webp(data)):
        raise DataError(
            f"{name}: a mask must not be a lossy {kind}, whose compression changes labels; {_SAVE}"
        )
    if mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise DataError(
            f"{name}: a mask of Pillow mode {mode!r}; save it as an 8-bit indexed or gray PNG "
            "whose values are the labels"
        )
    colors = np.array(opened.getpalette("RGB"), np.uint8).reshape(-1, 3) if mode == "P" else None
    values = np.array(opened, np.uint8)
    if mode == "RGBA":
        values = _plain_rgb(values, name)
    return values, colors, formats.pillow_orientation(opened), 1 if mode == "1" else 8


def _without_alpha(values: np.ndarray, name: str) -> np.ndarray:
    """[H,W] gray values of [H,W,2] with alpha, which must be constant."""
    if (values[..., 1] != values[0, 0, 1]).any():
        raise DataError(
            f"{name}: a gray mask whose alpha varies, so that the meaning of transparent pixels is "
            "not clear; save it without alpha, void pixels with the value of void"
        )
    return values[..., 0]


def _plain_rgb(values: np.ndarray, name: str) -> np.ndarray:
    """u8[H,W,3] of RGB or RGBA values, whose alpha must not add to the colors.

    Values of 16 bits must hold the same byte twice.
    """
    colors = values[..., :3]
    has_alpha = values.shape[-1] == 4 and (values[..., 3] != values[0, 0, 3]).any()
    # Editors leave a transparent background black, and erased pixels in their old color.
    if has_alpha and (colors[values[..., 3] == 0].any() or (colors == colors[0, 0]).all()):
        raise DataError(
            f"{name}: an RGBA mask whose transparent pixels have colors, or whose colors are the "
            "same everywhere, so that the meaning of transparent pixels is not clear; save it "
            "without alpha"
        )
    if colors.dtype == np.uint8:
        return colors
    if ((colors >> 8) != (colors & 255)).any():
        raise DataError(
            f"{name}: a mask of RGB values of 16 bits that do not fit into 8 bits; save it as an "
            "indexed, gray or 8-bit RGB PNG"
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
            "they are a quarter turn apart and neither file has an EXIF orientation tag: one of "
            "them was turned, or lost its tag, when it was saved. Turn it, or export it again"
        )
    return (
        f"they are a quarter turn apart: {' and '.join(tags)}, and files are read upright, as a "
        "viewer shows them. Draw or export the mask on the upright picture; if the mask follows "
        "the stored pixels, remove the tag from the image"
    )
