"""Decoding: right pixels and labels, and one clear error for every fault of a file."""

import errno
import io
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.api import IGNORE_INDEX, Record
from fcn_jax.data.datasets.shapes import draw_scene
from fcn_jax.data.decode import decode_record, read_image, read_mask, read_stored_mask
from fcn_jax.data.geometry import resize
from fcn_jax.data.labels.label_map import LabelMap
from fcn_jax.errors import DamagedError, DataError
from tests.helpers.png_files import chunk, png_bytes
from tests.helpers.tiff_files import tiff_bytes


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack(
        [rows * 8 % 256, columns * 8 % 256, (rows + columns) * 4 % 256], axis=-1
    ).astype(np.uint8)


def encoded(
    array: np.ndarray, kind: str, palette: list[int] | None = None, **options: object
) -> bytes:
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_reads_lossless_images_exactly_as_rgb(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "pícture.x"
    path.write_bytes(encoded(picture(), kind))
    assert np.array_equal(read_image(path), picture())
    assert np.array_equal(read_image(path.read_bytes()), picture())


def test_gray_images_and_alpha_become_three_channels() -> None:
    gray = picture()[..., 0]
    assert np.array_equal(read_image(encoded(gray, "PNG")), np.repeat(gray[..., None], 3, axis=-1))
    rgba = np.dstack([picture(), np.zeros((20, 30), np.uint8)])
    assert read_image(encoded(rgba, "PNG")).shape == (20, 30, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_image_error_names_the_file(kind: str, kept: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(noise, kind)
    path = tmp_path / "half.img"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"half\.img"):
        read_image(path)


def test_finds_truncation_after_an_embedded_thumbnail() -> None:
    data = encoded(picture(64, 64), "JPEG", comment=b"\xff\xd8 a thumbnail \xff\xd9")
    assert read_image(data).shape == (64, 64, 3)
    with pytest.raises(DamagedError, match="Premature end of JPEG file"):
        read_image(data[:-40])


def test_ignores_bytes_after_the_end_of_a_jpeg() -> None:
    data = encoded(picture(), "JPEG")
    assert np.array_equal(read_image(data + b"\0" * 100), read_image(data))


@pytest.mark.parametrize(
    "contents", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n IEND"]
)
def test_error_for_other_contents_names_the_file(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(contents)
    with pytest.raises(DataError, match=r"odd\.jpg"):
        read_image(path)
    with pytest.raises(DataError, match=r"odd\.jpg"):
        read_mask(path, 3)


def test_missing_file_error_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: the file does not exist"):
        read_image(tmp_path / "gone.jpg")


@given(st.integers(1, 255), st.integers(0, 2**32 - 1), st.sampled_from(["P", "L"]))
def test_index_or_gray_value_is_the_label(classes: int, seed: int, mode: str) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, (7, 9), np.uint8)
    labels[0, 0] = 255
    palette = np.random.default_rng(1).integers(0, 256, 768).tolist() if mode == "P" else None
    assert np.array_equal(read_mask(encoded(labels, "PNG", palette), classes), labels)


def test_void_labels_become_the_ignore_index() -> None:
    labels = np.array([[0, 1, 11, 255]], np.uint8)
    assert read_mask(encoded(labels, "PNG"), LabelMap.of(11, void=(11, 255))).tolist() == [
        [0, 1, IGNORE_INDEX, IGNORE_INDEX]
    ]


def test_rejects_labels_outside_the_classes() -> None:
    labels = np.array([[0, 5, 77, 255]], np.uint8)
    with pytest.raises(
        DataError,
        match=r"m\.png: labels outside the classes: 5, 77; allowed are 0 to 4 and void 255",
    ):
        read_mask(encoded(labels, "PNG"), 5, name="m.png")


def test_reads_colors_by_the_palette_and_rejects_unknown_ones() -> None:
    rules = LabelMap.of(2, palette={(9, 9, 9): 255, (255, 0, 0): 1, (0, 0, 0): 0})
    colors = np.array([[[0, 0, 0], [255, 0, 0], [9, 9, 9]]], np.uint8)
    assert read_mask(encoded(colors, "PNG"), rules).tolist() == [[0, 1, 255]]
    colors[0, 1] = 254, 0, 0
    with pytest.raises(DataError, match=r"m\.png: colors that no class has: \(254, 0, 0\)"):
        read_mask(encoded(colors, "PNG"), rules, name="m.png")
    with pytest.raises(DataError, match="no palette"):
        read_mask(encoded(colors, "PNG"), 2)


def test_rejects_lossy_and_floating_point_masks() -> None:
    with pytest.raises(DataError, match="must not be a JPEG"):
        read_mask(encoded(np.zeros((8, 8), np.uint8), "JPEG"), 2)
    with pytest.raises(DataError, match="must not be a lossy WEBP"):
        read_mask(encoded(np.zeros((8, 8, 3), np.uint8), "WEBP"), 2)
    with pytest.raises(DataError, match="floating point"):
        read_mask(tiff_bytes(np.zeros((8, 8), np.float32)), 2)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_reads_stored_values_of_gray_masks_of_every_depth(bits: int) -> None:
    values = (np.arange(48).reshape(6, 8) * 977 % 2**bits).astype(
        np.uint16 if bits == 16 else np.uint8
    )
    for data in (
        png_bytes(values, bits),
        tiff_bytes(values, bits=bits),
        tiff_bytes(values, bits=bits, photometric=0, order=">"),
    ):
        stored = read_stored_mask(data)
        assert np.array_equal(stored.values, values)
        assert stored.values.dtype == values.dtype
        assert stored.palette is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_reads_index_and_palette_of_indexed_masks_of_every_depth(bits: int) -> None:
    index = (np.arange(48).reshape(6, 8) * 977 % 2**bits).astype(np.uint8)
    colors = np.random.default_rng(0).integers(0, 256, (2**bits, 3), np.uint8)
    chunks = (chunk(b"PLTE", colors.tobytes()), chunk(b"tRNS", b"\0"))
    stored = read_stored_mask(png_bytes(index, bits, 3, chunks=chunks))
    assert np.array_equal(stored.values, index)
    assert np.array_equal(stored.palette[: 2**bits], colors)
    assert not stored.palette[2**bits :].any()
    assert np.array_equal(read_image(png_bytes(index, bits, 3, chunks=chunks)), colors[index])


def test_reads_masks_of_16_bits_by_value() -> None:
    values = np.array([[0, 1, 3, 255]], np.uint16)
    assert read_mask(encoded(values, "PNG"), 4).tolist() == [[0, 1, 3, 255]]
    values[0, 1] = 700
    with pytest.raises(DataError, match=r"m\.png: labels outside the classes: 700"):
        read_mask(encoded(values, "PNG"), 4, name="m.png")


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u4", "u8"])
def test_reads_masks_of_other_whole_numbers_exactly_or_rejects_them(kind: str) -> None:
    values = np.array([[0, 7, 120]]).astype(kind)
    assert read_mask(tiff_bytes(values), 121).tolist() == [[0, 7, 120]]
    values[0, 1] = -1 if kind[0] == "i" else 70000
    with pytest.raises(DataError, match=rf"m\.tif: the mask holds values from .*{values.max()}"):
        read_mask(tiff_bytes(values), 121, name="m.tif")


def test_drops_constant_alpha_of_masks() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for depth in (8, 16):
        gray_alpha = np.dstack([values.astype(np.uint16), np.full((3, 4), 200)])
        assert read_mask(png_bytes(gray_alpha, depth, 4), 12).tolist() == values.tolist()
        gray_alpha[0, 0, 1] = 0
        with pytest.raises(DataError, match=r"m\.png: a gray mask whose alpha varies"):
            read_mask(png_bytes(gray_alpha, depth, 4), 12, name="m.png")
    colors = np.random.default_rng(0).integers(0, 256, (3, 4, 4), np.uint8)
    assert np.array_equal(read_stored_mask(png_bytes(colors, 8, 6)).values, colors[..., :3])


def test_reads_16_bit_colors_that_fit_into_8_bits() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    for data in (
        png_bytes(colors.astype(np.uint16) * 257, 16, 2),
        tiff_bytes(colors.astype(np.uint16) * 257),
    ):
        assert np.array_equal(read_stored_mask(data).values, colors)
    with pytest.raises(DataError, match="RGB values of 16 bits"):
        read_stored_mask(png_bytes(colors.astype(np.uint16), 16, 2))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_scales_images_of_few_bits_to_black_and_white(bits: int) -> None:
    values = (np.arange(48).reshape(6, 8) * 977 % 2**bits).astype(np.uint8)
    for data in (png_bytes(values, bits), tiff_bytes(values, bits=bits)):
        assert np.array_equal(read_image(data)[..., 0], values * (255 // (2**bits - 1)))


def test_error_for_different_sizes_names_both() -> None:
    record = Record(
        "a", encoded(picture(20, 30), "PNG"), encoded(np.zeros((30, 20), np.uint8), "PNG")
    )
    with pytest.raises(DataError, match=r"mask of a: the mask is 20x30 .* image a is 30x20"):
        decode_record(record, 2)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that shows shifts by a fraction of a pixel, whose averages depend on no grid."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 15 + phase) + np.cos(columns / 19 + phase) for phase in range(3)]
    return (127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.floats(0.01, 0.5),
    st.sampled_from(["420", "444", "progressive"]),
)
def test_shrunk_jpeg_matches_the_resized_whole(
    height: int, width: int, factor: float, kind: str
) -> None:
    options = (
        {"progressive": True}
        if kind == "progressive"
        else {"subsampling": 0 if kind == "444" else 2}
    )
    mask = np.random.default_rng(0).integers(0, 5, (height, width), np.uint8)
    record = Record(
        "a", encoded(smooth(height, width), "JPEG", quality=95, **options), encoded(mask, "PNG")
    )
    whole, shrunk = (
        resize(decode_record(record, 5), factor),
        decode_record(record, 5, factor=factor),
    )
    assert np.array_equal(shrunk.mask, whole.mask)
    assert shrunk.image.shape == whole.image.shape
    off = np.abs(shrunk.image.astype(int) - whole.image)
    assert off.mean() < 2.5
    assert off.max() < 8


@pytest.mark.parametrize(("factor", "reduction"), [(1 / 2, 2), (1 / 6, 4), (1 / 16, 8)])
def test_shrunk_jpeg_is_decoded_small_without_a_shift_at_its_edges(
    factor: float, reduction: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode_jpeg = [], simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg,
        "decode_jpeg",
        lambda *args, **keys: decoded.append(decode_jpeg(*args, **keys)) or decoded[-1],
    )
    # One pixel more than whole blocks: taken for a whole reduced pixel, it would stretch the
    # picture by almost one.
    height, width = 64 * 3 + 1, 64 * 4 + 1
    ramp = np.add.outer(np.arange(height), np.arange(width)) / (height + width) * 255
    image = encoded(np.repeat(ramp[..., None], 3, axis=-1).astype(np.uint8), "JPEG", quality=98)
    record = Record("a", image, encoded(np.zeros((height, width), np.uint8), "PNG"))
    shrunk, whole = (
        decode_record(record, 1, factor=factor).image,
        resize(decode_record(record, 1), factor).image,
    )
    pixel = 255 / (height + width) / factor  # what a shift by one pixel of the result comes to
    assert abs(shrunk.astype(float) - whole)[:, -2:].mean() < pixel / 6 + 0.5
    assert abs(shrunk.astype(float) - whole)[-2:].mean() < pixel / 6 + 0.5
    assert decoded[0].shape == (-(-height // reduction), -(-width // reduction), 3)


@pytest.mark.parametrize(
    ("factor", "kind"), [(0.51, "JPEG"), (1.7, "JPEG"), (0.1, "PNG"), (0.1, "BMP")]
)
def test_other_images_are_resized_from_the_whole(factor: float, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (101, 151, 3), np.uint8)
    record = Record("a", encoded(noise, kind), encoded(noise[..., 0] & 3, "PNG"))
    whole, resized = (
        resize(decode_record(record, 4), factor),
        decode_record(record, 4, factor=factor),
    )
    assert np.array_equal(resized.image, whole.image)
    assert np.array_equal(resized.mask, whole.mask)


def test_shrunk_jpeg_of_a_grainy_scene_is_close_and_of_checkers_tens_off() -> None:
    scene = np.clip(
        draw_scene(0, (240, 320))[0] + np.random.default_rng(0).normal(0, 12, (240, 320, 3)), 0, 255
    )
    checkers = np.repeat(
        (np.add.outer(np.arange(240) // 3, np.arange(320) // 3) % 2 * 255)[..., None], 3, axis=-1
    )
    mask = encoded(np.zeros((240, 320), np.uint8), "PNG")

    def off(pixels: np.ndarray, factor: float) -> float:
        record = Record("a", encoded(pixels.astype(np.uint8), "JPEG", quality=92), mask)
        whole, shrunk = (
            resize(decode_record(record, 1), factor),
            decode_record(record, 1, factor=factor),
        )
        return float(np.abs(shrunk.image.astype(int) - whole.image).mean())

    assert max(off(scene, factor) for factor in (0.5, 0.45, 0.15, 0.05)) < 3
    assert 10 < off(checkers, 0.45) < 30


def test_shrunk_jpeg_is_checked_for_damage() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = encoded(picture(81, 121), "JPEG", exif=exif), np.zeros((121, 81), np.uint8)
    assert decode_record(Record("a", image, encoded(mask, "PNG")), 2, factor=0.3).image.shape == (
        36,
        24,
        3,
    )
    with pytest.raises(DataError, match=r"mask of a: the mask is 82x121 .* image a is 81x121"):
        decode_record(
            Record("a", image, encoded(np.zeros((121, 82), np.uint8), "PNG")), 2, factor=0.3
        )
    with pytest.raises(DamagedError, match=r"image of a: the JPEG is damaged .*data\.damaged=skip"):
        decode_record(Record("a", image[:-300], encoded(mask, "PNG")), 2, factor=0.3)
    with pytest.raises(DataError, match="labels outside the classes: 7"):
        decode_record(
            Record(
                "a", image, encoded(np.where(mask.cumsum(1) + np.arange(81) == 60, 7, mask), "PNG")
            ),
            2,
            factor=0.1,
        )


def test_rejects_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    cv2.imwrite(str(path), picture())

    def refuse(self: Path) -> bytes:  # a mode of 0 would not keep root from reading
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match="permissions"):
        read_image(path)


def test_reads_rgba_masks_only_if_alpha_adds_nothing() -> None:
    colors = np.zeros((8, 8, 3), np.uint8)
    colors[:4] = 255, 0, 0
    alpha = np.full((8, 8), 255, np.uint8)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(
            read_stored_mask(encoded(np.dstack([colors, alpha]), kind)).values, colors
        )
        alpha[4:] = 0  # black and transparent, as editors leave a background
        assert np.array_equal(
            read_stored_mask(encoded(np.dstack([colors, alpha]), kind)).values, colors
        )
        alpha[:] = 255
        alpha[0] = 0  # erased, with its old color
        with pytest.raises(DataError, match="transparent pixels"):
            read_stored_mask(encoded(np.dstack([colors, alpha]), kind))
        with pytest.raises(DataError, match="transparent pixels"):
            read_stored_mask(encoded(np.dstack([colors * 0, alpha]), kind))
        alpha[:] = 255


@pytest.mark.parametrize(
    ("contents", "named"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photograph"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a Git LFS pointer",
        ),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"%PDF-1.7\n", "a PDF"),
    ],
)
def test_names_other_kinds_of_files_without_calling_them_damaged(
    contents: bytes, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(contents)
    with pytest.raises(DataError, match=rf"photo\.jpg: {named}") as caught:
        read_image(path)
    assert not isinstance(caught.value, DamagedError)


def test_reads_the_orientation_that_imagemagick_wrote_as_text() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    text = b"\nexif\n%8d\n" % len(profile) + profile.hex().encode() + b"\n"
    plain = encoded(picture(20, 30), "PNG")
    end_of_header = 33
    for chunk_of_text in (
        chunk(b"tEXt", b"Raw profile type exif\0" + text),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
    ):
        data = plain[:end_of_header] + chunk_of_text + plain[end_of_header:]
        assert np.array_equal(read_image(data), np.rot90(picture(20, 30), -1))
