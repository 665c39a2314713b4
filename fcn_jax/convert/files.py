"""Weight files: `.pth` and `.safetensors` to and from named numpy arrays."""

from __future__ import annotations

import argparse
import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.atomic import replacing
from fcn_jax.errors import WeightsError

SUFFIXES = (".pth", ".pt", ".safetensors")

_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Read a state dict.

    Reading `.safetensors` needs no torch; `.pth` and `.pt` do, and are read without running code (`weights_only=True`). A checkpoint
    that wraps its state dict under `state_dict` or `model` is unwrapped.

    Returns:
        Arrays by PyTorch's names, in the file's order and dtypes (bfloat16 as `ml_dtypes.bfloat16`).

    Raises:
        WeightsError: the file is missing, truncated, of another format, would run code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    require_suffix(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


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


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors asks for by name)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        # Read, not mapped: the pages of a mapped file would be in memory beside the arrays made of them.
        return dict(load_file(path, backend="pread"))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors file ({error}); is it complete?") from error
    except (KeyError, AttributeError, TypeError) as error:  # a dtype that numpy lacks
        raise WeightsError(f"{path}: holds tensors of a type that numpy lacks ({error})") from error


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path}: {path.suffix} files need PyTorch; pip install 'fcn-jax[torch]', or use .safetensors"
        ) from error
    return torch


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _import_torch(path)
    if tarfile.is_tarfile(path):
        raise WeightsError(
            f"{path}: the oldest PyTorch format (a tar archive) cannot be read safely; take a newer file of the same weights "
            "(torchvision: resnet18-f37072fd.pth holds the tensors of resnet18-5c106cde.pth)"
        )
    import pickle

    try:
        # torchvision's training script keeps its arguments beside the weights; a namespace is as harmless as a dict.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
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
    return tensors_of(loaded, str(path))


def tensors_of(loaded: Any, source: str) -> dict[str, np.ndarray]:
    """The arrays of a state dict, which a checkpoint may wrap under `state_dict` or `model`.

    Raises:
        WeightsError: it is no state dict, or something in it is no tensor; `source` is what the message calls it.
    """
    if isinstance(loaded, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(loaded.get(wrapper), Mapping):
                loaded = loaded[wrapper]
                break
    if not isinstance(loaded, Mapping) or not loaded:
        what = "an empty one" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
        raise WeightsError(f"{source}: holds no state dict but {what}")
    return {str(name): to_numpy(value, f"{source}: {name}") for name, value in loaded.items()}
