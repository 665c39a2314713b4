"""Reads and writes weight files as numpy arrays by name: PyTorch's formats and `.safetensors`.

`.safetensors` files may be distributed over several ones, with an index.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import pickle
import struct
import weakref
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import WeightsError, listing
from fcn_jax.pytorch import kinds, state_dicts, torch_file, unpickling
from fcn_jax.pytorch.pickled import StoredTensor
from fcn_jax.pytorch.state_dicts import Entry, StateDict, Tensors
from fcn_jax.runtime.atomic import replacing

SUFFIXES = (".pth", ".pt", ".safetensors")
"""Suffixes of files that can be written. A file that is read is recognized by its contents."""


_INDEX = ".safetensors.index.json"
"""Suffix of the list of the files over which large `.safetensors` weights are distributed."""


def sha256(path: Path) -> str:
    """The SHA-256 of a file's contents in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(tensors: Mapping[str, Any]) -> str:
    """The SHA-256 of tensors: their names in order, dtypes, shapes and values, in hexadecimal."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        value = np.asarray(tensors[name], order="C")
        sha.update(f"{name} {value.dtype.name} {value.shape}\n".encode())
        sha.update(value.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def open_state_dicts(path: str | Path) -> list[StateDict]:
    """Open a file and find its state dicts. Tensors are read when they are looked up.

    The format is recognized by the file's contents, not by its name. Nothing that the file names is
    imported or called, and PyTorch is not needed (`fcn_jax.pytorch.unpickling`).

    Returns:
        The state dicts, at least one, in the order of the file; see `state_dicts.find`. Looking a
        tensor up raises `WeightsError` if the file has become unreadable, or numpy cannot hold it.

    Raises:
        WeightsError: the file is missing, truncated, of another format, names functions that run
            code, or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path}: {kinds.of_directory(path)}")
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    if path.name.endswith(_INDEX):
        return [StateDict("", _open_shards(path))]
    kind = kinds.kind_of(path)
    if kind == kinds.SAFETENSORS:
        return [StateDict("", _open_safetensors(path))]
    return _open_pickled(path, kind)


def open_tensors(
    path: str | Path, key: str | None = None, holding: Collection[str] = ()
) -> Tensors:
    """Open one state dict of a file. Tensors are read one at a time, when they are looked up.

    Args:
        path: see `open_state_dicts`.
        key: its place in the file, such as "model_ema". The default is the largest state dict; of
            several equally large ones, the first that is not a running average.
        holding: names that it must contain because an earlier call found them. They may lie in
            nested dicts.

    Returns:
        Arrays by PyTorch's names, in the file's order and dtypes (bfloat16 as
        `ml_dtypes.bfloat16`).

    Raises:
        WeightsError: as `open_state_dicts` does, or the key or the names do not exist.
    """
    found = [
        state
        for state in open_state_dicts(path)
        if key in (None, state.key) and all(name in state.tensors for name in holding)
    ]
    if not found:
        raise WeightsError(f"{path}: lacks tensors that it held before: {listing(holding, 4)}")

    def rank(state: StateDict) -> tuple[object, ...]:
        return not state.joined, len(state.tensors), not state_dicts.is_average(state.key)

    return max(found, key=rank).tensors


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Read all tensors of a file at once; see `open_tensors`."""
    return dict(open_tensors(path))


def write(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict that `load_state_dict(strict=True)` accepts. No partial file is left.

    Args:
        path: ends in `.pth`, `.pt` or `.safetensors`.
        tensors: arrays by PyTorch's names.
        metadata: texts for the header of a `.safetensors` file; other files have no place for them.

    Raises:
        WeightsError: the suffix is not `.pth`, `.pt` or `.safetensors`, or torch is needed and not
            installed.
        WriteError: the file cannot be written.
    """
    path = require_suffix(path)
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(contiguous, temporary, metadata={"format": "pt", **(metadata or {})})
            return
        try:
            import torch
        except ImportError as error:
            raise WeightsError(
                f"{path}: {path.suffix} files are written by PyTorch; "
                "pip install 'fcn-jax[torch]', or use .safetensors"
            ) from error
        state = {name: _to_torch(torch, value) for name, value in contiguous.items()}
        torch.save(state, temporary)


