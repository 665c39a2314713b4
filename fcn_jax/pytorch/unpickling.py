"""Reads pickles as data: nothing that a file names is imported or called.

A pickle is a program for a stack machine, and its instructions may call any function. Here a name
stays a name (`Global`), and a call becomes a description (`Foreign`). Only the constructors in
`_CONSTRUCTORS` build values, and each of them is a function of this module: PyTorch's tensors,
numpy's arrays and the plain containers.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import pickle
import struct
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np

from fcn_jax.pytorch.pickled import Foreign, Global, Storage, StoredTensor, width


class RefusedError(Exception):
    """The file names a function that has no use in a weights file, such as os.system."""


def load(file: IO[bytes], persistent: Callable[[Any], Any] | None = None) -> Any:
    """Read one pickle from the file's position; the position is then behind the pickle.

    Args:
        file: open for reading, at the pickle's start.
        persistent: makes the object that a persistent ID stands for; without it, such an ID is an
            error.

    Returns:
        Plain Python values, numpy arrays, `StoredTensor`s, `Storage`s, and `Global`s and `Foreign`s
        for everything else.

    Raises:
        RefusedError: the pickle names a function that runs code.
        Exception: of almost any kind, if the file is damaged.
    """
    return _Unpickler(file, persistent).load()


class _Instructions(dict[int, Any]):
    """Methods by instruction."""

    def __missing__(self, code: int) -> Any:
        raise ValueError(f"a pickle with the unknown instruction {bytes([code])!r}")


# The implementation in Python, not the one in C: its instructions can be overridden, and a damaged
# index of the memo does not make it allocate gigabytes.
class _Unpickler(pickle._Unpickler):
    stack: list[Any]
    memo: dict[int, Any]

    def __init__(self, file: IO[bytes], persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(file, encoding="latin-1")
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Global:
        if module == "__builtin__":
            name = _PYTHON_2_BUILTINS.get(name, name)
        module = _PYTHON_2_MODULES.get(module, module)
        if (
            module.partition(".")[0] in _RUN_CODE.split()
            or (module in ("io", "_io") and name == "open")
            or (module == "builtins" and not _is_plain_builtin(name))
        ):
            raise RefusedError(f"{module}.{name}")
        return Global(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise ValueError("a pickle that refers to something outside of it")
        return self._persistent(pid)

    def _instantiate(self, made: Any, args: Any) -> None:
        self.stack.append(_made(made, tuple(args)))

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], args)

    def _newobj_ex(self) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = Foreign(str(self.stack[-1]), args, items=dict(keywords))

    def _build(self) -> None:
        state = self.stack.pop()
        old = self.stack[-1]
        if isinstance(old, Foreign):
            old.state = state
            if old.kind in _NUMPY_ARRAYS:  # complete only now; the memo must hold the same object
                self.stack[-1] = array = _array_of(state)
                self.memo.update({i: array for i, value in self.memo.items() if value is old})
        # Attributes of other objects, such as `_metadata` of a state dict, are not needed.

    dispatch: ClassVar[dict[int, Any]] = _Instructions(
        {
            **pickle._Unpickler.dispatch,
            pickle.REDUCE[0]: _reduce,
            pickle.NEWOBJ[0]: _reduce,
            pickle.NEWOBJ_EX[0]: _newobj_ex,
            pickle.BUILD[0]: _build,
        }
    )


_RUN_CODE = (
    "os posix nt sys subprocess importlib imp runpy shutil socket pty code codeop ctypes _ctypes "
    "marshal pickle _pickle webbrowser pip commands popen2 timeit pdb bdb cProfile"
)
"""Modules that weights never need: a file that names them is made to run code."""

_PLAIN_BUILTINS = (
    "set frozenset bytearray bytes complex slice range object int float str bool list dict tuple "
    "type property getattr Ellipsis NotImplemented memoryview classmethod staticmethod super len "
    "max min sum abs pow round sorted reversed enumerate zip map filter any all chr print"
)

# The names of Python 2, which pickles of the protocols below 3 use.
_PYTHON_2_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "commands": "subprocess",
    "cPickle": "pickle",
}
_PYTHON_2_BUILTINS = {
    "xrange": "range",
    "long": "int",
    "unicode": "str",
    "basestring": "str",
    "unichr": "chr",
}


def _is_plain_builtin(name: str) -> bool:
    return name in _PLAIN_BUILTINS.split() or name.endswith(("Error", "Warning", "Exception"))


def _made(made: Any, args: Any) -> Any:
    """The result of a call: from a function of this module, or a description of the call."""
    if not isinstance(made, Global):
        return Foreign(getattr(made, "kind", type(made).__name__), args)
    kind = str(made)
    if isinstance(args, tuple):
        if kind == "copyreg._reconstructor" and args and isinstance(args[0], Global):
            return _made(args[0], ())
        if (constructor := _CONSTRUCTORS.get(kind)) is not None:
            return constructor(*args)
    return Foreign(kind, args)


# ------------------------------------------------------------------------ PyTorch's constructors

_STORAGE_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "",
}


def storage_of(identity: Any, widths: dict[str, int] | None = None) -> Any:
    """The storage that a persistent ID of a PyTorch file stands for.

    Args:
        identity: ("storage", class, key, device, number of values), and the place of a view in the
            format before PyTorch 1.6.
        widths: receives the bytes per value by the storage's key.
    """
    kind = identity[0] if isinstance(identity, tuple) else None
    if kind in ("module", b"module"):
        return identity[1]  # the class of a network that was pickled as a whole
    if kind not in ("storage", b"storage"):
        raise ValueError("a persistent ID that is not a storage's")
    made, key = identity[1], str(identity[2])
    if not isinstance(made, Global) or made.name not in _STORAGE_DTYPES:
        raise ValueError(f"a storage of an unknown class {made}")
    dtype = _STORAGE_DTYPES[made.name]
    if widths is not None:
        widths[key] = width(dtype)
    view = identity[5] if len(identity) > 5 else None
    return Storage(dtype, key, int(view[1]) if view is not None else 0)


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def load_legacy(file: IO[bytes]) -> tuple[Any, str, dict[str, int]]:
    """Read the structure in a file of the format before PyTorch 1.6.

    Returns:
        The structure, the byte order ("<" or ">"), and the bytes per value of each storage by key.
        The file's position is then at the list of storages.
    """
    if load(file) != _LEGACY_MAGIC:
        raise ValueError("another magic number than PyTorch's")
    load(file)  # version of the format
    system = load(file)
    order = "<" if not isinstance(system, dict) or system.get("little_endian", True) else ">"
    widths: dict[str, int] = {}
    return load(file, functools.partial(storage_of, widths=widths)), order, widths


def _storage_from_bytes(data: Any) -> Any:
    """The storage of a tensor in a plain pickle: a file of the older format that holds only it."""
    file = io.BytesIO(_bytes(data))
    storage, _, widths = load_legacy(file)
    if not isinstance(storage, Storage):
        raise ValueError("a file of a storage that holds something else")
    (key,) = load(file)
    (count,) = struct.unpack("<q", file.read(8))
    return dataclasses.replace(storage, data=file.read(count * widths[str(key)]))


def _integers(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("sizes and strides of a tensor that are not counts")
    return numbers


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    """`_rebuild_tensor` and `_rebuild_tensor_v2`; `rest` is requires_grad, hooks, flags."""
    return _placed(storage, None, offset, shape, strides, _pending(rest[2:3]))


def _tensor_with_dtype(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    """`_rebuild_tensor_v3`; `rest` is requires_grad, hooks, dtype, flags."""
    if len(rest) < 3 or not isinstance(rest[2], Global):
        raise ValueError("a tensor without a dtype")
    return _placed(storage, rest[2].name, offset, shape, strides, _pending(rest[3:4]))


def _quantized(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    return _placed(storage, None, offset, shape, strides, "quantized")


def _pending(flags: tuple[Any, ...]) -> str:
    """The operation still to be applied to the values of a view: "neg", "conj" or ""."""
    if not flags or not isinstance(flags[0], dict):
        return ""
    return next((str(name) for name, is_set in flags[0].items() if is_set), "")


def _placed(
    storage: Any, dtype: str | None, offset: Any, shape: Any, strides: Any, obstacle: str
) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    sizes, steps, (start,) = _integers(shape), _integers(strides), _integers((offset,))
    if len(sizes) != len(steps):
        raise ValueError("a tensor whose number of strides is not that of its axes")
    dtype = dtype or storage.dtype or "uint8"
    return StoredTensor(storage, dtype, storage.offset + start, sizes, steps, obstacle)


def _sparse(layout: Any, data: Any, *_: Any) -> Any:
    names = [arg for arg in getattr(layout, "args", ()) if isinstance(arg, str)]
    kind = names[0].removeprefix("torch.") if names else "sparse"
    parts = [part for part in data if isinstance(part, StoredTensor)]
    shape = next((part for part in data if isinstance(part, tuple)), ())
    dtype = parts[-1].dtype if parts else "float32"
    return StoredTensor(None, dtype, 0, _integers(shape), (0,) * len(shape), kind)


def _meta(dtype: Any, shape: Any, strides: Any, *_: Any) -> Any:
    name = dtype.name if isinstance(dtype, Global) else "float32"
    return StoredTensor(None, name, 0, _integers(shape), _integers(strides), "meta")


def _first(data: Any = None, *_: Any) -> Any:
    return data


def _of_type(made: Any = None, _type: Any = None, args: Any = (), *_: Any) -> Any:
    """`_rebuild_from_type_v2`, for tensors with attributes and of subclasses."""
    return _made(made, args)


# -------------------------------------------------------------------------- numpy's constructors

_NUMPY_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")


def _dtype(described: Any) -> np.dtype[Any] | None:
    """The dtype that a `numpy.dtype` of the file describes; None if it is not a number's."""
    if not (isinstance(described, Foreign) and described.kind == "numpy.dtype" and described.args):
        return None
    name = described.args[0]
    try:
        dtype = np.dtype(name.decode("ascii") if isinstance(name, bytes) else str(name))
    except (ValueError, TypeError):
        return None
    if dtype.kind not in "biufc":
        return None
    state = described.state
    if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
        dtype = dtype.newbyteorder(state[1])
    return dtype


