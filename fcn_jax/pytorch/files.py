"""Weight files to and from named numpy arrays: PyTorch's formats, `.safetensors`, and pickles of arrays."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import WeightsError, listing
from fcn_jax.pytorch import kinds, state_dicts, torch_file, unpickling
from fcn_jax.pytorch.state_dicts import Entry, StateDict, Tensors
from fcn_jax.runtime.atomic import replacing

SUFFIXES = (".pth", ".pt", ".safetensors")
"""How a file that is written must end. What is read is known by its contents."""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_state_dicts(path: str | Path) -> list[StateDict]:
    """Open a file and find the state dicts in it; no tensor is read yet, and each is read when it is looked up.

    The format is known by the file's contents, whatever its name ends in. Nothing that the file
    names is imported or called, and PyTorch is not needed: pickles are read as data
    (`fcn_jax.pytorch.unpickling`).

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
    kind = kinds.kind_of(path)
    if kind == kinds.SAFETENSORS:
        return [StateDict("", _open_safetensors(path))]
    return _open_pickled(path, kind)


def open_tensors(
    path: str | Path, key: str | None = None, holding: Collection[str] = ()
) -> Tensors:
    """The state dict of a file, whose tensors are read one at a time.

    Args:
        path: see `open_state_dicts`.
        key: where in the file it lies, such as "model_ema". Without it the largest, and of equal
            ones the first that is no average.
        holding: names that it must hold, which may lie in nested dicts.

    Returns:
        Arrays by PyTorch's names, in the file's order and dtypes (bfloat16 as
        `ml_dtypes.bfloat16`).

    Raises:
        WeightsError: as `open_state_dicts` does, or there is no such key or names.
    """
    states = open_state_dicts(path)
    found = states if key is None else state_dicts.under(states, key, str(path))
    found = [state for state in found if all(name in state.tensors for name in holding)]
    if not found:
        raise WeightsError(f"{path}: lacks tensors that it held before: {listing(holding, 4)}")
    return max(
        found,
        key=lambda state: (
            not state.joined,
            len(state.tensors),
            not state_dicts.is_average(state.key),
        ),
    ).tensors


def read(path: str | Path, key: str | None = None) -> dict[str, np.ndarray]:
    """All tensors of a file at once; see `open_tensors` for what is read and what is raised."""
    return dict(open_tensors(path, key))


def write(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a state dict that `load_state_dict(strict=True)` takes; the file appears whole or not at all.

    Raises:
        WeightsError: the suffix is not one of `.pth`, `.pt`, `.safetensors`, or torch is needed and
            missing.
        WriteError: the file cannot be written.
    """
    path = require_suffix(path)
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(contiguous, temporary, metadata={"format": "pt"})
        else:
            torch = _import_torch(path)
            torch.save(
                {name: _to_torch(torch, value) for name, value in contiguous.items()}, temporary
            )


def require_suffix(path: str | Path) -> Path:
    """The path of a weights file to write. Raises `WeightsError` if it does not end as one."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"{path}: a weights file to write ends in {', '.join(SUFFIXES)}; this one in '{path.suffix}'"
        )
    return path


def to_numpy(value: Any, name: str) -> np.ndarray:
    """A numpy view of a torch tensor or array. Raises `WeightsError` naming what is no tensor."""
    if isinstance(value, np.ndarray):
        return value
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
    if hasattr(value, "__array__"):
        return np.asarray(value)
    nested = (
        "; a state dict may lie under 'model' or 'state_dict', otherwise save it by itself"
        if isinstance(value, Mapping)
        else ""
    )
    raise WeightsError(f"{name}: of type {type(value).__name__}, not a tensor{nested}")


def _to_torch(torch: Any, value: np.ndarray) -> Any:
    if value.dtype.name == "bfloat16":  # which torch does not take from numpy
        return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(value.copy())


