"""The objects that `unpickling.load` returns for values that are not plain Python or numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy by name)
import numpy as np


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function that the file names. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        """The dotted name."""
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False)
class Foreign:
    """The description of an object whose class is not known here.

    Attributes:
        kind: dotted name of its class, or of the function that makes it.
        args: arguments of that call.
        state: the values of its attributes, or None.
        items: keys and values, if it is a kind of dict.
        elements: its elements, if it is a kind of list or set.
    """

    kind: str
    args: Any = ()
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)
    elements: list[Any] = dataclasses.field(default_factory=list)

    # The methods that pickle's instructions call on containers.

    def append(self, element: Any) -> None:
        """Add an element of a list or set."""
        self.elements.append(element)

    add = append

    def extend(self, elements: list[Any]) -> None:
        """Add elements of a list."""
        self.elements.extend(elements)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set an item of a dict."""
        self.items[key] = value


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """A buffer of a file that holds the values of tensors.

    Attributes:
        dtype: PyTorch's name of the dtype, such as "float32"; "" for untyped bytes.
        key: the storage's name in the file.
        offset: start of a view, in values from the start of the buffer.
        data: the bytes, if the pickle itself holds them; otherwise None.
    """

    dtype: str
    key: str
    offset: int = 0
    data: bytes | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """A PyTorch tensor: its place in a storage.

    Attributes:
        storage: holds its values; None if the file has none, as for the device "meta".
        dtype: PyTorch's name, such as "float32".
        offset: of its first value in the storage, in values.
        shape: sizes of its axes.
        strides: of its axes, in values.
        obstacle: why numpy cannot hold it, such as "sparse_coo"; "" if it can.
    """

    storage: Storage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    obstacle: str = ""


_NUMPY_DTYPES = (
    "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool "
    "complex64 complex128"
)


def numpy_dtype(name: str) -> np.dtype[Any] | None:
    """The numpy dtype of PyTorch's name of a dtype; None if numpy has none."""
    return np.dtype(name) if name in _NUMPY_DTYPES.split() else None


def width(dtype: str) -> int:
    """Bytes per value of a dtype that a storage class has."""
    known = numpy_dtype(dtype)
    return known.itemsize if known else 4 if dtype == "qint32" else 1
