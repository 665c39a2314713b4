"""Images: valid files of many kinds, whose upright picture is known, and damaged files."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz import damage, product
from fuzz.cases import Trial, UndetectableError, mutation
from fuzz.encoders import (
    GRAY,
    GRAY_ALPHA,
    INDEXED,
    RGB,
    RGBA,
    by_pillow,
    chunk,
    exif,
    png,
    png_chunks,
    stored,
    tiff,
)

Rng = np.random.Generator
Right = Callable[[np.ndarray], str | None]


def picture(rng: Rng, smooth: bool = False) -> np.ndarray:
    """Draw a picture without symmetry: u8[H,W,3]. Lossy formats hardly change a smooth one."""
    height, width = (
        (int(rng.integers(16, 40)) for _ in range(2))
        if smooth
        else (int(rng.integers(1, 40)) for _ in range(2))
    )
    rows, columns = np.mgrid[:height, :width]
    slopes = rng.uniform(0.3, 1.0, (3, 2))
    base = np.stack(
        [20 + 200 * (a * rows / height + b * columns / width) / 2 for a, b in slopes], -1
    )
    if not smooth:
        base += rng.normal(0, 40, base.shape)
    return np.clip(base, 0, 255).astype(np.uint8)


def write(place: Path, name: str, data: bytes) -> Path:
    """Write a file of the case; returns its path."""
    path = place / name
    path.write_bytes(data)
    return path


def exactly(expected: np.ndarray) -> Right:
    """Check that the result has these pixels."""

    def right(result: np.ndarray) -> str | None:
        if result.dtype != np.uint8 or result.shape != expected.shape:
            turned = any(np.array_equal(result, turn) for turn in _turns(expected))
            return _shapes(result, expected) + turned * " (it is rotated)"
        if wrong := int((result != expected).any(-1).sum()):
            turned = any(np.array_equal(result, turn) for turn in _turns(expected))
            return f"{wrong} of {expected[..., 0].size} pixels differ" + turned * " (it is rotated)"
        return None

    return right


def nearly(expected: np.ndarray, mean: float, most: float = 255) -> Right:
    """Check that the result differs from these pixels by at most these amounts."""

    def right(result: np.ndarray) -> str | None:
        if result.dtype != np.uint8 or result.shape != expected.shape:
            return _shapes(result, expected)
        off = np.abs(result.astype(float) - expected)
        if off.mean() > mean or off.max() > most:
            return (
                f"mean error {off.mean():.1f}, maximum {off.max():.0f}; allowed are {mean} and "
                f"{most}"
            )
        return None

    return right


def _shapes(result: np.ndarray, expected: np.ndarray) -> str:
    shapes = f"{result.dtype}{list(result.shape)}", f"{expected.dtype}{list(expected.shape)}"
    return f"{shapes[0]}, expected {shapes[1]}"


def _turns(pixels: np.ndarray) -> list[np.ndarray]:
    return [stored(pixels, orientation) for orientation in range(1, 9)]


def _valid(place: Path, name: str, data: bytes, right: Right, *, refusable: bool = False) -> Trial:
    path = write(place, name, data)
    return Trial(
        call=lambda: product.read_image(path), right=right, refusable=refusable, names=[name]
    )


def _rgb(samples: np.ndarray, depth: int = 8) -> np.ndarray:
    """Convert gray or RGB samples of a bit depth to u8[H,W,3]; alpha is dropped."""
    samples = samples if samples.ndim == 3 else samples[..., None]
    scaled = np.rint(samples.astype(float) * 255 / (2**depth - 1)).astype(np.uint8)
    return np.repeat(scaled[..., :1], 3, axis=-1) if samples.shape[-1] < 3 else scaled[..., :3]


# ---------------------------------------------------------------------------------------- valid PNG


def _png_of_any_kind(
    rng: Rng, orientation: int = 1, before: Sequence[bytes] = ()
) -> tuple[bytes, np.ndarray]:
    """Return a PNG of at most eight bits, and its upright picture."""
    color = int(rng.choice([GRAY, RGB, INDEXED, GRAY_ALPHA, RGBA]))
    depth = int(rng.choice([1, 2, 4, 8])) if color in (GRAY, INDEXED) else 8
    base = picture(rng)
    palette = None
    if color == INDEXED:
        palette = rng.integers(0, 256, (int(rng.integers(1, 2**depth + 1)), 3), np.uint8)
        samples = base[..., 0].astype(int) % len(palette)
        upright = palette[samples]
    else:
        alpha = rng.integers(0, 256, base.shape[:2], np.uint8)
        samples = {
            GRAY: base[..., 0] >> (8 - depth),
            RGB: base,
            GRAY_ALPHA: np.dstack([base[..., 0], alpha]),
            RGBA: np.dstack([base, alpha]),
        }[color]
        upright = _rgb(samples, depth)
    data = png(
        stored(samples, orientation),
        depth=depth,
        color=color,
        palette=palette,
        interlaced=bool(rng.integers(2)),
        before=before,
        orientation=orientation,
        rng=rng,
    )
    return data, upright


@mutation("images", 4)
def png_of_any_kind(rng: Rng, place: Path) -> Trial:
    """PNG: gray, RGB, indexed or with alpha; 1 to 8 bits; interlaced or not; all filters."""
    data, upright = _png_of_any_kind(rng)
    return _valid(place, "picture.png", data, exactly(upright))


@mutation("images", 3)
def png_orientation(rng: Rng, place: Path) -> Trial:
    """A PNG has an orientation in an eXIf chunk."""
    data, upright = _png_of_any_kind(rng, orientation=int(rng.integers(2, 9)))
    return _valid(place, "photo.png", data, exactly(upright))


@mutation("images", 2)
def png_ancillary_chunks(rng: Rng, place: Path) -> Trial:
    """A PNG has chunks that do not affect pixels."""
    known = [
        chunk(b"tEXt", b"Comment\0" + rng.bytes(9).hex().encode()),
        chunk(b"tIME", struct.pack(">HBBBBB", 2024, 2, 29, 12, 30, 60)),
        chunk(b"pHYs", struct.pack(">IIB", 3000, 3000, 1)),
        chunk(b"iTXt", b"Title\0\0\0\0\0" + "Straße".encode()),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 50)),
        chunk(b"vpAg", rng.bytes(9)),
        chunk(b"prVt", rng.bytes(int(rng.integers(0, 50)))),
        chunk(b"sRGB", b"\0"),
    ]
    chosen = [known[k] for k in rng.permutation(len(known))[: rng.integers(1, len(known))]]
    data, upright = _png_of_any_kind(rng, before=chosen)
    return _valid(place, "picture.png", data + bytes(int(rng.integers(2)) * 20), exactly(upright))


@mutation("images", 1)
def png_transparent_color(rng: Rng, place: Path) -> Trial:
    """A PNG has a tRNS chunk; transparency is dropped like an alpha channel."""
    base = picture(rng)
    if rng.integers(2):
        palette = rng.integers(0, 256, (16, 3), np.uint8)
        data = png(
            base[..., 0] >> 4,
            color=INDEXED,
            palette=palette,
            before=[chunk(b"tRNS", rng.bytes(int(rng.integers(1, 17))))],
        )
        return _valid(place, "picture.png", data, exactly(palette[base[..., 0] >> 4]))
    data = png(base, before=[chunk(b"tRNS", struct.pack(">HHH", *map(int, base[0, 0])))])
    return _valid(place, "picture.png", data, exactly(base))


@mutation("images", 2)
def sixteen_bits(rng: Rng, place: Path) -> Trial:
    """PNG and TIFF of 16 bits with the full range of values: 65535 is white."""
    wide = picture(rng).astype(np.uint16) * 257
    wide.flat[0], wide.flat[-1] = 65535, 0
    samples = wide if rng.integers(2) else wide[..., 0]
    if rng.integers(2):
        data = png(samples, depth=16, interlaced=bool(rng.integers(2)), rng=rng)
    else:
        data = tiff(
            samples, depth=16, order=str(rng.choice(["<", ">"])), deflated=bool(rng.integers(2))
        )
    return _valid(place, "wide.img", data, nearly(_rgb(samples, 16), 1, 1), refusable=True)


@mutation("images", 2)
def ten_to_fourteen_bits_in_sixteen(rng: Rng, place: Path) -> Trial:
    """A camera's 10 to 14 bits in 16: rejected, or scaled so that the picture is visible."""
    bits = int(rng.integers(10, 15))
    base = picture(rng, smooth=True)[..., 0]
    base.flat[0], base.flat[-1] = 255, 0
    samples = (base.astype(int) * (2**bits - 1) // 255).astype(np.uint16)
    data = tiff(samples, depth=16) if rng.integers(2) else png(samples, depth=16)

    def right(result: np.ndarray) -> str | None:
        if result.max() < 100:
            return f"{bits} bits are read as 0 to {result.max()}: almost black"
        order = np.argsort(samples, axis=None)
        if (np.diff(result[..., 0].ravel()[order].astype(int)) < 0).any():
            return "some brighter pixels become darker than others"
        return None

    return _valid(place, "camera.img", data, right, refusable=True)


# --------------------------------------------------------------------------------------- valid JPEG


def _jpeg_options(rng: Rng) -> dict[str, Any]:
    options: dict[str, Any] = {
        "quality": 95,
        "progressive": bool(rng.integers(2)),
        "subsampling": int(rng.integers(3)),
    }
    if rng.integers(2):
        options["restart_marker_blocks"] = int(rng.integers(1, 5))
    if rng.integers(2):
        options["comment"] = b"\xff\xd8 a thumbnail \xff\xd9"
    return options


@mutation("images", 3)
def jpeg_of_any_kind(rng: Rng, place: Path) -> Trial:
    """JPEG: baseline or progressive; gray, RGB or CMYK; restart markers, comments, extra bytes."""
    upright = picture(rng, smooth=True)
    mode = str(rng.choice(["RGB", "L", "CMYK"]))
    expected = np.asarray(Image.fromarray(upright).convert(mode).convert("RGB"))
    data = by_pillow(upright, "JPEG", mode, **_jpeg_options(rng))
    data += rng.bytes(int(rng.integers(0, 60))) if rng.integers(2) else b""
    return _valid(place, "photo.jpg", data, nearly(expected, 3, 30))


@mutation("images", 4)
def jpeg_orientation(rng: Rng, place: Path) -> Trial:
    """A JPEG has an EXIF orientation."""
    upright, orientation = picture(rng, smooth=True), int(rng.integers(1, 9))
    data = by_pillow(
        stored(upright, orientation), "JPEG", exif=exif(orientation), **_jpeg_options(rng)
    )
    return _valid(place, "photo.jpg", data, nearly(upright, 3, 30))


@mutation("images", 1)
def orientation_that_does_not_exist(rng: Rng, place: Path) -> Trial:
    """The orientation is 0, 9 or more, which viewers ignore."""
    upright = picture(rng, smooth=True)
    data = by_pillow(upright, "JPEG", exif=exif(int(rng.choice([0, 9, 255, 65535]))), quality=95)
    return _valid(place, "photo.jpg", data, nearly(upright, 3, 30), refusable=True)


@mutation("images", 1)
def jpeg_with_a_thumbnail(rng: Rng, place: Path) -> Trial:
    """The EXIF segment of a JPEG has a complete JPEG as thumbnail."""
    upright, orientation = picture(rng, smooth=True), int(rng.integers(1, 9))
    thumbnail = by_pillow(np.zeros((8, 8, 3), np.uint8), "JPEG")
    entries = struct.pack(">HHII", 0x0112, 3, 1, orientation << 16)
    second = struct.pack(">HHII", 0x0201, 4, 1, 56) + struct.pack(
        ">HHII", 0x0202, 4, 1, len(thumbnail)
    )
    body = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 1) + entries + struct.pack(">I", 26)
    body += struct.pack(">H", 2) + second + struct.pack(">I", 0)
    data = by_pillow(
        stored(upright, orientation),
        "JPEG",
        exif=b"Exif\0\0" + body.ljust(56, b"\0") + thumbnail,
        quality=95,
    )
    return _valid(place, "photo.jpg", data, nearly(upright, 3, 30))


