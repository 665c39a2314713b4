"""Semantic segmentation with fully convolutional networks in JAX/Flax, proven equal to PyTorch.

The public names are loaded when first used, so that `import fcn_jax` and `fcn-jax --help` stay
light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_jax.convert.export import to_torch
    from fcn_jax.convert.load import load, load_torch
    from fcn_jax.convert.report import LoadReport
    from fcn_jax.eval.predictor import Predictor
    from fcn_jax.models.build import build_model
    from fcn_jax.models.segmenter import Segmenter
    from fcn_jax.runtime.compiler import compiler_options
    from fcn_jax.verify import verify_model

_HOMES = {
    "LoadReport": "fcn_jax.convert.report",
    "Predictor": "fcn_jax.eval.predictor",
    "Segmenter": "fcn_jax.models.segmenter",
    "build_model": "fcn_jax.models.build",
    "compiler_options": "fcn_jax.runtime.compiler",
    "load": "fcn_jax.convert.load",
    "load_torch": "fcn_jax.convert.load",
    "to_torch": "fcn_jax.convert.export",
    "verify_model": "fcn_jax.verify",
}

__all__ = [
    "LoadReport",
    "Predictor",
    "Segmenter",
    "build_model",
    "compiler_options",
    "load",
    "load_torch",
    "to_torch",
    "verify_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fcn_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
