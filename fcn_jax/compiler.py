"""Compiler settings under which XLA is fastest."""

from __future__ import annotations

import functools

import jax

_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
"""All that XLA gives to YNNPACK by itself, but for convolutions, whose float32 form there takes up to 1.8 times as long as XLA's own."""


def compiler_options() -> dict[str, str]:
    """Options for `jax.jit(..., compiler_options=fcn_jax.compiler_options())` on the default device.

    What this XLA does not know is left out, so there may be none.
    """
    return dict(_CPU) if jax.default_backend() == "cpu" and _known() else {}


def prefers_blocks() -> bool:
    """Whether loss and argmax are best computed in the head's block layout on the default device (`fcn_jax.nn.blocks`)."""
    return jax.default_backend() == "tpu"


@functools.cache
def _known() -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=dict(_CPU)).lower(0.0).compile()
    except Exception:  # which error it is depends on jaxlib
        return False
    return True
