"""The PyTorch side of the comparisons: torchvision, made importable beside a CPU build of torch."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from typing import Any

from fcn_jax.errors import WeightsError

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_torchvision() -> Any:
    """The package torchvision.

    The build on the package index carries CUDA operators; beside a CPU build of torch they do not
    load, and the import fails on the first one that torchvision looks up. Declaring them is enough:
    no network here calls them.

    Raises:
        WeightsError: torch or torchvision is not installed.
    """
    try:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
        _declare_operators()
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise WeightsError(
            f"{error}: a comparison with PyTorch needs torchvision; pip install 'fcn-jax[torch]'"
        ) from error


def segmentation_original(name: str, num_classes: int, aux: bool) -> Any:
    """One of torchvision's segmentation models with random weights: a whole model's `original`, once the name is bound.

    Args:
        name: of the function in `torchvision.models.segmentation`.
        num_classes: number of logits for each pixel.
        aux: whether with the auxiliary head; not looked at where torchvision's model never has one.

    Raises:
        WeightsError: torch or torchvision is not installed.
    """
    make = getattr(import_torchvision().models.segmentation, name)
    auxiliary = {"aux_loss": aux} if "aux_loss" in inspect.signature(make).parameters else {}
    return make(weights=None, weights_backbone=None, num_classes=num_classes, **auxiliary)


@functools.cache
def _declare_operators() -> Any:
    """Declare what torchvision looks up at import. The declarations live as long as the library object, which the cache keeps."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(operator)
    return library
