"""Where results are kept, row by row, and what they were measured with."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import torch

from fcn_jax.runtime.atomic import write_json

RESULTS = Path(__file__).parent / "results"
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}
PACKAGES = ("fcn-jax", "jax", "jaxlib", "flax", "torch", "torchvision", "numpy")


def environment(device: str) -> dict[str, Any]:
    """Versions, devices and the day."""
    return {
        "device": {"cuda": jax.devices()[0].device_kind, "cpu": _cpu()}.get(device, device),
        "jax_device": jax.devices()[0].device_kind,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "date": datetime.date.today().isoformat(),
    }


def _cpu() -> str:
    """The model, the number of cores and the widest vector instructions, where known."""
    found = dict(line.split(":", 1) for line in _lines("/proc/cpuinfo") if ":" in line)
    told = {name.strip(): value.split() for name, value in found.items()}
    model = " ".join(told.get("model name", [platform.processor()]))
    vectors = next((said for flag, said in _VECTORS.items() if flag in told.get("flags", ())), "")
    return ", ".join(part for part in (model, f"{os.cpu_count()} cores", vectors) if part)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def prepare_backend(device: str) -> None:
    """Have JAX share a GPU with other processes.

    Raises:
        SystemExit: JAX would not run on `device`, "cpu" or "cuda".
    """
    os.environ.setdefault(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # read when the backend starts, here and in those processes
    wanted, found = {"cpu": "cpu", "cuda": "gpu"}[device], jax.default_backend()
    if found != wanted:
        raise SystemExit(
            f"JAX would run on '{found}', not on '{wanted}': set JAX_PLATFORMS={device} or "
            "install JAX for it"
        )


def rows(path: Path) -> list[dict[str, Any]]:
    """Those of a result file; none if there is no such file."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def keep(path: Path, key: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Put a row into a result file instead of the one with the same key.

    Args:
        path: JSON file.
        key: what tells rows apart, such as model and batch.
        row: the figures.

    Returns:
        All rows, in the order in which they first came.
    """
    key, found = json.loads(json.dumps(key)), rows(path)  # tuples are lists in a file
    place = next(
        (
            i
            for i, other in enumerate(found)
            if all(other.get(name) == value for name, value in key.items())
        ),
        len(found),
    )
    found[place : place + 1] = [json.loads(json.dumps({**key, **row}))]
    write_json(path, {"rows": found})
    return found
