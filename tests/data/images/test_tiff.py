"""TIFF files of every kind of sample give their stored numbers."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.data.decode import read_image, read_stored_mask
from fcn_jax.data.images import tiff
from fcn_jax.data.images.tiff_samples import samples
from fcn_jax.errors import DamagedError, DataError
from tests.helpers.tiff_files import tiff_bytes


def stored(data: bytes) -> np.ndarray:
    return samples(tiff.parse(data, "a.tif"), data)


@given(
    st.integers(1, 20),
    st.integers(1, 40),
    st.sampled_from(["u1", "u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8"]),
    st.sampled_from([1, 3, 4]),
    st.sampled_from(["<", ">"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 16]),
    st.integers(1, 7),
)
def test_reads_numbers_of_whole_bytes_exactly(
    height: int,
    width: int,
    kind: str,
    channels: int,
    order: str,
    planar: bool,
    deflate: bool,
    tile: int | None,
    rows: int,
) -> None:
    values = np.random.default_rng(0).integers(0, 120, (height, width, channels)).astype(kind)
    predictor = 2 if deflate and kind[0] == "u" else 1
    data = tiff_bytes(
        values,
        order=order,
        planar=planar,
        deflate=deflate,
        tile=tile,
        rows_per_strip=rows,
        predictor=predictor,
    )
    assert np.array_equal(stored(data), values)
    assert stored(data).dtype == np.dtype(kind)


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 15),
    st.sampled_from([1, 3]),
    st.sampled_from(["<", ">"]),
)
def test_reads_packed_numbers_exactly(
    height: int, width: int, bits: int, channels: int, order: str
) -> None:
    kind = np.uint8 if bits < 9 else np.uint16
    values = np.random.default_rng(0).integers(0, 2**bits, (height, width, channels)).astype(kind)
    assert np.array_equal(stored(tiff_bytes(values, bits=bits, order=order)), values)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "raw"])
@pytest.mark.parametrize("channels", [1, 3])
def test_reads_files_of_pillow_exactly(compression: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 9, (50, 70, channels), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values.squeeze()).save(buffer, "TIFF", compression=compression)
    assert np.array_equal(stored(buffer.getvalue()), values)


@pytest.mark.parametrize("photometric", [0, 1])
def test_reads_the_stored_bits_of_fax_compression(photometric: int) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (20, 30)).astype(bool)
    buffer = io.BytesIO()
    Image.fromarray(bits).save(buffer, "TIFF", compression="group4", tiffinfo={262: photometric})
    values = stored(buffer.getvalue())[..., 0]
    shown = values if photometric else 1 - values
    assert np.array_equal(read_image(buffer.getvalue())[..., 0], shown * 255)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(buffer.getvalue()))), shown)
    assert np.array_equal(read_stored_mask(buffer.getvalue()).values, values)


def test_reads_jpeg_inside_a_tiff_and_finds_its_damage() -> None:
    rows, columns = np.mgrid[:64, :96]
    picture = np.stack([rows * 4, columns * 2, rows + columns], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "TIFF", compression="jpeg", quality=95)
    data = buffer.getvalue()
    assert np.array_equal(read_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    at = data.rfind(b"\xff\xda") + 40
    with pytest.raises(DamagedError, match=r"a\.tif: the JPEG is damaged"):
        read_image(data[:at] + b"\0" * 200 + data[at + 200 :], name="a.tif")
    with pytest.raises(DataError, match="lossy"):
        read_stored_mask(data)


def test_shows_white_is_zero_few_bits_palettes_and_cmyk_as_a_viewer() -> None:
    few = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    assert read_image(tiff_bytes(few, bits=2))[..., 1].tolist() == (few * 85).tolist()
    assert (
        read_image(tiff_bytes(few, bits=2, photometric=0))[..., 1].tolist()
        == (255 - few * 85).tolist()
    )
    colors = np.arange(48).reshape(3, 16) * 256
    indexed = tiff_bytes(few, bits=4, photometric=3, tags={320: tuple(colors.reshape(-1).tolist())})
    assert np.array_equal(read_image(indexed), (colors.T >> 8)[few])
    assert np.array_equal(read_stored_mask(indexed).values, few)
    assert np.array_equal(read_stored_mask(indexed).palette[:16], colors.T >> 8)
    inks = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    expected = np.rint((255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255)
    assert np.abs(read_image(tiff_bytes(inks, photometric=5)) - expected).max() <= 1


def test_drops_alpha_without_darkening() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    assert np.array_equal(read_image(tiff_bytes(rgba, tags={338: (2,)})), rgba[..., :3])
    assert np.array_equal(
        read_image(tiff_bytes(rgba[..., :2], tags={338: (2,)}))[..., 2], rgba[..., 0]
    )


@pytest.mark.parametrize("channels", [2, 5])
def test_rejects_other_numbers_of_channels(channels: int) -> None:
    with pytest.raises(DataError, match=rf"a\.tif: a TIFF of {channels} channels"):
        read_image(tiff_bytes(np.zeros((4, 5, channels), np.uint8)), name="a.tif")


def test_rejects_several_pages_of_one_size_but_not_smaller_copies() -> None:
    values = np.arange(20, dtype=np.uint8).reshape(4, 5)
    with pytest.raises(DataError, match=r"a\.tif: the TIFF has several pages"):
        read_image(tiff_bytes(values, repeat=2), name="a.tif")
    assert np.array_equal(
        read_image(tiff_bytes(values, repeat=2, tags={254: (1,)}))[..., 0], values
    )


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({279: (10,)}, "expected"),
        ({273: (1 << 30,)}, "truncated"),
        ({257: (9,), 278: (9,)}, "bytes"),
        ({278: (1,)}, "pieces"),
        ({284: (7,)}, "planes"),
    ],
)
def test_tags_that_contradict_the_contents_count_as_damage(
    tags: dict[int, tuple[int, ...]], reason: str
) -> None:
    with pytest.raises(DamagedError, match=rf"a\.tif: the TIFF is damaged .*{reason}"):
        read_image(tiff_bytes(np.zeros((4, 5), np.uint8), tags=tags), name="a.tif")


def test_rejects_an_absurd_size_without_using_memory() -> None:
    with pytest.raises(DataError, match=r"a\.tif: the file says it is 60000x60000"):
        read_image(
            tiff_bytes(np.zeros((4, 5), np.uint8), tags={256: (60000,), 257: (60000,)}),
            name="a.tif",
        )


def test_checksum_finds_damage_in_deflated_samples() -> None:
    data = tiff_bytes(np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8), deflate=True)
    for at in range(8, 600, 7):
        with pytest.raises(DamagedError):
            read_image(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
