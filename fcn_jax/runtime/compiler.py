"""Compiler options with which XLA is fast and takes little memory."""

from __future__ import annotations

import functools

import jax

_CPU = {
    # XLA's default, except that convolutions do not use YNNPACK, where they take 1.1 to 1.7 times
    # as long as in XLA (`python -m benchmarks.conv_library`).
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    ),
    # XLA's default schedules independent operations next to each other, which takes twice the
    # temporary memory and saves no time if each operation alone keeps all cores busy.
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}


def compiler_options() -> dict[str, str]:
    """Return options for `jax.jit(..., compiler_options=...)` on the default device.

    Options that this version of XLA does not know are left out.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _CPU.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except Exception:  # the type depends on the version of jaxlib
        return False
    return True
