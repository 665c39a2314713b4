"""Compiler settings under which XLA is fastest."""

from __future__ import annotations

import functools

import jax

_CPU = {
    # All that XLA gives to YNNPACK by itself, but for convolutions, whose float32 form there takes
    # up to 1.8 times as long as XLA's own.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    # XLA's default puts operations that could run at once next to each other, which takes more
    # memory, in training 1.6 times as much, and saves no time where each of them keeps all cores
    # busy by itself.
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    # XLA's older code generator for loops, as long as XLA has it (jaxlib 0.12 no longer does):
    # training takes 0.85 of the time, inference 0.95, and compiling half a gigabyte less.
    "xla_cpu_use_fusion_emitters": "False",
}


def compiler_options() -> dict[str, str]:
    """Options for `jax.jit(..., compiler_options=fcn_jax.compiler_options())` on the default device.

    What this XLA does not know is left out, so there may be none.
    """
    return (
        {name: value for name, value in _CPU.items() if _known(name, value)}
        if jax.default_backend() == "cpu"
        else {}
    )


def prefers_blocks() -> bool:
    """Whether loss and argmax are best computed in the head's block layout on the default device (`fcn_jax.nn._subpixel`)."""
    return jax.default_backend() in ("gpu", "tpu")


def prefers_loops() -> bool:
    """Whether many equal blocks in a row are best a loop of the training step on the default device (`fcn_jax.nn._in_turn`)."""
    return jax.default_backend() == "cpu"


@functools.cache
def _known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except Exception:  # which error it is depends on jaxlib
        return False
    return True