# ----------------------------------------------------------------------------- valid, other formats


def _tiff_of_any_kind(rng: Rng, orientation: int = 1) -> tuple[bytes, np.ndarray]:
    base, kind = picture(rng), str(rng.choice(["gray", "rgb", "indexed"]))
    depth = int(rng.choice([1, 4, 8])) if kind == "gray" else 8
    options: dict[str, Any] = {
        "order": str(rng.choice(["<", ">"])),
        "deflated": bool(rng.integers(2)),
        "rows_per_strip": int(rng.integers(1, 9)) if rng.integers(2) else None,
        "orientation": orientation,
    }
    if kind == "indexed":
        palette = rng.integers(0, 256, (256, 3), np.uint8)
        return tiff(stored(base[..., 0], orientation), palette=palette, **options), palette[
            base[..., 0]
        ]
    samples = base if kind == "rgb" else base[..., 0] >> (8 - depth)
    white_is_zero = kind == "gray" and depth in (1, 8) and bool(rng.integers(2))
    kept = (2**depth - 1 - samples).astype(np.uint8) if white_is_zero else samples
    return tiff(
        stored(kept, orientation), depth=depth, white_is_zero=white_is_zero, **options
    ), _rgb(samples, depth)


@mutation("images", 3)
def tiff_of_any_kind(rng: Rng, place: Path) -> Trial:
    """TIFF: gray of 1 to 8 bits, RGB, indexed; byte orders, strips, deflate, LZW, PackBits."""
    if rng.integers(3) == 0:
        upright = picture(rng)
        compression = str(rng.choice(["tiff_lzw", "packbits", "tiff_adobe_deflate", "raw"]))
        return _valid(
            place,
            "picture.tif",
            by_pillow(upright, "TIFF", compression=compression),
            exactly(upright),
        )
    data, upright = _tiff_of_any_kind(rng)
    return _valid(place, "picture.tif", data, exactly(upright))


