"""Weight files: `.pth` and `.safetensors` to and from named numpy arrays."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import tarfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.atomic import replacing
from fcn_jax.convert import archive
from fcn_jax.errors import WeightsError

SUFFIXES = (".pth", ".pt", ".safetensors")

_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Tensors(Mapping[str, np.ndarray]):
    """Arrays by name, each of which is made when it is looked up, every time anew, and not kept."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        """Take what makes each of the arrays."""
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:  # which Mapping would find out by looking it up
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def open_tensors(path: str | Path) -> Tensors:
    """Open a state dict whose tensors are read one at a time, so that memory need not hold all of them.

    Reading `.safetensors` needs no torch; `.pth` and `.pt` do, and are read without running code (`weights_only=True`). A checkpoint
    that wraps its state dict under `state_dict` or `model` is unwrapped. Some files are read whole: of the format before PyTorch 1.6, of
    tensors that are not dense, and all but `.safetensors` where PyTorch is too old to say where in the file a tensor lies.

    Returns:
        Arrays by PyTorch's names, in the file's order and dtypes (bfloat16 as `ml_dtypes.bfloat16`). Looking one up raises `WeightsError`
        if the file has become unreadable.

    Raises:
        WeightsError: the file is missing, truncated, of another format, would run code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    require_suffix(path)
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a file at once; see `open_tensors` for what is read and what is raised."""
    return dict(open_tensors(path))


def write(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a state dict that `load_state_dict(strict=True)` takes; the file appears whole or not at all.

    Raises:
        WeightsError: the suffix is not one of `.pth`, `.pt`, `.safetensors`, or torch is needed and missing.
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
            torch.save({name: _to_torch(torch, value) for name, value in contiguous.items()}, temporary)


def require_suffix(path: str | Path) -> Path:
    """The path of a weights file. Raises `WeightsError` if it does not end as one."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path}: a weights file ends in {', '.join(SUFFIXES)}; this one in '{path.suffix}'")
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
        except (TypeError, RuntimeError) as error:  # eight bits, quantised, sparse
            layout = str(value.layout).removeprefix("torch.")
            raise WeightsError(f"'{name}' is a {layout} {value.dtype} tensor, which numpy cannot hold") from error
    if hasattr(value, "__array__"):
        return np.asarray(value)
    nested = (
        "; a state dict may lie under 'model' or 'state_dict', otherwise save it by itself" if isinstance(value, Mapping) else ""
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
            raise WeightsError(f"{path}: not a readable .safetensors file ({error}); is it complete?") from error
        except (KeyError, AttributeError, TypeError) as error:  # a dtype that numpy lacks
            raise WeightsError(f"{path}: holds tensors of a type that numpy lacks ({error})") from error

    try:
        # Read, not mapped: the pages of a mapped file would be in memory beside the arrays made of them.
        file = safe_open(path, framework="numpy", backend="pread")
        names = file.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors file ({error}); is it complete?") from error
    return Tensors({name: functools.partial(get, name) for name in names})


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path}: {path.suffix} files need PyTorch; pip install 'fcn-jax[torch]', or use .safetensors"
        ) from error
    return torch


def _open_torch(path: Path) -> Tensors:
    torch = _import_torch(path)
    if tarfile.is_tarfile(path):
        raise WeightsError(
            f"{path}: the oldest PyTorch format (a tar archive) cannot be read safely; take a newer file of the same weights "
            "(torchvision: resnet18-f37072fd.pth holds the tensors of resnet18-5c106cde.pth)"
        )
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        if members := archive.members(file):
            described = _state_dict(_unpickled(torch, path, file, "meta"), str(path))
            if all(archive.lies_in(members, value) for value in described.values()):
                makers = {
                    str(name): functools.partial(_stored, file, value, f"{path}: {name}") for name, value in described.items()
                }
                tensors = Tensors(makers)
                # Open as long as it may be read from: another file put in its place meanwhile then changes nothing.
                weakref.finalize(tensors, opened.pop_all().close)
                return tensors
    whole = tensors_of(_unpickled(torch, path, path, "cpu"), str(path))
    return Tensors({name: functools.partial(whole.__getitem__, name) for name in whole})


def _unpickled(torch: Any, path: Path, file: Any, device: str) -> Any:
    """What a file of PyTorch's holds; on the device "meta" with shapes in place of values."""
    import pickle

    try:
        # torchvision's training script keeps its arguments beside the weights; a namespace is as harmless as a dict.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        if path.stat().st_size == 0 or "GLOBAL" not in str(error):
            raise WeightsError(f"{path}: not a readable PyTorch file; is it complete?") from error
        raise WeightsError(
            f"{path}: refused, because it holds more than tensors and loading it could run code; save a state dict instead: "
            "torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # damaged files make torch.load raise almost anything, IndexError and struct.error included
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a readable PyTorch file ({reason}); is it complete?") from error


def _stored(file: io.BufferedReader, described: Any, name: str) -> np.ndarray:
    try:
        value = archive.read(file, described)
    except (OSError, EOFError) as error:
        raise WeightsError(f"{name}: cannot be read ({error})") from error
    return to_numpy(value, name)


def tensors_of(loaded: Any, source: str) -> dict[str, np.ndarray]:
    """The arrays of a state dict, which a checkpoint may wrap under `state_dict` or `model`.

    Raises:
        WeightsError: it is no state dict, or something in it is no tensor; `source` is what the message calls it.
    """
    return {str(name): to_numpy(value, f"{source}: {name}") for name, value in _state_dict(loaded, source).items()}


def _state_dict(loaded: Any, source: str) -> Mapping[Any, Any]:
    if isinstance(loaded, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(loaded.get(wrapper), Mapping):
                loaded = loaded[wrapper]
                break
    if not isinstance(loaded, Mapping) or not loaded:
        what = "an empty one" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
        raise WeightsError(f"{source}: holds no state dict but {what}")
    return loaded
