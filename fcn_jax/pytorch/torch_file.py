"""Opens PyTorch's weight files without PyTorch: zip archives, the older format, plain pickles.

The values of a tensor are read when they are asked for, one tensor at a time.
"""

from __future__ import annotations

import functools
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from fcn_jax.pytorch import unpickling
from fcn_jax.pytorch.pickled import Foreign, StoredTensor, numpy_dtype, width

Read = Callable[[StoredTensor], np.ndarray]
"""Reads a tensor's values. Raises `OSError` or `EOFError` if the file is damaged or has changed."""


class _Place(NamedTuple):
    """The bytes of a storage in a file.

    `crc` is their CRC-32, or 0 if it is not known; `unpack` reads them if they are compressed.
    """

    start: int
    size: int
    crc: int = 0
    unpack: Callable[[], bytes] | None = None


def open_archive(file: IO[bytes]) -> tuple[Any, Read]:
    """Open a zip archive, PyTorch's format since version 1.6.

    Returns:
        The structure in the file, and a function that reads its tensors while the file is open.
    """
    archive = zipfile.ZipFile(file)
    members = {member.filename.replace("\\", "/"): member for member in archive.infolist()}
    pickled = next(name for name in members if name.endswith("data.pkl") and name.count("/") <= 1)
    root = pickled.removesuffix("data.pkl")
    written = members.get(root + "byteorder")
    order = ">" if written and archive.read(written).strip() == b"big" else "<"
    tree = unpickling.load(io.BytesIO(archive.read(members[pickled])), unpickling.storage_of)

    def place(member: zipfile.ZipInfo) -> _Place:
        # Uncompressed storages, the only kind that PyTorch writes, are read in place, because a
        # tensor may need only a part. The contents follow a header with two fields of any length.
        file.seek(member.header_offset + 26)
        start = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        unpack = functools.partial(archive.read, member)
        is_stored = member.compress_type == zipfile.ZIP_STORED
        return _Place(start, member.file_size, member.CRC, None if is_stored else unpack)

    places = {
        name.removeprefix(f"{root}data/"): place(member)
        for name, member in members.items()
        if "/data/" in f"/{name}"
    }
    return tree, _reader(file, tree, places, order)


def open_legacy(file: IO[bytes]) -> tuple[Any, Read]:
    """Open a file of the format before PyTorch 1.6; see `open_archive`."""
    tree, order, widths = unpickling.load_legacy(file)
    places: dict[str, _Place] = {}
    for key in unpickling.load(file):
        (count,) = struct.unpack("<q", file.read(8))
        places[str(key)] = _Place(file.tell(), count * widths[str(key)])
        file.seek(places[str(key)].size, io.SEEK_CUR)
    size = file.seek(0, io.SEEK_END)
    if any(place.start + place.size > size for place in places.values()):
        raise ValueError("the values end too early")
    return tree, _reader(file, tree, places, order)


def open_pickle(file: IO[bytes]) -> tuple[Any, Read]:
    """Open a plain pickle of numpy arrays or tensors; see `open_archive`."""
    tree = unpickling.load(file)
    return tree, _reader(file, tree, {}, "<")


def _reader(file: IO[bytes], tree: Any, places: Mapping[str, _Place], order: str) -> Read:
    """A function that reads tensors. Raises `ValueError` if one lies outside its storage."""

    def read(tensor: StoredTensor) -> np.ndarray:
        assert tensor.storage is not None
        before, length = _extent(tensor)
        if tensor.storage.data is not None:
            data = np.frombuffer(tensor.storage.data[before : before + length], np.uint8)
            return _shaped(data, length, "<", tensor)
        place = places[tensor.storage.key]
        if place.unpack is not None:
            data = np.frombuffer(place.unpack()[before : before + length], np.uint8)
            return _shaped(data, length, order, tensor)
        data = np.empty(length, np.uint8)
        file.seek(place.start + before)
        if file.readinto(data.data) != length:  # type: ignore[attr-defined]
            raise EOFError("the file is too short")
        if length == place.size and place.crc and zlib.crc32(data.data) != place.crc:
            raise EOFError(
                "its values were changed after they were written: their checksum is wrong"
            )
        return _shaped(data, length, order, tensor)

    for tensor in _tensors_in(tree):
        if obstacle(tensor) or tensor.storage is None or tensor.storage.data is not None:
            continue
        if sum(_extent(tensor)) > places[tensor.storage.key].size:
            raise ValueError("a tensor reaches beyond its place in the file")
    return read


def _tensors_in(tree: Any) -> Iterator[StoredTensor]:
    """All tensors of a structure that `unpickling.load` returned, each once."""
    seen: set[int] = set()
    rest = [tree]
    while rest:
        value = rest.pop()
        if isinstance(value, (str, int, float, bytes, type(None))) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, StoredTensor):
            yield value
        elif isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, (list, tuple)):
            rest += value
        elif isinstance(value, Foreign):
            rest += [value.args, value.state, value.items, value.elements]


def obstacle(tensor: StoredTensor) -> str | None:
    """Why a tensor has no values that numpy can hold; None if it has."""
    kind = tensor.obstacle
    if kind == "meta":
        return (
            f"is a {tensor.dtype} tensor on the device meta, which has a shape and no values: it "
            "was saved before it was filled"
        )
    if kind == "quantized":
        return (
            f"is a quantized torch.{tensor.dtype} tensor, which numpy cannot hold; save the "
            "network before it is quantized"
        )
    if kind in ("neg", "conj"):
        done = {"neg": "negated", "conj": "conjugated"}[kind]
        return f"is a view whose values are still to be {done}; save it after .resolve_{kind}()"
    if kind or numpy_dtype(tensor.dtype) is None:
        return f"is a {kind or 'strided'} torch.{tensor.dtype} tensor, which numpy cannot hold"
    return None


def _extent(tensor: StoredTensor) -> tuple[int, int]:
    """The offset of a tensor's first value in its storage, and the length to its last, in bytes."""
    step_bytes = width(tensor.dtype)
    ends = ((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    length = (sum(ends) + 1) * step_bytes if math.prod(tensor.shape) else 0
    return tensor.offset * step_bytes, length


def _shaped(data: np.ndarray, length: int, order: str, tensor: StoredTensor) -> np.ndarray:
    dtype = numpy_dtype(tensor.dtype)
    assert dtype is not None
    if len(data) != length:
        raise EOFError("the file is too short")
    if order == ">":
        part = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        data = data.reshape(-1, part)[:, ::-1].reshape(-1)
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, dtype)
    steps = tuple(stride * dtype.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(data.view(dtype), tensor.shape, steps)