@mutation("images", 2)
def tiff_orientation(rng: Rng, place: Path) -> Trial:
    """A TIFF has an orientation tag."""
    data, upright = _tiff_of_any_kind(rng, int(rng.integers(2, 9)))
    return _valid(place, "scan.tif", data, exactly(upright))


@mutation("images", 1)
def tiff_of_floats(rng: Rng, place: Path) -> Trial:
    """Floats from 0 to 1 or 255: rejected, or scaled so that the picture is visible."""
    values = picture(rng, smooth=True)[..., 0].astype(np.float32)
    values.flat[0], values.flat[-1] = 255, 0
    expected = np.repeat(values.astype(np.uint8)[..., None], 3, -1)
    data = tiff(values / 255 if rng.integers(2) else values)
    return _valid(place, "float.tif", data, nearly(expected, 1, 2), refusable=True)


@mutation("images", 2)
def webp(rng: Rng, place: Path) -> Trial:
    """WebP: lossless or lossy, with alpha, with an orientation."""
    upright, orientation = picture(rng, smooth=True), int(rng.integers(1, 9))
    lossless, turned = bool(rng.integers(2)), stored(upright, orientation)
    if lossless and rng.integers(2):
        turned = np.dstack([turned, rng.integers(1, 256, turned.shape[:2], np.uint8)])
    tags: dict[str, Any] = {"exif": exif(orientation)} if orientation > 1 else {}
    data = by_pillow(turned, "WEBP", lossless=lossless, quality=95, exact=True, **tags)
    return _valid(
        place, "picture.webp", data, exactly(upright) if lossless else nearly(upright, 4, 60)
    )