def _bytes(data: Any) -> bytes:
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _array_of(state: Any) -> Any:
    """An array from its state: (version, shape, dtype, whether in Fortran's order, values)."""
    shape, described, fortran, data = state[-4:]
    if _dtype(described) is None:  # strings or objects: a setting or a history
        return Foreign("numpy.ndarray", state=state)
    return _array(data, described, shape, "F" if fortran else "C")


def _array(data: Any, described: Any, shape: Any, order: Any = "C", *_: Any) -> Any:
    dtype, sizes, raw = _dtype(described), _integers(shape), _bytes(data)
    if dtype is None:
        raise ValueError("a numpy array without a dtype of numbers")
    if len(raw) != math.prod(sizes) * dtype.itemsize:
        raise ValueError("a numpy array whose number of values is not that of its shape")
    array = np.frombuffer(raw, dtype).reshape(sizes, order="F" if order == "F" else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _scalar(described: Any, data: Any = None, *_: Any) -> Any:
    if data is None or _dtype(described) is None:
        return Foreign("numpy.scalar")
    return _array(data, described, ())[()]


def _encoded(text: Any, encoding: Any = "latin1", *_: Any) -> Any:
    is_latin_1 = str(encoding).replace("-", "").lower() in ("latin1", "iso88591")
    return str(text).encode("latin-1" if is_latin_1 else "utf-8")


def _ordered(pairs: Any = (), *_: Any) -> Any:
    return dict(pairs.items() if isinstance(pairs, dict) else [tuple(pair) for pair in pairs])


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": _ordered,
    "torch.Size": lambda items=(), *_: tuple(items),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_xla_tensor": _first,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._tensor._rebuild_from_type": _of_type,
    "torch.tensor._rebuild_from_type": _of_type,
    "torch.nn.parameter.Parameter": _first,
    "torch.nn.parameter.Buffer": _first,
    "torch.storage._load_from_bytes": _storage_from_bytes,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    "numpy._core.numeric._frombuffer": _array,
    "_codecs.encode": _encoded,
}
