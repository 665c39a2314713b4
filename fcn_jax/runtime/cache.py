"""The folder for files that can be made again: downloads, datasets, compiled programs."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

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


_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def replace_damaged_programs() -> None:
    """Make JAX replace damaged compiled programs, which a kill or a full disk left half written.

    JAX never writes over a program in its folder, so it would compile a damaged one in each later
    process, with a warning. The warning is replaced, and the program removed before JAX stores it
    again.
    """
    show = warnings.showwarning

    def show_or_remove(message: Warning | str, *rest: Any, **more: Any) -> None:
        if (found := _UNREADABLE.match(str(message))) is None:
            show(message, *rest, **more)
            return
        for path in Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob(f"{found[1]}-*-cache"):
            if not _is_readable(path):
                path.unlink(missing_ok=True)
                print(f"fcn-jax: {path} is damaged; it is compiled again", file=sys.stderr)

    warnings.showwarning = show_or_remove


def _is_readable(path: Path) -> bool:
    from jax._src.compilation_cache import decompress_executable

    try:
        decompress_executable(path.read_bytes())
    except Exception:  # of several compression libraries
        return False
    return True
