"""Where things are kept that can be had again: fetched weights, prepared datasets, compiled programs."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "FCN_JAX_CACHE"


def folder() -> Path:
    """`FCN_JAX_CACHE`, else `fcn_jax` in `XDG_CACHE_HOME`, else in `~/.cache`."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own)
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    # The XDG specification: a relative path is invalid and to be ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "fcn_jax"


def enable_compilation_cache() -> None:
    """Have JAX keep compiled programs in the cache, for the next process; before JAX is imported.

    Those that took less than a second to compile are not kept. `JAX_COMPILATION_CACHE_DIR`, where
    it is set, stands: another folder, or none at all if it is empty.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder() / "xla"))
