"""Decoding: right pixels and labels, and one clear error for whatever is wrong with a file."""

import errno
import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.api import IGNORE_INDEX, Record
from fcn_jax.data.decode import decode_record, read_image, read_mask
from fcn_jax.data.shapes import draw_scene
from fcn_jax.data.transforms import resize
from fcn_jax.errors import DataError


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 8 % 256, columns * 8 % 256, (rows + columns) * 4 % 256], axis=-1).astype(np.uint8)


def encoded(array: np.ndarray, kind: str, palette: list[int] | None = None, **options: object) -> bytes:
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_image_is_read_exactly_as_rgb(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "pícture.x"
    path.write_bytes(encoded(picture(), kind))
    assert np.array_equal(read_image(path), picture())
    assert np.array_equal(read_image(path.read_bytes()), picture())


def test_gray_image_and_alpha_become_three_channels() -> None:
    gray = picture()[..., 0]
    assert np.array_equal(read_image(encoded(gray, "PNG")), np.repeat(gray[..., None], 3, axis=-1))
    rgba = np.dstack([picture(), np.zeros((20, 30), np.uint8)])
    assert read_image(encoded(rgba, "PNG")).shape == (20, 30, 3)


def test_exif_orientation_is_ignored_unless_asked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(20, 30), "JPEG", exif=exif)
    assert read_image(data).shape == (20, 30, 3)
    assert read_image(data, orient=True).shape == (30, 20, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_image_is_an_error_naming_the_file(kind: str, kept: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(noise, kind)
    path = tmp_path / "half.img"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"half\.img"):
        read_image(path)


def test_truncation_is_seen_behind_an_embedded_thumbnail() -> None:
    data = encoded(picture(64, 64), "JPEG", comment=b"\xff\xd8 a thumbnail \xff\xd9")
    assert read_image(data).shape == (64, 64, 3)
    with pytest.raises(DataError, match="truncated"):
        read_image(data[:-40])


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    data = encoded(picture(), "JPEG")
    assert np.array_equal(read_image(data + b"\0" * 100), read_image(data))


@pytest.mark.parametrize("contents", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n IEND"])
def test_what_is_no_image_is_an_error_naming_the_file(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(contents)
    with pytest.raises(DataError, match=r"odd\.jpg"):
        read_image(path)
    with pytest.raises(DataError, match=r"odd\.jpg"):
        read_mask(path, 3)


def test_missing_file_is_an_error_naming_it(tmp_path: Path) -> None:
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
    assert read_mask(encoded(labels, "PNG"), 11, void=(11, 255)).tolist() == [[0, 1, IGNORE_INDEX, IGNORE_INDEX]]


def test_label_outside_the_classes_is_an_error_with_the_labels() -> None:
    labels = np.array([[0, 5, 77, 255]], np.uint8)
    with pytest.raises(DataError, match=r"m\.png: labels outside the classes: 5, 77; allowed are 0 to 4 and void 255"):
        read_mask(encoded(labels, "PNG"), 5, name="m.png")


def test_colors_are_read_by_the_palette_and_an_unknown_one_is_an_error() -> None:
    palette = {(9, 9, 9): 255, (255, 0, 0): 1, (0, 0, 0): 0}
    colors = np.array([[[0, 0, 0], [255, 0, 0], [9, 9, 9]]], np.uint8)
    assert read_mask(encoded(colors, "PNG"), 2, palette=palette).tolist() == [[0, 1, 255]]
    colors[0, 1] = 254, 0, 0
    with pytest.raises(DataError, match=r"m\.png: colors that no class has: \(254, 0, 0\)"):
        read_mask(encoded(colors, "PNG"), 2, palette=palette, name="m.png")
    with pytest.raises(DataError, match="no palette"):
        read_mask(encoded(colors, "PNG"), 2)


def test_lossy_or_wide_masks_are_refused() -> None:
    with pytest.raises(DataError, match="must not be a JPEG"):
        read_mask(encoded(np.zeros((8, 8), np.uint8), "JPEG"), 2)
    with pytest.raises(DataError, match="8-bit"):
        read_mask(encoded(np.zeros((8, 8), np.uint16), "PNG"), 2)


def test_sizes_that_differ_are_an_error_with_both() -> None:
    record = Record("a", encoded(picture(20, 30), "PNG"), encoded(np.zeros((30, 20), np.uint8), "PNG"))
    with pytest.raises(DataError, match=r"mask of a: the mask is 20x30 .* image a is 30x20"):
        decode_record(record, 2)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that shows a shift by a fraction of a pixel anywhere, and whose averages depend little on how they are taken."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 15 + phase) + np.cos(columns / 19 + phase) for phase in range(3)]
    return (127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 0.5), st.sampled_from(["420", "444", "progressive"]))
def test_a_shrunk_jpeg_is_what_the_whole_is_when_resized(height: int, width: int, factor: float, kind: str) -> None:
    options = {"progressive": True} if kind == "progressive" else {"subsampling": 0 if kind == "444" else 2}
    mask = np.random.default_rng(0).integers(0, 5, (height, width), np.uint8)
    record = Record("a", encoded(smooth(height, width), "JPEG", quality=95, **options), encoded(mask, "PNG"))
    whole, shrunk = resize(decode_record(record, 5), factor), decode_record(record, 5, factor=factor)
    assert np.array_equal(shrunk.mask, whole.mask)
    assert shrunk.image.shape == whole.image.shape
    off = np.abs(shrunk.image.astype(int) - whole.image)
    assert off.mean() < 2.5
    assert off.max() < 8


@pytest.mark.parametrize(("factor", "reduction"), [(1 / 2, 2), (1 / 6, 4), (1 / 16, 8)])
def test_a_shrunk_jpeg_is_decoded_small_and_not_shifted_up_to_its_last_row_and_column(
    factor: float, reduction: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, imdecode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: decoded.append(imdecode(data, flags)) or decoded[-1])
    # One pixel more than whole blocks: taken for a whole reduced pixel, it would stretch the picture by almost one.
    height, width = 64 * 3 + 1, 64 * 4 + 1
    ramp = np.add.outer(np.arange(height), np.arange(width)) / (height + width) * 255
    image = encoded(np.repeat(ramp[..., None], 3, axis=-1).astype(np.uint8), "JPEG", quality=98)
    record = Record("a", image, encoded(np.zeros((height, width), np.uint8), "PNG"))
    shrunk, whole = decode_record(record, 1, factor=factor).image, resize(decode_record(record, 1), factor).image
    pixel = 255 / (height + width) / factor  # what a shift by one pixel of the result comes to
    assert abs(shrunk.astype(float) - whole)[:, -2:].mean() < pixel / 6 + 0.5
    assert abs(shrunk.astype(float) - whole)[-2:].mean() < pixel / 6 + 0.5
    assert decoded[0].shape == (-(-height // reduction), -(-width // reduction), 3)


@pytest.mark.parametrize(("factor", "kind"), [(0.51, "JPEG"), (1.7, "JPEG"), (0.1, "PNG"), (0.1, "BMP")])
def test_what_is_not_shrunk_enough_or_no_jpeg_is_resized_from_the_whole(factor: float, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (101, 151, 3), np.uint8)
    record = Record("a", encoded(noise, kind), encoded(noise[..., 0] & 3, "PNG"))
    whole, resized = resize(decode_record(record, 4), factor), decode_record(record, 4, factor=factor)
    assert np.array_equal(resized.image, whole.image)
    assert np.array_equal(resized.mask, whole.mask)


def test_a_shrunk_jpeg_of_a_grainy_scene_is_near_the_whole_and_one_of_chequers_may_be_tens_off() -> None:
    scene = np.clip(draw_scene(0, (240, 320))[0] + np.random.default_rng(0).normal(0, 12, (240, 320, 3)), 0, 255)
    chequers = np.repeat((np.add.outer(np.arange(240) // 3, np.arange(320) // 3) % 2 * 255)[..., None], 3, axis=-1)
    mask = encoded(np.zeros((240, 320), np.uint8), "PNG")

    def off(pixels: np.ndarray, factor: float) -> float:
        record = Record("a", encoded(pixels.astype(np.uint8), "JPEG", quality=92), mask)
        whole, shrunk = resize(decode_record(record, 1), factor), decode_record(record, 1, factor=factor)
        return float(np.abs(shrunk.image.astype(int) - whole.image).mean())

    assert max(off(scene, factor) for factor in (0.5, 0.45, 0.15, 0.05)) < 3
    assert 10 < off(chequers, 0.45) < 30


def test_a_shrunk_jpeg_is_checked_as_the_whole_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = encoded(picture(81, 121), "JPEG", exif=exif), np.zeros((81, 121), np.uint8)
    assert decode_record(Record("a", image, encoded(mask, "PNG")), 2, factor=0.3).image.shape == (24, 36, 3)
    with pytest.raises(DataError, match=r"mask of a: the mask is 121x82 .* image a is 121x81"):
        decode_record(Record("a", image, encoded(np.zeros((82, 121), np.uint8), "PNG")), 2, factor=0.3)
    with pytest.raises(DataError, match="image of a: the image is truncated"):
        decode_record(Record("a", image[:-300], encoded(mask, "PNG")), 2, factor=0.3)
    with pytest.raises(DataError, match="labels outside the classes: 7"):
        decode_record(Record("a", image, encoded(np.where(mask.cumsum(1) + np.arange(121) == 60, 7, mask), "PNG")), 2, factor=0.1)


def test_unreadable_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    cv2.imwrite(str(path), picture())

    def refuse(self: Path) -> bytes:  # a mode of 0 would not keep root from reading
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match="permissions"):
        read_image(path)