def require_suffix(path: str | Path) -> Path:
    """Return the path of a file to write. Raises `WeightsError` if its suffix is not allowed."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"{path}: a weights file to write ends in {', '.join(SUFFIXES)}; this one ends in "
            f"'{path.suffix}'"
        )
    return path


def to_numpy(value: Any, name: str) -> np.ndarray:
    """A numpy view of a torch tensor or an array. Raises `WeightsError` if numpy cannot hold it."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            import ml_dtypes
            import torch

            return np.asarray(value.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
        try:
            return np.asarray(value.numpy())
        except (TypeError, RuntimeError) as error:  # eight bits, quantized, sparse
            layout = str(value.layout).removeprefix("torch.")
            raise WeightsError(
                f"'{name}' is a {layout} {value.dtype} tensor, which numpy cannot hold"
            ) from error
    return np.asarray(value)


def state_dicts_of(loaded: Any, source: str) -> list[StateDict]:
    """The state dicts in a structure in memory, such as `torch.load` returns.

    Raises:
        WeightsError: there is none; the message calls the structure `source`.
    """
    return state_dicts.find(loaded, lambda name, value: _entry_of(name, value, source), source)


def tensors_of(loaded: Mapping[str, Any], source: str) -> Tensors:
    """The arrays of a state dict in memory, each converted when it is looked up."""
    entries = {str(name): _entry_of(str(name), value, source) for name, value in loaded.items()}
    return Tensors({name: entry for name, entry in entries.items() if entry is not None})


def _to_torch(torch: Any, value: np.ndarray) -> Any:
    if value.dtype.name == "bfloat16":  # torch does not accept numpy's
        return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(value.copy())


def _open_safetensors(path: Path) -> Tensors:
    import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors looks up by name)
    from safetensors import SafetensorError, safe_open

    @contextlib.contextmanager
    def clear_errors() -> Any:
        try:
            yield
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(
                f"{path}: not a readable .safetensors file ({error}); is it complete?"
            ) from error
        except (KeyError, AttributeError, TypeError) as error:  # a dtype that numpy lacks
            raise WeightsError(
                f"{path}: holds tensors of a type that numpy lacks ({error})"
            ) from error

    def get(name: str) -> np.ndarray:
        with clear_errors():
            return np.asarray(file.get_tensor(name))

    with clear_errors():
        # Not memory-mapped: the mapped pages would be in memory in addition to the arrays.
        file = safe_open(path, framework="numpy", backend="pread")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return Tensors(
        {name: Entry(functools.partial(get, name), shape) for name, shape in shapes.items()}
    )


def _open_shards(index: Path) -> Tensors:
    """The tensors of several files that an index lists: {"weight_map": {tensor: file}}."""
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({Path(str(name)).name for name in placed.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index}: not a readable index of .safetensors files; expected "
            '{"weight_map": {TENSOR: FILE}}'
        ) from error
    if missing := [name for name in shards if not (index.parent / name).is_file()]:
        raise WeightsError(
            f"{index}: {len(missing)} of the {len(shards)} files that it lists are missing: "
            f"{listing(missing, 4)}; put them next to it"
        )
    entries: dict[str, Entry] = {}
    for shard in shards:
        tensors = _open_safetensors(index.parent / shard)
        entries |= {name: tensors.entry(name) for name in tensors}
    if lacking := sorted(placed.keys() - entries.keys()):
        raise WeightsError(f"{index}: its files lack tensors that it lists: {listing(lacking, 4)}")
    return Tensors(entries)


def _reason(error: Exception) -> str:
    """What an error says about a damaged file, in parentheses; empty if that explains nothing."""
    if isinstance(error, EOFError | struct.error):
        return " (it ends too early)"
    explains = isinstance(error, ValueError | pickle.UnpicklingError | zipfile.BadZipFile)
    if not explains or isinstance(error, UnicodeError) or not str(error):
        return ""
    return f" ({str(error).splitlines()[0]})"


def _open_pickled(path: Path, kind: str) -> list[StateDict]:
    opening = {
        kinds.ARCHIVE: torch_file.open_archive,
        kinds.LEGACY: torch_file.open_legacy,
        kinds.PICKLE: torch_file.open_pickle,
    }[kind]
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        try:
            tree, reader = opening(file)
        except unpickling.RefusedError as error:
            raise WeightsError(
                f"{path}: refused, because it holds more than tensors and loading it could run "
                f"code: it names {error}; save a state dict instead: "
                "torch.save(model.state_dict(), ...)"
            ) from error
        except Exception as error:  # damaged files lead to almost any exception
            reason = _reason(error)
            raise WeightsError(
                f"{path}: not a readable PyTorch file{reason}; is it complete?"
            ) from error

        def entry(name: str, value: Any) -> Entry | None:
            if isinstance(value, StoredTensor):
                read = functools.partial(_read_stored, reader, value, f"{path}: '{name}'")
                return Entry(read, value.shape)
            return _entry_of(name, value, str(path))

        found = state_dicts.find(tree, entry, str(path))
        # The file stays open while tensors refer to `reader`. A file that replaces it on disk in
        # the meantime changes nothing.
        weakref.finalize(reader, opened.pop_all().close)
    return found


def _read_stored(read: torch_file.Read, tensor: StoredTensor, name: str) -> np.ndarray:
    if fault := torch_file.obstacle(tensor):
        raise WeightsError(f"{name} {fault}")
    try:
        return read(tensor)
    except Exception as error:  # a damaged archive makes zipfile raise almost any exception
        raise WeightsError(f"{name} cannot be read ({error})") from error


def _entry_of(name: str, value: Any, source: str) -> Entry | None:
    """The entry of a torch tensor or array in memory; None for values that are not tensors."""
    if isinstance(value, (Mapping, list, tuple, str, bytes, np.generic)):
        return None
    is_tensor = hasattr(value, "detach") or hasattr(value, "__array__")
    if not (is_tensor and hasattr(value, "shape")):
        return None
    return Entry(functools.partial(to_numpy, value, f"{source}: {name}"), tuple(value.shape))
