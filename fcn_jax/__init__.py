"""Semantic segmentation with fully convolutional networks in JAX/Flax, proven equal to PyTorch.

The public names are imported when they are first used, so that `import fcn_jax` and
`fcn-jax --help` do not import jax.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # a type checker takes it as true; importing `typing` would cost more
if TYPE_CHECKING:
    from fcn_jax.convert.export import to_torch as to_torch
    from fcn_jax.convert.load import load as load
    from fcn_jax.convert.load import load_torch as load_torch
    from fcn_jax.convert.report import LoadReport as LoadReport
    from fcn_jax.eval.evaluate import evaluate as evaluate
    from fcn_jax.eval.predictor import Predictor as Predictor
    from fcn_jax.models.build import build_model as build_model
    from fcn_jax.models.segmenter import Segmenter as Segmenter
    from fcn_jax.pretrained import from_pretrained as from_pretrained
    from fcn_jax.pretrained import push_to_hub as push_to_hub
    from fcn_jax.pretrained import save_pretrained as save_pretrained
    from fcn_jax.runtime.compiler import compiler_options as compiler_options
    from fcn_jax.verify import verify_model as verify_model

    __version__: str

_MODULES = {
    "LoadReport": "fcn_jax.convert.report",
    "Predictor": "fcn_jax.eval.predictor",
    "Segmenter": "fcn_jax.models.segmenter",
    "build_model": "fcn_jax.models.build",
    "compiler_options": "fcn_jax.runtime.compiler",
    "evaluate": "fcn_jax.eval.evaluate",
    "from_pretrained": "fcn_jax.pretrained",
    "load": "fcn_jax.convert.load",
    "load_torch": "fcn_jax.convert.load",
    "push_to_hub": "fcn_jax.pretrained",
    "save_pretrained": "fcn_jax.pretrained",
    "to_torch": "fcn_jax.convert.export",
    "verify_model": "fcn_jax.verify",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("fcn-jax")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'fcn_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
