"""Files of results, and the hardware and software that produced them."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import torch

from fcn_jax.runtime.atomic import write_json
from fcn_jax.runtime.versions import package_versions

RESULTS = Path(__file__).parent / "results"
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}
PACKAGES = ("fcn-jax", "jax", "jaxlib", "flax", "torch", "torchvision", "numpy")


def environment(device: str) -> dict[str, Any]:
    """Return the versions, the devices and the date, ready for JSON.

    Args:
        device: "cpu", "cuda" or the name of another device.
    """
    return {
        "device": {"cuda": jax.devices()[0].device_kind, "cpu": _cpu()}.get(device, device),
        "jax_device": jax.devices()[0].device_kind,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **package_versions(PACKAGES),
        "date": datetime.date.today().isoformat(),
    }


def _cpu() -> str:
    """The processor's name, its number of cores and its widest vector instructions, if known."""
    lines = dict(line.split(":", 1) for line in _lines("/proc/cpuinfo") if ":" in line)
    fields = {name.strip(): value.split() for name, value in lines.items()}
    model = " ".join(fields.get("model name", [platform.processor()]))
    flags = fields.get("flags", ())
    vectors = next((name for flag, name in _VECTORS.items() if flag in flags), "")
    return ", ".join(part for part in (model, f"{os.cpu_count()} cores", vectors) if part)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def prepare_backend(device: str) -> None:
    """Start JAX's backend so that other processes can share the GPU.

    Args:
        device: "cpu" or "cuda".

    Raises:
        SystemExit: JAX would not run on the device.
    """
    # JAX reads this variable when the backend starts, here and in the processes of the workers.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    expected, found = {"cpu": "cpu", "cuda": "gpu"}[device], jax.default_backend()
    if found != expected:
        raise SystemExit(
            f"JAX would run on '{found}' instead of '{expected}': set JAX_PLATFORMS={device}, or "
            f"install JAX for '{expected}'"
        )


def rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a result file. A missing file has no rows."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def keep(path: Path, key: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write a row to a result file. It replaces the row with the same key, if there is one.

    Args:
        path: the JSON file.
        key: fields that identify a row, such as model and batch.
        row: the other fields.

    Returns:
        All rows of the file, in the order in which they were first written.
    """
    key, found = json.loads(json.dumps(key)), rows(path)  # JSON turns tuples into lists
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
