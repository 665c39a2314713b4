"""The folder for files that can be made again: downloads, datasets, compiled programs."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "FCN_JAX_CACHE"


def folder() -> Path:
    """Return `FCN_JAX_CACHE` if it is set, else `fcn_jax` in `XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own)
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    # XDG Base Directory Specification: relative paths are invalid and must be ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "fcn_jax"


def enable_compilation_cache() -> None:
    """Make JAX keep compiled programs for later processes. Call it before JAX is imported.

    Programs that compile in less than a second are not kept. `JAX_COMPILATION_CACHE_DIR` takes
    precedence: it names another folder, or none if it is empty.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder() / "xla"))
