"""The losses of this package, as a recipe names them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import Loss, LossContext, MeanLoss
from fcn_jax.train.losses import lovasz, pixelwise, region
from fcn_jax.train.losses.options import (
    BceOptions,
    CrossEntropyOptions,
    DiceOptions,
    FocalOptions,
    LovaszOptions,
    OhemOptions,
    TverskyOptions,
)

# --------------------------------------------------------------------- values that need the dataset


def frequency_weights(kind: str, context: LossContext) -> tuple[float, ...]:
    """Class weights from the pixels of the training split.

    "inverse_frequency" is total / (K pixels_c), over the K classes that occur, so that all classes
    have the same weight together ("balanced" in scikit-learn). "median_frequency" is median(f) /
    f_c, where f_c is pixels_c by the labeled pixels of the images with the class (Eigen and Fergus
    2015, arXiv:1411.4734, section 6.3.2). A class without pixels has the weight 0.

    Args:
        kind: "inverse_frequency" or "median_frequency".
        context: with the numbers of pixels.

    Raises:
        ConfigError: the numbers are not known, or no pixel is labeled.
    """
    pixels, images = context.class_pixels, context.image_pixels
    if pixels is None or images is None or not pixels.any():
        raise ConfigError(
            f"class_weights is '{kind}', and no labeled pixels are counted; give a list of numbers"
        )
    occurs = pixels > 0
    weights = np.zeros(len(pixels))
    if kind == "inverse_frequency":
        weights[occurs] = pixels.sum() / (occurs.sum() * pixels[occurs])
    else:
        frequency = pixels[occurs] / images[occurs]
        weights[occurs] = np.median(frequency) / frequency
    return tuple(weights.tolist())


def _complete_cross_entropy(options: CrossEntropyOptions, context: LossContext) -> Any:
    weights = options.class_weights
    if isinstance(weights, str):
        return dataclasses.replace(options, class_weights=frequency_weights(weights, context))
    _require_length("class_weights", weights, context)
    return options


def _complete_focal(options: FocalOptions, context: LossContext) -> Any:
    alpha = options.alpha
    if context.task == "multiclass" and not options.sigmoid:
        if isinstance(alpha, float):
            raise ConfigError(
                f"alpha is {alpha:g}; with softmax, give a list of {context.num_classes} numbers, "
                "or set sigmoid = true"
            )
        _require_length("alpha", alpha, context)
    elif isinstance(alpha, tuple):
        raise ConfigError("alpha is a list; with sigmoids, give one number from 0 to 1")
    return options


def _complete_region(options: DiceOptions, context: LossContext) -> Any:
    if options.classes is None:
        return options
    if context.task == "binary":
        raise ConfigError("classes is given, and a binary task has one class; leave it out")
    if max(options.classes) >= context.num_classes:
        raise ConfigError(
            f"classes has the label {max(options.classes)}; the labels are 0 to "
            f"{context.num_classes - 1}"
        )
    return options


def _complete_bce(options: BceOptions, context: LossContext) -> Any:
    if isinstance(options.pos_weight, tuple):
        if context.task == "binary":
            raise ConfigError("pos_weight is a list; a binary task has one class: give one number")
        _require_length("pos_weight", options.pos_weight, context)
    return options


def _require_length(option: str, values: Any, context: LossContext) -> None:
    if values is not None and len(values) != context.num_classes:
        raise ConfigError(
            f"{option} has {len(values)} numbers; expected {context.num_classes}, one for each "
            "class"
        )


# ----------------------------------------------------------------------------------------- building


def _cross_entropy(options: CrossEntropyOptions, context: LossContext) -> MeanLoss:
    return MeanLoss(
        functools.partial(
            pixelwise.cross_entropy_sum,
            task=context.task,
            weights=options.class_weights,
            smoothing=options.label_smoothing,
        ),
        functools.partial(pixelwise.weight_sum, weights=options.class_weights),
    )


def _ohem(options: OhemOptions, context: LossContext) -> Any:
    return functools.partial(pixelwise.ohem, task=context.task, **_fields(options))


def _focal(options: FocalOptions, context: LossContext) -> MeanLoss:
    settings: dict[str, Any] = {"task": context.task, "gamma": options.gamma}
    alpha = options.alpha
    if context.task == "multilabel" or (context.task == "multiclass" and options.sigmoid):
        total = functools.partial(pixelwise.sigmoid_focal_sum, alpha=alpha, **settings)
    else:
        weights = (1 - alpha, alpha) if isinstance(alpha, float) else alpha
        total = functools.partial(pixelwise.focal_sum, weights=weights, **settings)
    return MeanLoss(total, pixelwise.count_valid)


def _bce(options: BceOptions, context: LossContext) -> MeanLoss:
    total = functools.partial(
        pixelwise.binary_cross_entropy_sum, task=context.task, **_fields(options)
    )
    return MeanLoss(total, pixelwise.count_valid)


def _dice(options: DiceOptions, context: LossContext) -> Any:
    return functools.partial(region.tversky, task=context.task, **_fields(options))


def _jaccard(options: DiceOptions, context: LossContext) -> Any:
    return functools.partial(
        region.tversky, task=context.task, alpha=1.0, beta=1.0, **_fields(options)
    )


def _lovasz(options: LovaszOptions, context: LossContext) -> Any:
    settings: dict[str, Any] = {"task": context.task, "present": options.classes == "present"}
    if options.per_image:
        images = functools.partial(lovasz.lovasz, per_image=True, **settings)
        return MeanLoss(lambda *args: images(*args).sum(), lambda labels: labels.shape[0])
    return lambda *args: lovasz.lovasz(*args, **settings).sum()


def _fields(options: Any) -> Mapping[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


_ALL: Any = ("multiclass", "binary", "multilabel")
_SMP = "segmentation_models_pytorch 0.5"

CROSS_ENTROPY = Loss(
    name="cross_entropy",
    summary="softmax cross entropy, with class weights and label smoothing",
    reference="torch.nn.functional.cross_entropy",
    options=CrossEntropyOptions,
    tasks=("multiclass", "binary"),
    complete=_complete_cross_entropy,
    build=_cross_entropy,
    any_layout=True,
)

OHEM = Loss(
    name="ohem",
    summary="cross entropy of the hardest pixels",
    reference="Shrivastava et al. 2016, arXiv:1604.03540; HRNet's OhemCrossEntropy",
    options=OhemOptions,
    tasks=("multiclass", "binary"),
    build=_ohem,
    any_layout=True,
)

FOCAL = Loss(
    name="focal",
    summary="cross entropy with less weight on pixels that are easy",
    reference="Lin et al. 2017, arXiv:1708.02002",
    options=FocalOptions,
    tasks=_ALL,
    complete=_complete_focal,
    build=_focal,
    any_layout=True,
)

DICE = Loss(
    name="dice",
    summary="1 - Dice coefficient of each class over the batch",
    reference=f"Milletari et al. 2016, arXiv:1606.04797; {_SMP}",
    options=DiceOptions,
    tasks=_ALL,
    complete=_complete_region,
    build=_dice,
    any_layout=True,
)

JACCARD = Loss(
    name="jaccard",
    summary="1 - intersection over union of each class over the batch",
    reference=f"Rahman and Wang 2016, doi:10.1007/978-3-319-50835-1_22; {_SMP}",
    options=DiceOptions,
    tasks=_ALL,
    complete=_complete_region,
    build=_jaccard,
    any_layout=True,
)

TVERSKY = Loss(
    name="tversky",
    summary="Dice with weights of false positives and negatives; with gamma, focal Tversky",
    reference=f"Salehi et al. 2017, arXiv:1706.05721; Abraham and Khan 2018, arXiv:1810.07842; "
    f"{_SMP}",
    options=TverskyOptions,
    tasks=_ALL,
    complete=_complete_region,
    build=_dice,
    any_layout=True,
)

LOVASZ = Loss(
    name="lovasz",
    summary="Lovász-softmax, a convex surrogate of the intersection over union; hinge for sigmoids",
    reference="Berman et al. 2018, arXiv:1705.08790",
    options=LovaszOptions,
    tasks=_ALL,
    build=_lovasz,
    any_layout=True,
)

BCE = Loss(
    name="bce",
    summary="binary cross entropy of sigmoids, with weights of the classes' pixels",
    reference=f"torch.nn.BCEWithLogitsLoss; {_SMP}",
    options=BceOptions,
    tasks=("binary", "multilabel"),
    complete=_complete_bce,
    build=_bce,
    any_layout=True,
)
