"""Images of 1, 2, 4 and more channels: every format, as stored or scaled to 8 bits."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.data import value_range as ranges
from fcn_jax.data.decode import decode_record, read_image
from fcn_jax.data.images.picture import as_rgb
from fcn_jax.data.images.size import image_size
from fcn_jax.data.value_range import Assumed, Stored
from fcn_jax.errors import DataError
from fcn_jax.eval.protocols import resized
from fcn_jax.plugins.api import Record
from tests.helpers.tiff_files import tiff_bytes

STORED = Stored("float32")


def random(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 200, shape)
    return (values / 100 - 1).astype(dtype) if np.dtype(dtype).kind == "f" else values.astype(dtype)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def npy(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def luma(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels[..., :3].astype(np.float32) @ np.float32([0.299, 0.587, 0.114]))


@given(
    st.sampled_from([1, 2, 4, 5, 13]),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.booleans(),
    st.booleans(),
)
def test_tiff_of_many_bands_keeps_its_stored_values(
    bands: int, dtype: Any, planar: bool, deflate: bool
) -> None:
    pixels = random((6, 9, bands), dtype, seed=bands)
    data = tiff_bytes(pixels, photometric=1, planar=planar, deflate=deflate)
    found = read_image(data, channels=bands, value_range=STORED)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, pixels)


@given(st.sampled_from([1, 2, 4, 5]), st.sampled_from(["u1", "<u2", ">f4", "f8"]))
def test_npy_keeps_its_stored_values(bands: int, dtype: str) -> None:
    pixels = random((6, 9, bands), dtype, seed=bands)
    found = read_image(npy(pixels), channels=bands, value_range=STORED)
    np.testing.assert_array_equal(found, pixels.astype(np.float32))
    if bands == 1:
        two_axes = read_image(npy(pixels[..., 0]), channels=1, value_range=STORED)
        np.testing.assert_array_equal(two_axes, found)


def test_8_bits_stay_8_bits() -> None:
    pixels = random((6, 9, 5))
    for data in (tiff_bytes(pixels, photometric=1), npy(pixels)):
        for value_range in (None, Stored("uint8"), (0.0, 100.0)):
            found = read_image(data, channels=5, value_range=value_range)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, pixels)


def test_16_bits_of_many_bands_are_scaled_by_one_range() -> None:
    pixels = random((6, 9, 4), np.uint16) * np.uint16(20)
    expected = np.rint(pixels / 4095 * 255)
    for data in (tiff_bytes(pixels, photometric=1), npy(pixels)):
        found = read_image(data, channels=4, value_range=Assumed((0.0, 4095.0)))
        np.testing.assert_array_equal(found, expected)
        assert ranges.assumed([data], channels=4).integers == (0.0, 4095.0)


def test_png_gives_gray_gray_and_alpha_or_rgba() -> None:
    rgba, gray_alpha = random((6, 9, 4)), random((6, 9, 2))
    np.testing.assert_array_equal(read_image(png(rgba), channels=4), rgba)
    np.testing.assert_array_equal(read_image(png(rgba), channels=3), rgba[..., :3])
    np.testing.assert_array_equal(read_image(png(rgba), channels=1)[..., 0], luma(rgba))
    np.testing.assert_array_equal(read_image(png(gray_alpha), channels=2), gray_alpha)
    np.testing.assert_array_equal(read_image(png(gray_alpha), channels=1), gray_alpha[..., :1])
    gray = random((6, 9))
    np.testing.assert_array_equal(read_image(png(gray), channels=1)[..., 0], gray)
    bits = random((6, 9)) > 100
    np.testing.assert_array_equal(read_image(png(bits), channels=1)[..., 0], bits * 255)
    wide = random((6, 9), np.uint16) * np.uint16(300)
    np.testing.assert_array_equal(
        read_image(png(wide), channels=1, value_range=STORED)[..., 0], wide
    )
    indexed = io.BytesIO()
    Image.fromarray(rgba[..., :3]).quantize(16).save(indexed, "PNG")
    shown = read_image(indexed.getvalue())
    np.testing.assert_array_equal(read_image(indexed.getvalue(), channels=1)[..., 0], luma(shown))


def test_one_channel_of_other_formats_is_gray() -> None:
    pixels = np.repeat(random((8, 16, 1)), 3, axis=2)
    for kind in ("JPEG", "BMP", "WEBP", "TIFF"):
        file = io.BytesIO()
        settings = {"lossless": True} if kind == "WEBP" else {}
        Image.fromarray(pixels).save(file, kind, **settings)
        shown = read_image(file.getvalue())
        found = read_image(file.getvalue(), channels=1)
        assert found.shape == (8, 16, 1)
        np.testing.assert_array_equal(found[..., 0], luma(shown))


def test_webp_and_tiff_give_alpha_as_the_fourth_channel() -> None:
    pixels = random((8, 16, 4))
    for kind, settings in (("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **settings)
        np.testing.assert_array_equal(read_image(file.getvalue(), channels=4), pixels)
        np.testing.assert_array_equal(read_image(file.getvalue()), pixels[..., :3])


def test_three_channels_of_npy_are_rgb_and_gray_becomes_rgb() -> None:
    pixels = random((6, 9, 3))
    np.testing.assert_array_equal(read_image(npy(pixels)), pixels)
    gray = read_image(npy(pixels[..., 0]))
    np.testing.assert_array_equal(gray, np.repeat(pixels[..., :1], 3, axis=2))
    wide = random((6, 9), np.float32)
    shown = read_image(npy(wide), value_range=STORED)
    np.testing.assert_array_equal(shown, np.repeat(wide[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("data", "channels", "expected"),
    [
        (tiff_bytes(random((4, 4, 5)), photometric=1), 4, "has 5 channels, but the model takes 4"),
        (tiff_bytes(random((4, 4, 5)), photometric=1), 3, r"set\s+model.in_channels = 5"),
        (npy(random((4, 4, 6))), 3, "set model.in_channels = 6 if all images have 6"),
        (npy(random((5, 8, 9))), 5, r"np.moveaxis\(array, 0, -1\)"),
        (png(random((4, 4, 3))), 4, "has 3 channels, but the model takes 4"),
        (png(random((4, 4))), 5, "has 1 channels, but the model takes 5"),
        (npy(np.full((4, 4, 5), np.nan, np.float32)), 5, "not finite"),
    ],
)
def test_names_a_wrong_number_of_channels(data: bytes, channels: int, expected: str) -> None:
    with pytest.raises(DataError, match=rf"^x\.tif: .*{expected}"):
        read_image(data, name="x.tif", channels=channels, value_range=STORED)


def test_negative_values_need_a_range_or_a_mean() -> None:
    data = npy(random((4, 4, 5), np.float32))
    with pytest.raises(DataError, match=r"negative values .* or keep the stored values with model"):
        read_image(data, name="x.npy", channels=5)


def test_wide_image_among_8_bits_is_named() -> None:
    with pytest.raises(DataError, match="has uint16 values, and the training images had 8 bits"):
        read_image(npy(random((4, 4, 5), np.uint16)), channels=5, value_range=Stored("uint8"))


@pytest.mark.parametrize("turn", range(1, 9))
def test_turns_many_channels_upright(turn: int) -> None:
    pixels = random((4, 6, 5))
    data = tiff_bytes(pixels, photometric=1, tags={0x0112: (turn,)})
    expected = [
        read_image(tiff_bytes(pixels[..., k], tags={0x0112: (turn,)}), channels=1)[..., 0]
        for k in range(5)
    ]
    np.testing.assert_array_equal(read_image(data, channels=5), np.stack(expected, -1))


def test_decodes_a_record_of_many_channels() -> None:
    pixels, mask = random((8, 12, 5), np.float32), random((8, 12)) % 3
    record = Record("a", npy(pixels), png(mask.astype(np.uint8)))
    example = decode_record(record, 3, channels=5, value_range=STORED)
    np.testing.assert_array_equal(example.image, pixels)
    np.testing.assert_array_equal(example.mask, mask)
    for factor in (0.4, 1.5):
        other = decode_record(record, 3, channels=5, value_range=STORED, factor=factor)
        assert other.image.shape == (*other.mask.shape, 5)
    half = decode_record(record, 3, channels=5, value_range=STORED, factor=0.5)
    mean = pixels.reshape(4, 2, 6, 2, 5).mean((1, 3))
    np.testing.assert_allclose(half.image, mean, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resizes_each_channel_alone(count: int, dtype: Any) -> None:
    pixels = random((20, 30, count), dtype)
    for size, kind in (((7, 13), cv2.INTER_AREA), ((33, 41), cv2.INTER_LINEAR)):
        alone = [
            cv2.resize(pixels[..., k].copy(), size[::-1], interpolation=kind) for k in range(count)
        ]
        found = resized(pixels, size)
        assert found.shape == (*size, count)
        atol = 1 if dtype == np.uint8 else 1e-5
        np.testing.assert_allclose(found, np.stack(alone, -1), atol=atol)


def test_sizes_are_read_from_headers(tmp_path: Path) -> None:
    for name, data in (
        ("a.tif", tiff_bytes(random((4, 6, 5)), photometric=1)),
        ("a.npy", npy(random((4, 6, 5), np.float32))),
    ):
        (tmp_path / name).write_bytes(data)
        assert image_size(tmp_path / name) == image_size(data) == (4, 6)
    (tmp_path / "empty.npy").touch()
    assert image_size(tmp_path / "empty.npy") is None


def test_scaling_is_recorded() -> None:
    for scaling in (Stored("uint8"), Stored("float32"), Assumed((0.0, 1023.0)), (0.0, 2.0)):
        assert ranges.from_json(ranges.to_json(scaling)) == scaling
    with pytest.raises(ValueError, match="float16"):
        ranges.from_json({"stored": "float16"})


def test_pictures_of_any_channels() -> None:
    rgb = random((4, 6, 3))
    assert as_rgb(rgb) is rgb or np.shares_memory(as_rgb(rgb), rgb)
    np.testing.assert_array_equal(as_rgb(random((4, 6, 5))), random((4, 6, 5))[..., :3])
    gray = as_rgb(rgb[..., :1])
    np.testing.assert_array_equal(gray, np.repeat(rgb[..., :1], 3, axis=2))
    ramp = np.linspace(-3, 7, 101, dtype=np.float32).reshape(1, 101, 1)
    shown = as_rgb(ramp)[0, :, 0]
    assert (shown[:3] == 0).all()
    assert (shown[-3:] == 255).all()
    assert shown[50] in (127, 128)
    assert (as_rgb(np.full((2, 2, 2), 3.0, np.float32)) == 128).all()
