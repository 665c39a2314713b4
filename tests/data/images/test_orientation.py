"""Pictures are upright for each EXIF orientation and format, as by Pillow's `exif_transpose`."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fcn_jax.api import Record
from fcn_jax.data.decode import decode_record, read_image, read_mask, read_stored_mask
from fcn_jax.data.geometry import resize
from fcn_jax.data.images import orientation
from fcn_jax.errors import DataError
from tests.helpers.png_files import chunk, png_bytes
from tests.helpers.tiff_files import tiff_bytes


def picture(height: int = 64, width: int = 96) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack(
        [rows * 255 // height, columns * 255 // width, (rows + columns) * 255 // (height + width)],
        -1,
    ).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, turn: int | None = None, **options: object) -> bytes:
    exif = Image.Exif()
    if turn is not None:
        exif[orientation.TAG] = turn
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def shown(data: bytes) -> np.ndarray:
    """The picture as Pillow turns it upright."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


KINDS = {"JPEG": {}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_lzw"}}


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_upright_in_every_format(kind: str, turn: int) -> None:
    data = encoded(picture(), kind, turn, **KINDS[kind])
    image = read_image(data)
    assert image.shape == ((64, 96, 3) if turn < 5 else (96, 64, 3))
    assert np.array_equal(image, shown(data))
    assert image.flags.c_contiguous


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_masks_are_upright_in_every_format(kind: str, turn: int) -> None:
    labels = picture()[..., 0] // 40
    pixels = np.repeat(labels[..., None], 3, -1) if kind == "WEBP" else labels
    data = encoded(pixels, kind, turn, **KINDS[kind])
    values = read_stored_mask(data).values
    assert np.array_equal(values if values.ndim == 2 else values[..., 0], shown(data)[..., 0])


@pytest.mark.parametrize("turn", range(1, 9))
def test_wide_images_and_compressed_bits_are_upright(turn: int) -> None:
    wide = picture()[..., 0].astype(np.uint16) * 16
    upright = orientation.upright(picture()[..., 0], turn)
    image = read_image(tiff_bytes(wide, tags={orientation.TAG: (turn,)}))[..., 0]
    assert np.abs(image.astype(int) - upright).max() <= 1
    buffer = io.BytesIO()
    Image.fromarray(wide > 2000).save(
        buffer, "TIFF", compression="group4", tiffinfo={orientation.TAG: turn}
    )
    assert np.array_equal(
        read_stored_mask(buffer.getvalue()).values,
        orientation.upright((wide > 2000).astype(np.uint8), turn),
    )


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.15, 0.05, 0.7, 1.3])
def test_turned_jpeg_is_resized_like_its_upright_copy(turn: int, factor: float) -> None:
    rows, columns = np.mgrid[:101, :151]
    smooth = (
        127
        + 60 * np.stack([np.sin(rows / 15 + p) + np.cos(columns / 19 + p) for p in range(3)], -1)
    ).astype(np.uint8)
    data = encoded(smooth, "JPEG", turn, quality=95)
    mask = orientation.upright(picture(101, 151)[..., 0] // 60, turn)
    record = Record("a", data, encoded(mask, "PNG"))
    example = decode_record(record, 5, factor=factor)
    whole = resize(decode_record(record, 5), factor)
    assert example.image.shape[:2] == example.mask.shape == whole.mask.shape
    assert np.array_equal(example.mask, whole.mask)
    assert np.abs(example.image.astype(int) - whole.image).max() < 8


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_invalid_tag_means_upright(value: int) -> None:
    assert np.array_equal(read_image(encoded(picture(), "PNG", value)), picture())
    assert np.array_equal(
        read_image(tiff_bytes(picture(), tags={orientation.TAG: (value,)})), picture()
    )


@given(
    st.binary(max_size=80),
    st.sampled_from(
        [b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"Exif\0\0II*\0\x08\0\0\0\x01\0"]
    ),
)
def test_decodes_pictures_with_garbage_in_the_exif_block(garbage: bytes, start: bytes) -> None:
    assert orientation.from_exif(start + garbage) in range(1, 9)
    data = png_bytes(picture(4, 6), 8, 2, chunks=(chunk(b"eXIf", start + garbage),))
    assert read_image(data).size == 4 * 6 * 3


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("long", [False, True])
def test_reads_the_tag_in_both_byte_orders_and_after_other_segments(order: str, long: bool) -> None:
    value = struct.pack(order + ("I" if long else "H"), 6).ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = (
        struct.pack(order + "HHII", 0x010F, 2, 1, 0)
        + struct.pack(order + "HHI", orientation.TAG, 4 if long else 3, 1)
        + value
    )
    exif = b"Exif\0\0" + mark + struct.pack(order + "IH", 8, 2) + entries + b"\0" * 4
    jpeg = encoded(picture(), "JPEG")
    other = b"\xff\xe1" + struct.pack(">H", 40) + b"http://ns.adobe.com/xap/1.0/\0".ljust(38, b"x")
    data = (
        jpeg[:2] + other + b"\xff\xff\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + jpeg[2:]
    )
    assert read_image(data).shape == (96, 64, 3)


def test_does_not_copy_an_upright_picture() -> None:
    pixels = picture()
    assert orientation.upright(pixels, 1) is pixels


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_error_for_a_mask_on_the_stored_pixels_names_the_tag(turn: int, tmp_path: Path) -> None:
    paths = tmp_path / "photo.jpg", tmp_path / "photo.png"
    paths[0].write_bytes(encoded(picture(), "JPEG", turn))
    paths[1].write_bytes(encoded(np.zeros((64, 96), np.uint8), "PNG"))
    with pytest.raises(DataError) as caught:
        decode_record(Record("photo", *paths), 2)
    message = str(caught.value)
    assert f"{paths[1]}: the mask is 96x64 (width x height) but its image photo is 64x96" in message
    assert f"the EXIF orientation tag of the image's file is {turn}" in message
    assert "\n" not in message


def test_error_distinguishes_a_tag_of_the_mask_from_no_tag() -> None:
    image = encoded(picture(), "JPEG")
    with pytest.raises(
        DataError, match="a quarter turn apart: the EXIF orientation tag of the mask's file is 8"
    ):
        decode_record(Record("a", image, encoded(np.zeros((64, 96), np.uint8), "PNG", 8)), 2)
    with pytest.raises(DataError, match="neither file has an EXIF orientation tag"):
        decode_record(Record("a", image, encoded(np.zeros((96, 64), np.uint8), "PNG")), 2)


def test_image_and_mask_can_both_have_the_tag() -> None:
    labels = (picture()[..., 1] > 100).astype(np.uint8)
    example = decode_record(Record("a", encoded(picture(), "PNG", 6), encoded(labels, "PNG", 6)), 2)
    assert np.array_equal(example.mask, example.image[..., 1] > 100)
    assert np.array_equal(example.image, cv2.rotate(picture(), cv2.ROTATE_90_CLOCKWISE))
    assert read_mask(encoded(labels, "PNG", 6), 2).shape == (96, 64)
