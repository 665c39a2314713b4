"""PyTorch's weight files read without PyTorch: the archives of today, the format before PyTorch 1.6, and plain pickles.

The values of a tensor are read when they are asked for, one tensor at a time.
"""

from __future__ import annotations

import functools
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from fcn_jax.pytorch import unpickling
from fcn_jax.pytorch.unpickling import Global, Storage, StoredTensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first value in a file of the format before PyTorch 1.6."""

Read = Callable[[StoredTensor], np.ndarray]
"""Reads the values of a tensor. Raises `OSError` or `EOFError` if the file is damaged or has changed."""


def open_archive(file: IO[bytes]) -> tuple[Any, Read]:
    """Open a zip archive of PyTorch's.

    Returns:
        What it holds, and what reads its tensors as long as the file is open.
    """
    archive = zipfile.ZipFile(file)
    members = {member.filename.replace("\\", "/"): member for member in archive.infolist()}
    pickled = next(name for name in members if name.endswith("data.pkl") and name.count("/") <= 1)
    root = pickled.removesuffix("data.pkl")
    order = "<"
    if root + "byteorder" in members:
        order = ">" if archive.read(members[root + "byteorder"]).strip() == b"big" else "<"
    tree = unpickling.load(io.BytesIO(archive.read(members[pickled])), _storage)
    # A tensor may need only a part of its storage. What is not compressed, as PyTorch never does,
    # is read in place.
    starts = {
        name.removeprefix(f"{root}data/"): (_start(file, member), member)
        for name, member in members.items()
        if "/data/" in f"/{name}"
    }

    def read(tensor: StoredTensor) -> np.ndarray:
        assert tensor.storage is not None
        before, length = _extent(tensor)
        start, member = starts[tensor.storage.key]
        if member.compress_type != zipfile.ZIP_STORED:
            data = archive.read(member)[before : before + length]
            return _shaped(np.frombuffer(data, np.uint8), length, order, tensor)
        values = _read_at(file, start + before, length)
        # Where PyTorch was set to write no checksums, they are 0.
        if length == member.file_size and member.CRC and zlib.crc32(values.data) != member.CRC:
            raise EOFError(
                "its values were changed after they were written: their checksum is wrong"
            )
        return _shaped(values, length, order, tensor)

    def check(tensor: StoredTensor) -> None:
        before, length = _extent(tensor)
        if tensor.storage is None or before + length > starts[tensor.storage.key][1].file_size:
            raise ValueError("a tensor reaches out of its place in the file")

    _for_each(tree, check)
    return tree, _with_own_data(read)


def open_legacy(file: IO[bytes]) -> tuple[Any, Read]:
    """Open a file of the format before PyTorch 1.6; see `open_archive`."""
    if unpickling.load(file) != LEGACY_MAGIC:
        raise ValueError("another magic number than PyTorch's")
    unpickling.load(file)  # version of the format
    system = unpickling.load(file)
    order = "<" if not isinstance(system, dict) or system.get("little_endian", True) else ">"
    widths: dict[str, int] = {}
    tree = unpickling.load(file, functools.partial(_storage, widths=widths))
    places: dict[str, tuple[int, int]] = {}
    end = file.seek(0, io.SEEK_CUR)
    for key in unpickling.load(file):
        end = file.seek(0, io.SEEK_CUR)
        (count,) = struct.unpack("<q", file.read(8))
        length = count * widths[str(key)]
        places[str(key)] = (end + 8, length)
        file.seek(end + 8 + length)
    size = file.seek(0, io.SEEK_END)

    def read(tensor: StoredTensor) -> np.ndarray:
        assert tensor.storage is not None
        before, length = _extent(tensor)
        return _shaped(
            _read_at(file, places[tensor.storage.key][0] + before, length), length, order, tensor
        )

    def check(tensor: StoredTensor) -> None:
        before, length = _extent(tensor)
        start, available = places[tensor.storage.key] if tensor.storage else (0, -1)
        if before + length > available or start + available > size:
            raise ValueError("a tensor reaches out of its place in the file")

    if any(start + length > size for start, length in places.values()):
        raise ValueError("the values end too early")
    _for_each(tree, check)
    return tree, _with_own_data(read)


def open_pickle(file: IO[bytes]) -> tuple[Any, Read]:
    """Open a plain pickle, of numpy arrays or tensors; see `open_archive`."""

    def read(tensor: StoredTensor) -> np.ndarray:
        raise EOFError("a tensor without values")

    tree = unpickling.load(file)
    return tree, _with_own_data(read)


def storage_in(file: IO[bytes]) -> Storage:
    """The storage that a file of the older format holds, with its values."""
    if unpickling.load(file) != LEGACY_MAGIC:
        raise ValueError("another magic number than PyTorch's")
    unpickling.load(file)
    unpickling.load(file)
    widths: dict[str, int] = {}
    storage = unpickling.load(file, functools.partial(_storage, widths=widths))
    if not isinstance(storage, Storage):
        raise ValueError("no storage")
    (key,) = unpickling.load(file)
    (count,) = struct.unpack("<q", file.read(8))
    return Storage(storage.dtype, storage.key, storage.offset, file.read(count * widths[str(key)]))


def tensors_in(tree: Any) -> list[StoredTensor]:
    """All tensors of a structure, as `unpickling.load` gives it, each once."""
    found: dict[int, StoredTensor] = {}
    seen: set[int] = set()
    rest = [tree]
    while rest:
        value = rest.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, StoredTensor):
            found[id(value)] = value
        elif isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, (list, tuple)):
            rest += [
                item for item in value if not isinstance(item, (str, int, float, bytes, type(None)))
            ]
        elif isinstance(value, unpickling.Foreign):
            rest += [value.args, value.state, value.items, value.elements]
    return list(found.values())


def _for_each(tree: Any, check: Callable[[StoredTensor], None]) -> None:
    for tensor in tensors_in(tree):
        if (
            not tensor.obstacle
            and tensor.storage is not None
            and tensor.storage.data is None
            and _numpy_dtype(tensor.dtype)
        ):
            check(tensor)


def obstacle(tensor: StoredTensor) -> str | None:
    """Why a tensor has no values that numpy can hold, or None where it has."""
    if tensor.obstacle == "meta":
        return f"is a {tensor.dtype} tensor on the device meta, which has a shape and no values: it was saved before it was filled"
    if tensor.obstacle == "quantized":
        return f"is a quantized torch.{tensor.dtype} tensor, which numpy cannot hold; save the network before it is quantized"
    if tensor.obstacle in ("neg", "conj"):
        done = {"neg": "negated", "conj": "conjugated"}[tensor.obstacle]
        return f"is a view whose values are still to be {done}; save it after .resolve_{tensor.obstacle}()"
    if tensor.obstacle or _numpy_dtype(tensor.dtype) is None:
        return f"is a {tensor.obstacle or 'strided'} torch.{tensor.dtype} tensor, which numpy cannot hold"
    return None


_NUMPY = [
    "float32",
    "float64",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "complex64",
    "complex128",
]


def _numpy_dtype(name: str) -> np.dtype[Any] | None:
    if name == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name) if name in _NUMPY else None


def _storage(identity: Any, widths: dict[str, int] | None = None) -> Any:
    """What a persistent ID stands for: ("storage", class, key, device, number of values), in the older format with a view's place."""
    kind = identity[0] if isinstance(identity, tuple) else None
    if kind in ("module", b"module"):
        return identity[1]  # the class of a network that was pickled as a whole
    if kind not in ("storage", b"storage"):
        raise ValueError("a reference to something that is no storage")
    made, key = identity[1], str(identity[2])
    if not isinstance(made, Global) or made.name not in unpickling.STORAGE_DTYPES:
        raise ValueError(f"a storage of an unknown class {made}")
    dtype = unpickling.STORAGE_DTYPES[made.name]
    if widths is not None:
        widths[key] = _width(dtype)
    view = identity[5] if len(identity) > 5 else None
    return Storage(dtype, key, int(view[1]) if view is not None else 0)


