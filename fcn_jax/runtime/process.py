"""Settings of a whole process, for programs that are this library's alone; imports never make them."""

from __future__ import annotations

import os

from fcn_jax.runtime import memory

_ROLLED = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling=true"


def configure_process(*, trains: bool) -> None:
    """Settings with which the library is fastest and takes least memory on CPUs; before JAX computes anything.

    Args:
        trains: whether the process trains, rather than predicts.
    """
    memory.tune_malloc()
    if trains:
        memory.disable_async_dispatch()
        disable_loop_unrolling()


def disable_loop_unrolling() -> bool:
    """Have XLA for CPUs unroll no loops; before JAX compiles anything, since XLA reads its flags once.

    Loops over channels, whose number is known, are else written out whole. A training step is as
    fast without, and compiles in two thirds of the time (docs/performance.md). The argmax of a
    mask's 21 classes is not, 45 ms in place of 5 for four images of 320x480, so this is for
    processes that train. XLA takes no such option for one program (`fcn_jax.compiler_options`),
    only for a whole process.

    Returns:
        Whether it was set: not where `XLA_FLAGS` names a file, or has `--xla_backend_extra_options`
        already, whatever they are.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if "xla_backend_extra_options" in flags or (flags and not flags.startswith("-")):
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {_ROLLED}".strip()
    return True
