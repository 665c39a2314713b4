"""Pickles read as data: the structure that a file describes, without importing or calling anything that it names.

A pickle is a small program whose instructions may call any function. Here the instructions build
plain Python values only. What the file names is kept as a name (`Global`), and what it would
construct is kept as a description (`Foreign`), except for a fixed list of constructors, each of
which is replaced by a function of this module: PyTorch's tensors, numpy's arrays and the plain
containers.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import IO, Any

import numpy as np


class RefusedError(Exception):
    """The file names a function that has no place next to weights, such as os.system."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function that the file names; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        """The dotted name."""
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False)
class Foreign:
    """An object of a class that is not known here: what it would be made from.

    Attributes:
        kind: the dotted name of its class or of the function that makes it.
        args: what that is called with.
        state: what its attributes are set from, or None.
        items: its keys and values, if it is a kind of dict.
        elements: its elements, if it is a kind of list or set.
    """

    kind: str
    args: Any = ()
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)
    elements: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """Where the values of tensors lie in a file.

    Attributes:
        dtype: PyTorch's name of the dtype, such as "float32"; "" for bytes without one.
        key: the storage's name in the file.
        offset: of a view, in values from the storage's start.
        data: the bytes themselves, where the pickle holds them; otherwise None.
    """

    dtype: str
    key: str
    offset: int = 0
    data: bytes | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of PyTorch's: its place in a storage.

    Attributes:
        storage: holds its values; None where the file has no values, as for the device "meta".
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


STORAGE_DTYPES = {
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
"""PyTorch's storage classes and the dtypes of their values."""

_RUN_CODE = frozenset(
    [
        "os",
        "posix",
        "nt",
        "sys",
        "subprocess",
        "importlib",
        "imp",
        "runpy",
        "shutil",
        "socket",
        "pty",
        "code",
        "codeop",
        "ctypes",
        "_ctypes",
        "marshal",
        "pickle",
        "_pickle",
        "webbrowser",
        "pip",
        "commands",
        "popen2",
        "timeit",
        "pdb",
        "bdb",
        "cProfile",
    ]
)
"""Modules whose names have no place among weights: a file that uses them is made to run code."""

_PLAIN_BUILTINS = frozenset(
    [
        "set",
        "frozenset",
        "bytearray",
        "bytes",
        "complex",
        "slice",
        "range",
        "object",
        "int",
        "float",
        "str",
        "bool",
        "list",
        "dict",
        "tuple",
        "type",
        "property",
        "getattr",
        "Ellipsis",
        "NotImplemented",
        "memoryview",
        "classmethod",
        "staticmethod",
        "super",
        "len",
        "max",
        "min",
        "sum",
        "abs",
        "pow",
        "round",
        "sorted",
        "reversed",
        "enumerate",
        "zip",
        "map",
        "filter",
        "any",
        "all",
        "chr",
        "print",
    ]
)


def load(file: IO[bytes], persistent: Callable[[Any], Any] | None = None) -> Any:
    """Read one pickle from where the file is; the file is left behind its end.

    Args:
        file: open for reading, at the pickle's start.
        persistent: makes what a persistent ID of the pickle stands for; without it, such an ID is
            an error.

    Returns:
        Plain Python values, numpy arrays, `StoredTensor`s, `Storage`s, and `Global`s and `Foreign`s
        for all else.

    Raises:
        RefusedError: it names a function that runs code.
        Exception: whatever a damaged file leads to.
    """
    return _Machine(persistent).run(file)


