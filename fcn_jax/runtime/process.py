"""Settings of the process, for programs that run only this library.

The command line makes them, never an import or a library function.
"""

from __future__ import annotations

import contextlib
import os
import sys

from fcn_jax.runtime import memory

_ROLLED = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling=true"


def configure_process(*, trains: bool) -> None:
    """Make the settings that are fastest and take the least memory on CPUs.

    Call it before JAX computes anything.

    Args:
        trains: whether the process trains.
    """
    memory.tune_malloc()
    if trains:
        memory.disable_async_dispatch()
        disable_loop_unrolling()


def end_now(status: int) -> None:
    """End the process without Python's and JAX's cleanup, and with it its child processes.

    The cleanup waits for compilations, which go on after a signal interrupted the thread that waits
    for them, and often crashes then. It also waits for other processes of a job.
    """
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def disable_loop_unrolling() -> bool:
    """Stop XLA on CPUs from unrolling loops. Call it before JAX compiles: XLA reads its flags once.

    By default XLA unrolls loops over channels completely. A training step is as fast without, and
    compiles in two thirds of the time (docs/performance.md). The argmax over 21 classes is slower
    (45 ms instead of 5 for four images of 320x480), so this is for processes that train. XLA has
    this option only for a process, not for one program (`fcn_jax.compiler_options`).

    Returns:
        True if it was set. False if `XLA_FLAGS` names a file or already contains
        `--xla_backend_extra_options`.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if "xla_backend_extra_options" in flags or (flags and not flags.startswith("-")):
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {_ROLLED}".strip()
    return True