def _width(dtype: str) -> int:
    if not dtype or dtype in ("qint8", "quint8", "quint4x2", "quint2x4"):
        return 1
    if dtype == "qint32":
        return 4
    known = _numpy_dtype(dtype)
    assert known is not None
    return known.itemsize


def _extent(tensor: StoredTensor) -> tuple[int, int]:
    """The bytes of a tensor's storage before its first value, and those from there to the end of its last."""
    width = _width(tensor.dtype)
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    return tensor.offset * width, (last + 1) * width if math.prod(tensor.shape) else 0


def _shaped(data: np.ndarray, length: int, order: str, tensor: StoredTensor) -> np.ndarray:
    dtype = _numpy_dtype(tensor.dtype)
    assert dtype is not None
    if len(data) != length:
        raise EOFError("the file is too short")
    if order == ">":
        width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        data = data.reshape(-1, width)[:, ::-1].reshape(-1)
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, dtype)
    steps = tuple(stride * dtype.itemsize for stride in tensor.strides)
    return np.lib.stride_tricks.as_strided(data.view(dtype), tensor.shape, steps)


def _with_own_data(read: Read) -> Read:
    """Values that the pickle itself holds need no file."""

    def reader(tensor: StoredTensor) -> np.ndarray:
        if tensor.storage is None or tensor.storage.data is None:
            return read(tensor)
        before, length = _extent(tensor)
        return _shaped(
            np.frombuffer(tensor.storage.data[before : before + length], np.uint8),
            length,
            "<",
            tensor,
        )

    return reader


def _start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where a member's contents begin: behind a header with the name and another field, both of no fixed length."""
    file.seek(member.header_offset + 26)
    return member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


def _read_at(file: IO[bytes], start: int, length: int) -> np.ndarray:
    values = np.empty(length, np.uint8)
    file.seek(start)
    if file.readinto(values.data) != length:  # type: ignore[attr-defined]
        raise EOFError("the file is too short")
    return values


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive with what PyTorch writes into it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