def _open_safetensors(path: Path) -> Tensors:
    import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors asks for by name)
    from safetensors import SafetensorError, safe_open

    def get(name: str) -> np.ndarray:
        try:
            return file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(
                f"{path}: not a readable .safetensors file ({error}); is it complete?"
            ) from error
        except (KeyError, AttributeError, TypeError) as error:  # a dtype that numpy lacks
            raise WeightsError(
                f"{path}: holds tensors of a type that numpy lacks ({error})"
            ) from error

    try:
        # Read, not mapped: the pages of a mapped file would be in memory beside the arrays made of
        # them.
        file = safe_open(path, framework="numpy", backend="pread")
        names = file.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a readable .safetensors file ({error}); is it complete?"
        ) from error
    return Tensors(
        {name: Entry(functools.partial(get, name), _shape(file, name)) for name in names}
    )


def _shape(file: Any, name: str) -> tuple[int, ...]:
    return tuple(file.get_slice(name).get_shape())


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path}: {path.suffix} files are written by PyTorch; pip install 'fcn-jax[torch]', or use .safetensors"
        ) from error
    return torch


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
                f"{path}: refused, because it holds more than tensors and loading it could run code: it names {error}; save a state dict "
                "instead: torch.save(model.state_dict(), ...)"
            ) from error
        except Exception as error:  # damaged files lead to almost anything
            plain = (
                isinstance(error, ValueError) and not isinstance(error, UnicodeError) and str(error)
            )
            reason = f" ({str(error).splitlines()[0]})" if plain else ""
            raise WeightsError(
                f"{path}: not a readable PyTorch file{reason}; is it complete?"
            ) from error

        def entry(name: str, value: Any) -> Entry | None:
            if isinstance(value, unpickling.StoredTensor):
                return Entry(
                    functools.partial(_stored, reader, value, f"{path}: '{name}'"), value.shape
                )
            return _entry_of(name, value, str(path))

        found = state_dicts.find(tree, entry, str(path))
        # Open as long as something may be read from it: another file put in its place meanwhile
        # then changes nothing.
        close = opened.pop_all().close
    keep = _Open(close)
    for state in found:
        state.tensors.keep = keep
    return found


class _Open:
    """Closes a file once no tensors refer to it."""

    def __init__(self, close: Any) -> None:
        weakref.finalize(self, close)


def _stored(read: torch_file.Read, tensor: unpickling.StoredTensor, name: str) -> np.ndarray:
    if fault := torch_file.obstacle(tensor):
        raise WeightsError(f"{name} {fault}")
    try:
        return read(tensor)
    except Exception as error:  # a damaged archive makes zipfile raise almost anything
        raise WeightsError(f"{name} cannot be read ({error})") from error


def _entry_of(name: str, value: Any, source: str) -> Entry | None:
    """The entry of a torch tensor or array in memory; None for values that are not tensors."""
    if isinstance(value, np.ndarray):
        return Entry(lambda: value, value.shape)
    if isinstance(value, (Mapping, list, tuple, str, bytes)):
        return None
    if hasattr(value, "detach") and hasattr(value, "shape"):
        return Entry(functools.partial(to_numpy, value, f"{source}: {name}"), tuple(value.shape))
    if (
        hasattr(value, "__array__")
        and hasattr(value, "shape")
        and not isinstance(value, np.generic)
    ):
        return Entry(functools.partial(np.asarray, value), tuple(value.shape))
    return None


def state_dicts_of(loaded: Any, source: str) -> list[StateDict]:
    """The state dicts in a structure in memory, such as `torch.load` gives; see `state_dicts.find`.

    Raises:
        WeightsError: there is none; `source` is what the message calls the structure.
    """
    return state_dicts.find(loaded, lambda name, value: _entry_of(name, value, source), source)


def tensors_of(loaded: Mapping[str, Any], source: str) -> Tensors:
    """The arrays of a state dict in memory, each converted when it is looked up."""
    entries = {str(name): _entry_of(str(name), value, source) for name, value in loaded.items()}
    return Tensors({name: entry for name, entry in entries.items() if entry is not None})