class _Machine:
    """The stack machine that a pickle is a program of."""

    def __init__(self, persistent: Callable[[Any], Any] | None) -> None:
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        for opcode, arg, _ in pickletools.genops(file):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _ARGUMENTS:
                self.stack.append(arg)
            else:
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    raise ValueError(f"a pickle with the instruction {name}")
                step(arg)
        raise EOFError("the pickle has no end")

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _proto(self, _: Any) -> None:
        pass

    _frame = _proto

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, index: Any) -> None:
        self.memo[int(index)] = self.stack[-1]

    _binput = _long_binput = _put

    def _get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    _binget = _long_binget = _get

    def _tuple(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _list(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _frozenset(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(Foreign("builtins.frozenset", elements=items))

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Foreign):
            target.elements.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise ValueError(f"a pickle that appends to a {type(target).__name__}")

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self, _: Any) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.items if isinstance(target, Foreign) else target
        if not isinstance(entries, dict):
            raise ValueError(f"a pickle that sets an item of a {type(target).__name__}")
        entries.update(zip(items[::2], items[1::2], strict=True))

    def _global(self, arg: Any) -> None:
        module, _, name = str(arg).partition(" ")
        self.stack.append(_named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_named(str(module), str(name)))

    def _inst(self, arg: Any) -> None:
        module, _, name = str(arg).partition(" ")
        args = self._since_mark()
        self.stack.append(_made(_named(module, name), tuple(args)))

    def _obj(self, _: Any) -> None:
        made, *args = self._since_mark()
        self.stack.append(_made(made, tuple(args)))

    def _reduce(self, _: Any) -> None:
        args = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], args)

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        made = Foreign(str(self.stack[-1]), args, None)
        made.items.update(keywords)
        self.stack[-1] = made

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Foreign):
            if target.kind in _NUMPY_ARRAYS:
                self._replace(target, _array_of(state))
            else:
                target.state = state
        # An attribute of anything else, such as `_metadata` of a state dict, is of no use here.

    def _replace(self, old: Any, new: Any) -> None:
        """An array is complete once its state is known; what the memo holds of it must be the same object."""
        self.stack[-1] = new
        for index, value in self.memo.items():
            if value is old:
                self.memo[index] = new

    def _persid(self, arg: Any) -> None:
        self.stack.append(self._stored(arg))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self._stored(self.stack.pop()))

    def _stored(self, identity: Any) -> Any:
        if self.persistent is None:
            raise ValueError("a pickle that refers to something outside of it")
        return self.persistent(identity)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Foreign("builtins.set"),
}

_ARGUMENTS = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    ]
)


_PYTHON_2 = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "commands": "subprocess",
    "cPickle": "pickle",
}
"""Modules that pickles of the protocols below 3 call by their old names."""


_PYTHON_2_BUILTINS = {
    "xrange": "range",
    "long": "int",
    "unicode": "str",
    "basestring": "str",
    "unichr": "chr",
}
"""What the builtins of Python 2 are called today; pickles of the protocols below 3 name them so."""


def _named(module: str, name: str) -> Global:
    if module == "__builtin__":
        name = _PYTHON_2_BUILTINS.get(name, name)
    module = _PYTHON_2.get(module, module)
    opens = name == "open" and module in ("io", "_io")
    if (
        opens
        or module.partition(".")[0] in _RUN_CODE
        or (module == "builtins" and not _is_plain_builtin(name))
    ):
        raise RefusedError(f"{module}.{name}")
    return Global(module, name)


def _is_plain_builtin(name: str) -> bool:
    return name in _PLAIN_BUILTINS or name.endswith(("Error", "Warning", "Exception"))


def _made(made: Any, args: Any) -> Any:
    """What calling `made` gives: by a function of this module, or a description of the call."""
    if isinstance(made, Global) and isinstance(args, tuple):
        if (
            made.module == "copyreg"
            and made.name == "_reconstructor"
            and args
            and isinstance(args[0], Global)
        ):
            return _made(args[0], ())
        constructor = _CONSTRUCTORS.get(str(made))
        if constructor is not None:
            return constructor(*args)
    return Foreign(
        str(made) if isinstance(made, Global) else getattr(made, "kind", type(made).__name__), args
    )


# ------------------------------------------------------------------------------------------------------------ PyTorch's constructors


