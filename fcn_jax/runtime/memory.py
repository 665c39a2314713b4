"""A process's memory on CPUs: what it keeps from step to step, when a step's is free again, and when the system gets it back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os

# Parameters of glibc's mallopt(3) and what they are set to: one arena, nothing by mmap, nothing
# trimmed.
_SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}


def tune_malloc() -> bool:
    """Have the C library keep what is freed, for the next step; before JAX is imported.

    XLA on CPUs asks for its buffers anew on every call. glibc takes blocks of that size from the
    system and gives them back, which zeroes and maps every page again: a quarter of the processor
    time of a training step (`python -m benchmarks.allocator`). The process then keeps the most it
    has held, until `trim_malloc` or its end. It is a setting of the whole process, so programs
    choose it and imports do not.

    Returns:
        Whether it was set: not where the C library is another one, or the environment already says
        how glibc is to do it.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    return all(mallopt(parameter, value) for parameter, value in _SETTINGS.values())


def disable_async_dispatch() -> None:
    """Have JAX on CPUs free what a program took before its call returns; before JAX computes anything.

    By itself it computes in another thread, which frees that memory shortly after the results are
    ready: at times when the next call has already taken as much again, half a gigabyte in training.
        Programs are as fast in the calling thread, where the results of each call
    are waited for before the next one. A call whose inputs are still being copied goes to another
    thread all the same, so wait for them. It is a setting of the whole process, so programs choose
    it and imports do not.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def trim_malloc() -> None:
    """Give the system what has been freed so far, where the C library can: after compiling, and after the first call, which take more."""
    gc.collect()  # what was traced lies in cycles: 40 MB of a ResNet-152's training step
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
