"""PyTorch's `.pth` files tensor by tensor: `torch.load` on the device "meta" gives shapes, and says where in the file the values lie."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any


def members(file: io.BufferedReader) -> dict[int, int]:
    """Where in a zip archive the members' contents begin, and how many bytes each has; leaves the file at its start.

    Nothing if it is no archive, or if something in it is compressed, as PyTorch never does.
    """
    found = {}
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
        for member in listed:
            if member.compress_type != zipfile.ZIP_STORED:
                return {}
            file.seek(member.header_offset + 26)
            header = 30 + sum(struct.unpack("<HH", file.read(4)))  # with the name and another field of no fixed length
            found[member.header_offset + header] = member.file_size
    except Exception:  # damaged archives make zipfile raise almost anything
        return {}
    finally:
        file.seek(0)
    return found


def lies_in(members: Mapping[int, int], value: Any) -> bool:
    """Whether `value` is a tensor on the device "meta" that `read` can read: dense, and all its values are one member's.

    PyTorch says where those begin in an attribute that it documents nowhere, and does not say in older releases. It is taken only where
    a member of the archive begins, too.
    """
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided:
        return False
    if value.is_quantized or value.is_conj() or value.is_neg():
        return False
    start: Any = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    return start in members and sum(_extent(value)) <= members[start]


def read(file: io.BufferedReader, described: Any) -> Any:
    """Read the values of one tensor for which `lies_in` holds.

    Returns:
        A torch tensor of its shape, strides and dtype, with memory of its own.

    Raises:
        OSError: the file cannot be read.
        EOFError: it has become shorter.
    """
    import torch

    before, length = _extent(described)
    values = torch.empty(length, dtype=torch.uint8)
    file.seek(described.untyped_storage()._checkpoint_offset + before)
    if file.readinto(values.numpy().data) != length:
        raise EOFError("the file is too short")
    return values.view(described.dtype).as_strided(described.shape, described.stride())


def _extent(value: Any) -> tuple[int, int]:
    """The bytes of a tensor's storage before its first value, and those from there to the end of its last."""
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    length = (last + 1) * value.element_size() if value.numel() else 0
    return value.storage_offset() * value.element_size(), length