def _integers(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("sizes and strides of a tensor that are no counts")
    return numbers


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    """`_rebuild_tensor` and `_rebuild_tensor_v2`; the rest is requires_grad, hooks, and whether it is conjugated or negated."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    flags = rest[2] if len(rest) > 2 and isinstance(rest[2], dict) else {}
    return _place(storage, storage.dtype or "uint8", offset, shape, strides, _pending(flags))


def _tensor_with_dtype(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    """`_rebuild_tensor_v3`, of dtypes that have no storage class; the rest is requires_grad, hooks, dtype, flags."""
    if not isinstance(storage, Storage) or len(rest) < 3 or not isinstance(rest[2], Global):
        raise ValueError("a tensor without a storage")
    flags = rest[3] if len(rest) > 3 and isinstance(rest[3], dict) else {}
    return _place(storage, rest[2].name, offset, shape, strides, _pending(flags))


def _pending(flags: dict[Any, Any]) -> str:
    """What is still to be done to the values of a view: "neg", "conj" or nothing."""
    return next((str(name) for name, is_set in flags.items() if is_set), "")


def _place(
    storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any, obstacle: str
) -> StoredTensor:
    sizes, steps = _integers(shape), _integers(strides)
    (start,) = _integers((offset,))
    if len(sizes) != len(steps):
        raise ValueError("a tensor with another number of strides than of axes")
    return StoredTensor(storage, dtype, storage.offset + start, sizes, steps, obstacle)


def _quantized(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return _place(storage, storage.dtype, offset, shape, strides, "quantized")


def _sparse(layout: Any, data: Any, *_: Any) -> Any:
    kind = next(
        (arg.removeprefix("torch.") for arg in getattr(layout, "args", ()) if isinstance(arg, str)),
        "sparse",
    )
    parts = [part for part in data if isinstance(part, StoredTensor)]
    shape = next((part for part in data if isinstance(part, tuple)), ())
    return StoredTensor(
        None, parts[-1].dtype if parts else "float32", 0, _integers(shape), (0,) * len(shape), kind
    )


def _meta(dtype: Any, shape: Any, strides: Any, *_: Any) -> Any:
    name = dtype.name if isinstance(dtype, Global) else "float32"
    return StoredTensor(None, name, 0, _integers(shape), _integers(strides), "meta")


def _first(data: Any = None, *_: Any) -> Any:
    return data


def _of_type(made: Any = None, _type: Any = None, args: Any = (), *_: Any) -> Any:
    """`_rebuild_from_type_v2`, of tensors with attributes and of subclasses."""
    return _made(made, args)


def _storage_of_bytes(data: Any) -> Any:
    """A storage that a plain pickle of tensors holds: a file of PyTorch's older format, with nothing but the storage in it."""
    import io

    from fcn_jax.pytorch import torch_file

    return torch_file.storage_in(io.BytesIO(_bytes(data)))


# -------------------------------------------------------------------------------------------------------------- numpy's constructors

_NUMPY_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")


def _dtype(described: Any) -> np.dtype[Any]:
    """The dtype that a `numpy.dtype` of the file describes, if it is a plain number's."""
    if not (isinstance(described, Foreign) and described.kind == "numpy.dtype" and described.args):
        raise ValueError("a numpy array without a dtype")
    name = described.args[0]
    dtype = np.dtype(name.decode("ascii") if isinstance(name, bytes) else str(name))
    if dtype.kind not in "biufc":
        raise ValueError(f"a numpy array of {dtype}")
    if (
        isinstance(described.state, tuple)
        and len(described.state) > 1
        and described.state[1] in ("<", ">")
    ):
        dtype = dtype.newbyteorder(described.state[1])
    return dtype


def _is_plain(described: Any) -> bool:
    try:
        _dtype(described)
    except (ValueError, TypeError):
        return False
    return True


def _bytes(data: Any) -> bytes:
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _array_of(state: Any) -> Any:
    """An array by its pickled state: (version, shape, dtype, whether in Fortran's order, values)."""
    shape, described, fortran, data = state[-4:]
    if not _is_plain(described):
        return Foreign(
            "numpy.ndarray", state=state
        )  # of strings or objects: a setting or a history
    return _buffer(data, described, shape, "F" if fortran else "C")


def _buffer(data: Any, described: Any, shape: Any, order: Any = "C", *_: Any) -> Any:
    dtype = _dtype(described)
    sizes = _integers(shape)
    raw = _bytes(data)
    if len(raw) != math.prod(sizes) * dtype.itemsize:
        raise ValueError("a numpy array with another number of values than its shape has")
    return (
        np.frombuffer(raw, dtype)
        .reshape(sizes, order="F" if order == "F" else "C")
        .astype(dtype.newbyteorder("="), copy=False)
    )


def _scalar(described: Any, data: Any = None, *_: Any) -> Any:
    if data is None or not _is_plain(described):
        return Foreign("numpy.scalar")
    return _buffer(data, described, ())[()]


def _encoded(text: Any, encoding: Any = "latin1", *_: Any) -> Any:
    return (
        str(text).encode("latin-1")
        if str(encoding).replace("-", "").lower() in ("latin1", "iso88591")
        else str(text).encode()
    )


def _ordered(pairs: Any = (), *_: Any) -> Any:
    return dict(pairs.items() if isinstance(pairs, dict) else [tuple(pair) for pair in pairs])


def _empty_dict(*_: Any) -> Any:
    return {}


def _tuple_of(items: Any = (), *_: Any) -> Any:
    return tuple(items)


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _empty_dict,
    "collections.Counter": _ordered,
    "torch.Size": _tuple_of,
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
    "torch.storage._load_from_bytes": _storage_of_bytes,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _buffer,
    "numpy._core.numeric._frombuffer": _buffer,
    "_codecs.encode": _encoded,
}