@mutation("images", 1)
def bmp(rng: Rng, place: Path) -> Trial:
    """BMP of 1, 8 and 24 bits, gray, indexed or RGB."""
    base, mode = picture(rng), str(rng.choice(["1", "L", "P", "RGB"]))
    image = Image.fromarray(base).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return _valid(
        place, "picture.bmp", buffer.getvalue(), exactly(np.asarray(image.convert("RGB")))
    )


_NAMES = (
    "café.png",
    "Straße 1.png",
    "日本.png",
    "a b  c.png",
    "UPPER.PNG",
    "x.jpg",
    "noending",
    "-o.png",
    "a%20b.png",
    "[1].png",
    "x.tar.gz",
    "ü.JPG",
)


@mutation("images", 1)
def names_and_wrong_endings(rng: Rng, place: Path) -> Trial:
    """The contents of a file determine its format; its name does not."""
    data, upright = _png_of_any_kind(rng)
    return _valid(place, str(rng.choice(_NAMES)), data, exactly(upright))


# ------------------------------------------------------------------------------------------ damaged


def _damaged_png(kind: str) -> Callable[[Rng, Path], Trial]:
    def make(rng: Rng, place: Path) -> Trial:
        data, upright = _png_of_any_kind(rng, orientation=int(rng.choice([1, 1, 6])))
        return _valid(
            place, "damaged.png", damage.ALL[kind](rng, data), exactly(upright), refusable=True
        )

    make.__name__ = f"png_{kind}"
    make.__doc__ = "The checksums detect the damage, or the picture is unchanged."
    return make


for _kind, _weight in {
    "flip": 4,
    "overwrite": 2,
    "zero": 2,
    "cut": 3,
    "remove": 2,
    "insert": 2,
    "repeat": 2,
    "newlines": 1,
}.items():
    mutation("images", _weight)(_damaged_png(_kind))


