"""Images of more than 8 bits become 8 bits by a stated rule, alike over a dataset."""

import io
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.api import Classes, Record, Source
from fcn_jax.data.datasets.directory import DirectorySource
from fcn_jax.data.decode import decode_record, read_image
from fcn_jax.data.value_range import Assumed, assumed, with_range
from fcn_jax.errors import ConfigError, DataError
from tests.helpers.png_files import chunk, png_bytes
from tests.helpers.tiff_files import tiff_bytes

GRAY = np.add.outer(np.arange(64) * 2, np.arange(96)).astype(np.uint8)
GRAY[0, 0] = 251


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("write", [png, tiff_bytes])
def test_12_bit_camera_image_matches_the_8_bit_picture(write) -> None:
    image = read_image(write(GRAY.astype(np.uint16) * 16))  # up to 4016
    assert np.abs(image.astype(int) - GRAY[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("largest", "white"),
    [
        (200, 255),
        (255, 255),
        (256, 1023),
        (1024, 4095),
        (4096, 16383),
        (16384, 65535),
        (65535, 65535),
    ],
)
def test_assumes_the_smallest_usual_depth_for_the_largest_value(largest: int, white: int) -> None:
    values = np.array([[0, largest // 3, largest]], np.uint16)
    expected = np.rint(values * (255 / white)).astype(int)
    assert read_image(png(values))[..., 0].tolist() == expected.tolist()
    assert read_image(tiff_bytes(values.astype(np.uint32)))[..., 0].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("largest", "white"),
    [(0.7, 1), (1, 1), (1.5, 255), (300, 1023), (4000.5, 4095), (65535, 65535)],
)
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_assumes_usual_ranges_for_floating_point_values(
    largest: float, white: float, kind: str
) -> None:
    if kind == "f2" and largest > 60000:
        pytest.skip("more than half precision holds")
    values = np.array([[0, largest / 2, largest]], kind)
    assert (
        read_image(tiff_bytes(values))[..., 1].tolist()
        == np.rint(values.astype(float) * 255 / white).tolist()
    )


@given(st.floats(-5000, 60000), st.floats(1, 60000), st.sampled_from(["u2", "i2", "u4", "f4"]))
def test_setting_scales_linearly_with_rounding_and_clipping(
    low: float, width: float, kind: str
) -> None:
    values = np.linspace(0, 30000, 50).astype(kind).reshape(5, 10)
    expected = np.clip(np.rint((values.astype(float) - low) * (255 / width)), 0, 255)
    off = np.abs(read_image(tiff_bytes(values), value_range=(low, low + width))[..., 0] - expected)
    assert off.max() <= 1  # a value that lies between two integers to the last bit
    assert np.abs(off).mean() < 0.1


def test_setting_does_not_change_images_of_8_bits() -> None:
    assert np.array_equal(read_image(png(GRAY), value_range=(0, 100))[..., 0], GRAY)
    assert np.array_equal(read_image(tiff_bytes(GRAY), value_range=(0, 100))[..., 0], GRAY)


def test_16_bit_rgb_keeps_its_channels_separate() -> None:
    colors = np.stack([GRAY, GRAY // 2, 255 - GRAY], -1).astype(np.uint16) * 257
    for data in (
        tiff_bytes(colors),
        tiff_bytes(colors, planar=True),
        png_bytes(colors, 16, 2),
        tiff_bytes(colors, order=">"),
    ):
        assert np.array_equal(read_image(data), colors // 257)


def test_white_is_zero_is_inverted_after_scaling() -> None:
    values = np.array([[0, 4095]], np.uint16)
    assert read_image(tiff_bytes(values, photometric=0))[..., 0].tolist() == [[255, 0]]


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_declared_range_takes_precedence(bits: int) -> None:
    white = 2**bits - 1
    values = np.array([[0, 100, 201]], np.uint16)
    expected = np.rint(values * (255 / white)).tolist()
    packed = tiff_bytes(values, bits=bits)
    largest = tiff_bytes(values, tags={281: (white,)})
    unshifted = png_bytes(values, 16, 0, chunks=(chunk(b"sBIT", bytes([bits])),))
    other = Assumed(integers=(0.0, 65535.0))
    for data in (packed, largest, unshifted):
        assert read_image(data)[..., 0].tolist() == expected
        assert read_image(data, value_range=other)[..., 0].tolist() == expected
        assert read_image(data, value_range=(0, 255))[..., 0].tolist() == [[0, 100, 201]]
        assert assumed([data]) == Assumed()


def test_png_with_shifted_significant_bits_has_16_bits() -> None:
    values = np.array([[0, 0x1000, 0x5000]], np.uint16)  # 12 significant bits, all dark
    data = png_bytes(values, 16, 0, chunks=(chunk(b"sBIT", b"\x0c"),))
    assert read_image(data)[..., 0].tolist() == np.rint(values * (255 / 65535)).tolist()


def test_scales_all_images_of_a_dataset_alike() -> None:
    dark, bright = np.array([[0, 500, 900]], np.uint16), np.array([[0, 2000, 4016]], np.uint16)
    decided = assumed([png(dark), png(bright), png(GRAY)])
    assert decided.integers == (0.0, 4095.0)
    assert decided.note == (
        "2 images have 16 bits: largest value 4016, read as 12 bits (0 to 4095)"
    )
    for values in (dark, bright):
        assert (
            read_image(png(values), value_range=decided)[..., 0].tolist()
            == np.rint(values * (255 / 4095)).tolist()
        )
    with pytest.raises(
        DataError,
        match=r"c\.png: the image's largest value is 5000, but the dataset's range is 0 to 4095",
    ):
        read_image(png(dark * 0 + np.uint16(5000)), value_range=decided, name="c.png")


def test_whole_and_floating_point_numbers_have_separate_ranges() -> None:
    decided = assumed(
        [tiff_bytes(np.array([[0.5]], np.float32)), png(np.array([[700]], np.uint16))]
    )
    assert (decided.integers, decided.floats) == ((0.0, 1023.0), (0.0, 1.0))
    assert decided.note.startswith(
        "1 image has 16 bits: largest value 700, read as 10 bits (0 to 1023); 1 image has floating"
    )
    assert pickle.loads(pickle.dumps(decided)) == decided


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[-1, 5]], np.int16), "negative values"),
        (np.array([[-0.5, 5]], np.float32), "negative values"),
        (np.array([[70000, 5]], np.uint32), "largest value is 70000"),
        (np.array([[7e5]], np.float32), "largest value is 700000"),
        (np.array([[np.nan]], np.float32), "not finite"),
        (np.array([[np.inf]], np.float32), "not finite"),
    ],
)
def test_rejects_values_outside_every_range(
    values: np.ndarray, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd.tif"
    path.write_bytes(tiff_bytes(values))
    with pytest.raises(DataError, match=rf"odd\.tif: the image.*{reason}"):
        read_image(path)
    with pytest.raises(
        DataError, match=rf"1 of 1 images cannot be scaled to 8 bits: .*odd\.tif.*{reason}"
    ):
        assumed([path])
    if np.isfinite(values).all():
        assert (
            read_image(path, value_range=(float(values.min()) - 1, float(values.max()))).max()
            == 255
        )


def test_rejects_non_finite_values_even_with_a_setting() -> None:
    with pytest.raises(DataError, match="not finite"):
        read_image(tiff_bytes(np.array([[np.nan, 1]], np.float32)), value_range=(0, 1))


def test_does_not_decode_images_of_8_bits(tmp_path: Path) -> None:
    paths = []
    for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800), np.uint8)).convert(
            "RGB"
        ).save(path, kind)
        paths.append(path)
    calls = []
    began = time.perf_counter()
    assert (
        assumed(paths * 100, progress=lambda done, total: calls.append((done, total))) == Assumed()
    )
    assert time.perf_counter() - began < 1.5  # decoding takes more than ten
    assert calls[-1] == (600, 600)


