"""Imports torchvision, the reference of the comparisons, next to a CPU build of torch."""

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
    """Import and return the package torchvision.

    The build on the package index contains CUDA operators, which do not load next to a CPU build of
    torch: the import then fails on the first operator that torchvision looks up. It is enough to
    declare the operators, because no network here calls them.

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


def segmentation_reference(name: str, num_classes: int, aux: bool) -> Any:
    """Make a torchvision segmentation model with random weights.

    `functools.partial(segmentation_reference, "fcn_resnet50")` is a model's `reference_model`.

    Args:
        name: the function in `torchvision.models.segmentation`.
        num_classes: number of logits per pixel.
        aux: whether to build the auxiliary head. Ignored if torchvision's model never has one.

    Returns:
        A `torch.nn.Module` that maps f32[N, 3, H, W] to {"out": f32[N, num_classes, H, W]}, and
        "aux" of the same shape if it has the auxiliary head.

    Raises:
        WeightsError: torch or torchvision is not installed.
    """
    make = getattr(import_torchvision().models.segmentation, name)
    auxiliary = {"aux_loss": aux} if "aux_loss" in inspect.signature(make).parameters else {}
    return make(weights=None, weights_backbone=None, num_classes=num_classes, **auxiliary)


@functools.cache  # the declarations live as long as the library object
def _declare_operators() -> Any:
    """Declare the operators that torchvision looks up when it is imported."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(operator)
    return library