@mutation("images", 3)
def png_chunks_moved(rng: Rng, place: Path) -> Trial:
    """A chunk is removed, repeated or swapped with another; all checksums are correct."""
    data, upright = _png_of_any_kind(rng)
    parts = png_chunks(data)
    at, other = (int(rng.integers(1, len(parts))) for _ in range(2))
    choice = int(rng.integers(3))
    if choice == 0:
        del parts[at]
    elif choice == 1:
        parts.insert(other, parts[at])
    else:
        parts[at], parts[other] = parts[other], parts[at]
    # A late or second palette changes the colors of the file. Then Pillow's result is correct.
    return _valid(
        place,
        "moved.png",
        b"".join(parts),
        _as_pillow_at_worst(exactly(upright), b"".join(parts)),
        refusable=True,
    )


@mutation("images", 3)
def png_header(rng: Rng, place: Path) -> Trial:
    """The header has another size, depth or color type, with a correct checksum."""
    data, upright = _png_of_any_kind(rng)
    parts = png_chunks(data)
    header = bytearray(parts[1][8:-4])
    if rng.integers(2):
        value = int(
            rng.choice(
                [
                    0,
                    1,
                    upright.shape[0] + 1,
                    upright.shape[1] * 2,
                    65536,
                    2**31 - 1,
                    2**31,
                    2**32 - 1,
                ]
            )
        )
        struct.pack_into(">I", header, int(rng.choice([0, 4])), value)
    else:
        header[int(rng.integers(8, 13))] = int(rng.choice([0, 1, 2, 3, 4, 5, 6, 8, 16, 255]))
    parts[1] = chunk(b"IHDR", bytes(header))
    changed = b"".join(parts)
    return _valid(
        place, "header.png", changed, _as_pillow_at_worst(exactly(upright), changed), refusable=True
    )


def _as_pillow_at_worst(right: Right, data: bytes) -> Right:
    """Check that the result is right or, as an undetectable case, equal to Pillow's."""

    def judge(result: np.ndarray) -> str | None:
        fault = right(result)
        if fault is None:
            return None
        other = _by_pillow(data)
        if other is None:
            return f"{fault}; Pillow rejects the file"
        for turn in _turns(other):
            if turn.shape == result.shape and np.abs(turn.astype(int) - result).mean() < 2:
                raise UndetectableError(
                    "no checksum: the changed file is valid, and Pillow reads it in the same way"
                )
        return f"{fault}; Pillow reads another picture"

    return judge


def _by_pillow(data: bytes) -> np.ndarray | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                if image.width * image.height > 10_000_000:
                    return None
                if image.mode.startswith("I;16"):
                    return _rgb(np.asarray(image), 16)
                return np.asarray(image.convert("RGB"))
    except Exception:  # Pillow raises errors of many types
        return None


def _damaged_jpeg(kind: str) -> Callable[[Rng, Path], Trial]:
    def make(rng: Rng, place: Path) -> Trial:
        noisy = np.clip(picture(rng, smooth=True) + rng.normal(0, 20, (1, 1, 3)), 0, 255).astype(
            np.uint8
        )
        noisy = np.kron(noisy, np.ones((2, 2, 1), np.uint8))
        options = {**_jpeg_options(rng), "quality": 85}
        data = by_pillow(noisy, "JPEG", **options)
        undamaged = _by_pillow(data)
        changed = damage.ALL[kind](rng, data)
        path = write(place, "damaged.jpg", changed)
        assert undamaged is not None

        def right(result: np.ndarray) -> str | None:
            fault = nearly(undamaged, 2, 60)(result)
            if fault is None:
                return None
            complaint = _libjpeg_complaint(changed)
            if complaint is not None:
                return f"{fault}; libjpeg says: {complaint}"
            raise UndetectableError(
                "no checksum: the changed JPEG is a valid stream, and libjpeg reports no error"
            )

        return Trial(call=lambda: product.read_image(path), right=right, names=["damaged.jpg"])

    make.__name__ = f"jpeg_{kind}"
    make.__doc__ = (
        "Damage that the decoder detects is an error. A changed coefficient cannot be detected."
    )
    return make


for _kind, _weight in {
    "flip": 4,
    "overwrite": 2,
    "zero": 4,
    "cut": 3,
    "remove": 2,
    "insert": 2,
    "repeat": 2,
    "newlines": 1,
}.items():
    mutation("images", _weight)(_damaged_jpeg(_kind))


def _libjpeg_complaint(data: bytes) -> str | None:
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, strict=True)
    except ValueError as error:
        return str(error)
    return None


