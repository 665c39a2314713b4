"""Memory of the process: settings of the C library and of JAX on CPUs, and the peak.

The settings hold for the process. Only the command line and benchmarks make them, never an
import or a library function.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys

# Parameters of glibc's mallopt(3) and their values: one arena, no mmap, no trimming.
_SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}

_tuned = False


def tune_malloc() -> bool:
    """Make the C library keep freed memory for the next step. Call it before JAX is imported.

    XLA on CPUs allocates its buffers again on every call. glibc takes blocks of that size from the
    system and gives them back, and the system then zeroes and maps every page again: a quarter of
    the processor time of a training step (`python -m benchmarks.allocator`). With this setting the
    process keeps its peak, until `trim_malloc` or its end.

    Returns:
        True if it was set. False if the C library is not glibc, or if the environment already
        configures its malloc.
    """
    global _tuned
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    _tuned = all(mallopt(parameter, value) for parameter, value in _SETTINGS.values())
    return _tuned


def disable_async_dispatch() -> None:
    """Make JAX on CPUs free a program's memory before its call returns.

    Call it before JAX computes anything.

    By default JAX computes in another thread, which frees that memory shortly after the results are
    ready. The next call may then have allocated as much again, half a gigabyte in training.
    Programs are as fast in the calling thread if each call's results are awaited before the next
    one. Await the inputs, too: a call whose inputs are still being copied uses another thread.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def trim_malloc() -> None:
    """Return freed memory to the system, after compiling and after the first step.

    Does nothing unless `tune_malloc` made the C library keep it.
    """
    if not _tuned:
        return
    gc.collect()  # JAX's traced programs lie in cycles: 40 MB for a ResNet-152's training step.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> float:
    """Return the peak memory use so far, in GiB.

    It is that of the device if JAX counts it, else the resident set of this process.
    """
    import resource

    import jax

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [int(s["peak_bytes_in_use"]) for s in stats if "peak_bytes_in_use" in s]
    if used:
        return max(used) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