def test_skips_missing_and_damaged_files(tmp_path: Path) -> None:
    for name, contents in (
        ("a.png", png(GRAY.astype(np.uint16))[:-40]),
        ("b.tif", b"II*\0"),
        ("c.png", b""),
        ("d.tif", b"II"),
    ):
        (tmp_path / name).write_bytes(contents)
    assert assumed([*sorted(tmp_path.iterdir()), tmp_path / "gone.png"]) == Assumed()


def test_directory_source_keeps_the_range_in_a_worker() -> None:
    record = Record("a", png(np.array([[0, 500]], np.uint16)), png(np.zeros((1, 2), np.uint8)))
    source = DirectorySource(Classes(("bg",), ((0, 0, 0),)), (record,))
    for value_range, expected in (
        (None, 125),
        ((0.0, 500.0), 255),
        (Assumed(integers=(0.0, 4095.0)), 31),
    ):
        copy = pickle.loads(pickle.dumps(with_range(source, value_range)))
        assert copy.decode(record).image[0, 1].tolist() == [expected] * 3
    assert decode_record(record, 1, value_range=(0, 1000)).image[0, 1, 0] == 128


def test_rejects_a_range_for_a_source_without_the_field() -> None:
    class Own(Source):
        classes = Classes(("bg",), ((0, 0, 0),))

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Record:
            raise IndexError

        def decode(self, record: Record) -> None: ...

    source = Own()
    assert with_range(source, Assumed()) is source
    with pytest.raises(ConfigError, match=r"data\.value_range is set"):
        with_range(source, (0.0, 1.0))