@mutation("images", 4)
def tiff_webp_bmp_damaged(rng: Rng, place: Path) -> Trial:
    """Formats without checksums: an error, the right picture, or Pillow's result."""
    kind = str(rng.choice(["tif", "webp", "bmp"]))
    if kind == "tif":
        data, upright = _tiff_of_any_kind(rng)
    else:
        upright = picture(rng)
        data = (
            by_pillow(upright, "WEBP", lossless=True)
            if kind == "webp"
            else by_pillow(upright, "BMP")
        )
    changed = damage.some(rng, data)
    return _valid(
        place,
        f"damaged.{kind}",
        changed,
        _as_pillow_at_worst(exactly(upright), changed),
        refusable=True,
    )


@mutation("images", 2)
def tiff_webp_bmp_cut(rng: Rng, place: Path) -> Trial:
    """A truncated file is never read as a complete picture."""
    kind = str(rng.choice(["TIFF", "WEBP", "BMP"]))
    upright = picture(rng)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = by_pillow(upright, kind, **options)
    return _valid(
        place, f"cut.{kind.lower()}", damage.cut(rng, data), exactly(upright), refusable=True
    )


@mutation("images", 2)
def gigantic_sizes(rng: Rng, place: Path) -> Trial:
    """A header claims more pixels than memory can hold, or no pixels."""
    side = int(rng.choice([0, 65535, 2**31 - 1, 2**32 - 1]))
    small = np.zeros((4, 4, 3), np.uint8)
    kind = str(rng.choice(["png", "jpg", "bmp", "tif", "webp"]))
    if kind == "png":
        parts = png_chunks(png(small))
        parts[1] = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        data = b"".join(parts)
    elif kind == "jpg":
        data = by_pillow(small, "JPEG")
        at = data.index(b"\xff\xc0") + 5
        data = data[:at] + struct.pack(">HH", side % 65536, side % 65536) + data[at + 4 :]
    elif kind == "bmp":
        data = by_pillow(small, "BMP")
        data = data[:18] + struct.pack("<II", side, side) + data[26:]
    elif kind == "tif":
        data = tiff(small)
        for tag in (256, 257):
            at = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
            data = data[:at] + struct.pack("<I", side) + data[at + 4 :]
    else:
        data = by_pillow(small, "WEBP", quality=90)
        at = data.index(b"\x9d\x01\x2a") + 3
        data = data[:at] + struct.pack("<HH", side % 16384, side % 16384) + data[at + 4 :]
    path = write(place, f"giant.{kind}", data)
    return Trial(call=lambda: product.read_image(path), names=[path.name])


_NO_IMAGES = (
    b"",
    b"\0",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    b"<!DOCTYPE html><html><body>404</body></html>",
    b"<svg xmlns='http://www.w3.org/2000/svg' width='5' height='5'/>",
    b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    b"\0\0\0 ftypheic\0\0\0\0mif1heic",
    b"\0\0\0 ftypisom\0\0\2\0isomiso2avc1mp41",
    b"\x89PNG\r\n\x1a\n",
    b"\x89PNG\r\n\x1a\n IEND",
    b"\xff\xd8\xff\xd9",
    b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    b"II*\0\x08\0\0\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"RIFF\x10\0\0\0WEBPVP8 ",
    b"BM" + bytes(52),
    b"GIF89a",
    b"PK\x03\x04" + bytes(26),
    b"\x93NUMPY\x01\0v\0{'descr': '|u1'}",
)


@mutation("images", 2)
def no_image_at_all(rng: Rng, place: Path) -> Trial:
    """A file is not an image, or has only the first bytes of one."""
    data = bytes(rng.choice(np.array(_NO_IMAGES, object)))
    if rng.integers(3) == 0:
        data += rng.bytes(int(rng.integers(1, 300)))
    path = write(place, "odd.jpg", data)
    return Trial(call=lambda: product.read_image(path), names=["odd.jpg"])


@mutation("images", 1)
def no_file(rng: Rng, place: Path) -> Trial:
    """The path is a folder, a broken link or a missing file, or its name is too long."""
    name = "thing.jpg"
    choice = int(rng.integers(4))
    if choice == 0:
        (place / name).mkdir()
    elif choice == 1:
        (place / name).symlink_to("gone.jpg")
    elif choice == 2:
        name = "x" * 300 + ".jpg"
    return Trial(call=lambda: product.read_image(place / name), names=[name])
