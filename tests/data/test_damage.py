"""Damaged files are found, named, and rejected or skipped; files that only look odd are read."""

import io
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_jax.api import Classes, Example, Record, Source
from fcn_jax.data.damage import note, without_damaged
from fcn_jax.data.datasets.directory import DirectorySource
from fcn_jax.data.decode import decode_record, read_image, read_stored_mask
from fcn_jax.errors import DamagedError, DataError
from tests.helpers.png_files import SIGNATURE, chunk, png_bytes, rows_of

CLASSES = Classes(("bg", "road"), ((0, 0, 0), (255, 0, 0)))


def picture(height: int = 64, width: int = 96) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    grain = np.random.default_rng(0).integers(0, 24, (height, width, 3))
    return (
        (np.stack([rows * 3, columns * 2, rows + columns], -1) + grain)
        .clip(0, 255)
        .astype(np.uint8)
    )


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if options.pop("palette", False):
        image.putpalette(list(range(48)))
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_rejects_a_jpeg_with_zeros_in_its_second_half_and_a_valid_end() -> None:
    data = encoded(picture(), "JPEG")
    half = len(data) // 2
    with pytest.raises(DamagedError, match=r"a\.jpg: the JPEG is damaged \(Corrupt JPEG data"):
        read_image(data[:half] + b"\0" * (len(data) - half - 2) + b"\xff\xd9", name="a.jpg")


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 4}]
)
def test_decodes_jpegs_like_opencv_and_rejects_cut_ones(options: dict[str, object]) -> None:
    for pixels in (picture(), picture()[..., 0]):
        data = encoded(pixels, "JPEG", **options)
        assert np.array_equal(
            read_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        )
        for kept in (0.3, 0.6, 0.95):
            with pytest.raises(DamagedError):
                read_image(data[: int(len(data) * kept)])


def test_decodes_cmyk_jpegs_like_pillow_and_finds_their_damage() -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert("CMYK").save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(read_image(data).astype(int) - expected).max() <= 1
    with pytest.raises(DamagedError):
        read_image(data[: len(data) // 2] + b"\xff\xd9")


def test_stray_bytes_in_a_jpeg_count_as_damage() -> None:
    data = encoded(picture(), "JPEG")
    with pytest.raises(DamagedError, match="3 extraneous bytes"):
        read_image(data[:20] + b"\0\0\0" + data[20:])


def odd_jpegs() -> dict[str, bytes]:
    """JPEGs with warnings of the decoder whose pixels are all right."""
    data = encoded(picture(), "JPEG")
    scan = data.rfind(b"\xff\xda")
    end_of_spectrum = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big") - 2
    adobe = b"\xff\xee" + struct.pack(">H", 14) + b"Adobe\0\x64\0\0\0\0\x07"
    return {
        "revision of JFIF": data[:11] + b"\x07" + data[12:],
        "parameters of the scan": data[:end_of_spectrum] + b"\x0a" + data[end_of_spectrum + 1 :],
        "bytes after the end": data + b"\0" * 100,
        "a second picture after the end": data + data[:200],
        "Adobe's transform": data[:2] + adobe + data[20:],
    }


@pytest.mark.parametrize("oddity", odd_jpegs())
def test_accepts_oddities_that_leave_the_pixels_right(oddity: str) -> None:
    data, plain = odd_jpegs()[oddity], encoded(picture(), "JPEG")
    assert np.array_equal(read_image(data), simplejpeg.decode_jpeg(plain))
    mask = encoded(np.zeros((64, 96), np.uint8), "PNG")
    shrunk = decode_record(Record("a", data, mask), 2, factor=0.5)
    assert np.array_equal(
        shrunk.image, decode_record(Record("a", plain, mask), 2, factor=0.5).image
    )


def test_rejects_a_jpeg_of_12_bits_by_name() -> None:
    data = bytearray(encoded(picture(), "JPEG"))
    data[data.find(b"\xff\xc0") + 4] = 12
    with pytest.raises(
        DataError, match=r"a\.jpg: a kind of JPEG that cannot be decoded .*12"
    ) as caught:
        read_image(bytes(data), name="a.jpg")
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("palette", [False, True])
def test_finds_every_changed_byte_of_a_png(palette: bool) -> None:
    data = encoded(picture(8, 9)[..., 0] // 20, "PNG", palette=palette)
    for at in range(len(SIGNATURE), len(data)):
        for change in (1, 0x20, 0xFF):
            damaged = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
            for read in (read_image, read_stored_mask):
                with pytest.raises(DataError, match=r"a\.png"):
                    read(damaged, name="a.png")


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.99])
def test_rejects_a_cut_png(cut: float) -> None:
    data = encoded(picture(), "PNG")
    with pytest.raises(DamagedError, match=r"a\.png: the PNG is damaged .*truncated"):
        read_image(data[: int(len(data) * cut)], name="a.png")


def test_rejects_a_png_with_missing_rows_and_right_checksums() -> None:
    for pixels, color in ((picture(), 2), (picture()[..., 0] // 20, 0)):
        rows = rows_of(pixels, 8)
        whole = zlib.compress(rows)
        for stream in (
            zlib.compress(rows[: len(rows) // 2]),
            whole[: len(whole) // 2],
            whole[:-4] + b"\0\0\0\0",
            b"",
        ):
            for read in (read_image, read_stored_mask):
                with pytest.raises(DamagedError):
                    read(png_bytes(pixels, 8, color, stream=stream))


def test_rejects_a_png_without_end_or_pixels_but_not_bytes_after_the_end() -> None:
    data = encoded(picture(), "PNG")
    with pytest.raises(DamagedError):
        read_image(data[:-12])
    with pytest.raises(DamagedError):
        read_image(data[:33] + data[-12:])
    assert np.array_equal(read_image(data + b"more"), picture())


def test_odd_chunks_of_a_png_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    chunks = (
        chunk(b"iCCP", b"broken"),
        chunk(b"tIME", b"1"),
        chunk(b"tEXt", b""),
        chunk(b"gAMA", b""),
    )
    assert np.array_equal(read_image(png_bytes(picture(), 8, 2, chunks=chunks)), picture())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP", "GIF", "PNG"])
def test_rejects_cut_masks(kind: str) -> None:
    data = encoded(picture(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    for kept in (0.2, 0.6, 0.95):
        with pytest.raises(DamagedError, match="a mask"):
            read_stored_mask(data[: int(len(data) * kept)], name="a mask")


def test_rejects_a_header_of_an_absurd_size() -> None:
    huge = (
        SIGNATURE
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b"")
    )
    jpeg = bytearray(encoded(picture(), "JPEG"))
    at = jpeg.find(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\xdc\xff\xdc"
    for data in (huge, bytes(jpeg)):
        with pytest.raises(DataError, match="big: the file says it is"):
            read_image(data, name="big")


FILES = {
    "jpeg": encoded(picture(), "JPEG"),
    "progressive": encoded(picture(), "JPEG", progressive=True),
    "png": encoded(picture(), "PNG"),
    "indexed png": encoded(picture()[..., 0] // 20, "PNG", palette=True),
    "tiff": encoded(picture(), "TIFF"),
    "deflated tiff": encoded(picture(), "TIFF", compression="tiff_adobe_deflate"),
    "lzw tiff": encoded(picture(), "TIFF", compression="tiff_lzw"),
    "jpeg in tiff": encoded(picture(), "TIFF", compression="jpeg"),
    "webp": encoded(picture(), "WEBP", lossless=True),
    "lossy webp": encoded(picture(), "WEBP"),
    "bmp": encoded(picture(), "BMP"),
    "gif": encoded(picture()[..., 0] // 20, "GIF", palette=True),
}


@given(
    st.sampled_from(sorted(FILES)),
    st.sampled_from(["flip", "cut", "zero", "delete"]),
    st.floats(0, 1),
    st.integers(1, 60),
    st.booleans(),
)
def test_mutated_file_raises_or_decodes_like_other_decoders(
    kind: str, change: str, where: float, count: int, head: bool
) -> None:
    data = bytearray(FILES[kind])
    at = int(where * (min(len(data), 200) if head else len(data) - 1))
    match change:
        case "flip":
            data[at] ^= 1 << count % 8
        case "cut":
            del data[at:]
        case "zero":
            data[at : at + count] = bytes(len(data[at : at + count]))
        case "delete":
            del data[at : at + count]
    for read in (read_image, read_stored_mask):
        try:
            result = read(bytes(data))
        except DataError:
            continue
        if "png" in kind and read is read_image and bytes(data) != FILES[kind]:
            assert np.array_equal(result, read_image(FILES[kind]))
        if kind in ("jpeg", "progressive") and read is read_image:
            shown = cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_COLOR_RGB)
            assert shown is None or np.array_equal(result, shown)


def folder(path: Path, count: int = 6) -> DirectorySource:
    records = []
    for index in range(count):
        image, mask = path / f"{index}.jpg", path / f"{index}.png"
        image.write_bytes(FILES["jpeg"])
        mask.write_bytes(encoded(np.full((64, 96), index % 2, np.uint8), "PNG"))
        records.append(Record(str(index), image, mask))
    return DirectorySource(CLASSES, tuple(records))


def test_skips_counts_and_names_damaged_records(tmp_path: Path) -> None:
    source = folder(tmp_path)
    source.records[1].image.write_bytes(FILES["jpeg"][:-100])
    source.records[4].mask.write_bytes(source.records[4].mask.read_bytes()[:-20])
    source.records[2].mask.write_bytes(
        encoded(np.full((64, 96), 9, np.uint8), "PNG")
    )  # a wrong label is not damage
    source.records[3].image.unlink()  # nor is a missing file
    seen = []
    kept, faults = without_damaged(source, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]
    assert [kept[index].id for index in range(len(kept))] == ["0", "2", "3", "5"]
    assert len(faults) == 2
    assert "1.jpg: the JPEG is damaged" in faults[0]
    assert "4.png: the PNG is damaged" in faults[1]
    line = note(faults, len(source), "train")
    assert line.startswith(
        "2 of 6 images of split 'train' are skipped as damaged (data.damaged=skip): "
    )
    assert "1.jpg" in line
    assert "4.png" in line
    assert "\n" not in line
    assert "download" not in line


def test_training_replaces_a_damaged_record_by_the_next_intact_one(tmp_path: Path) -> None:
    source = folder(tmp_path)
    for index in (1, 2, 5):
        source.records[index].image.write_bytes(b"")
    kept, faults = without_damaged(source, replace=True)
    assert [kept[index].id for index in range(len(kept))] == ["0", "3", "3", "3", "4", "0"]
    assert len(faults) == 3


def test_files_damaged_later_are_replaced_as_if_they_had_been_found_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = folder(tmp_path)
    source.records[3].image.write_bytes(b"")
    kept = without_damaged(source, replace=True)[0]
    in_evaluation = without_damaged(source)[0]
    for index in (2, 5):
        source.records[index].image.write_bytes(FILES["jpeg"][:-100])
    found_before = without_damaged(source, replace=True)[0]
    for index in range(len(kept)):
        for one, other in (
            (kept.decode(kept[index]), found_before.decode(found_before[index])),
            (
                kept.decode_resized(kept[index], 0.5),
                found_before.decode_resized(found_before[index], 0.5),
            ),
        ):
            assert one.id == other.id
            assert np.array_equal(one.image, other.image)
    assert [kept.decode(record).id for record in kept] == ["0", "1", "4", "4", "4", "0"]
    assert caplog.text.count("2.jpg: the JPEG is damaged") == 1
    assert "download" not in caplog.text
    with pytest.raises(DamagedError, match=r"2\.jpg"):
        in_evaluation.decode(in_evaluation[2])
    for record in source.records:
        record.image.write_bytes(b"")
    with pytest.raises(DamagedError, match=r"0\.jpg"):
        kept.decode(kept[0])


def test_kept_records_decode_as_before_after_pickling(tmp_path: Path) -> None:
    source = folder(tmp_path)
    source.records[0].image.write_bytes(b"")
    kept = pickle.loads(pickle.dumps(without_damaged(source)[0]))
    assert kept.classes == CLASSES
    assert len(kept) == 5
    assert np.array_equal(kept.decode(kept[0]).mask, np.ones((64, 96)))
    assert kept.decode_resized(kept[0], 0.5).image.shape == (32, 48, 3)
    assert (kept.labels, kept.notes) == (kept._source.labels, ())


def test_keeps_everything_if_nothing_is_damaged_and_raises_if_everything_is(
    tmp_path: Path,
) -> None:
    source = folder(tmp_path, 3)
    kept, faults = without_damaged(source)
    assert [record.id for record in kept] == [record.id for record in source]
    assert faults == ()
    for record in source.records:
        record.mask.write_bytes(b"")
    with pytest.raises(DataError, match="all 3 images of the split or their masks are damaged"):
        without_damaged(source)


def test_kept_records_of_a_source_without_decode_resized_are_decoded_and_resized() -> None:
    class Plain(Source):
        classes = CLASSES

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Record:
            return Record(str(index), b"", b"")

        def decode(self, record: Record) -> Example:
            if record.id == "0":
                raise DamagedError("0")
            return Example(record.id, picture(), picture()[..., 0])

    kept, faults = without_damaged(Plain())
    assert faults == ("0",)
    assert kept[0].id == "1"
    assert kept.decode_resized(kept[0], 0.5).image.shape == (32, 48, 3)


def test_error_without_the_setting_names_the_file_and_the_setting(tmp_path: Path) -> None:
    source = folder(tmp_path, 2)
    source.records[1].image.write_bytes(FILES["jpeg"][:-100])
    with pytest.raises(DamagedError, match=r"1\.jpg: the JPEG is damaged .*data\.damaged=skip"):
        source.decode(source[1])
