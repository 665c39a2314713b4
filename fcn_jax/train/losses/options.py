"""Options of the losses of this package, as a recipe gives them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

NotNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]

FREQUENCIES = ("inverse_frequency", "median_frequency")


def _numbers(value: Any, least: float, words: str) -> tuple[float, ...]:
    if isinstance(value, list | tuple) and value:
        numbers = [x for x in value if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(numbers) == len(value) and all(least <= x < float("inf") for x in numbers):
            return tuple(map(float, numbers))
    raise ValueError(f"expected {words}")


def _weights(value: Any) -> Any:
    if value is None or value in FREQUENCIES:
        return value
    numbers = _numbers(
        value,
        0.0,
        "a list with a number of at least 0 for each class, 'inverse_frequency' or "
        "'median_frequency'",
    )
    if not any(numbers):
        raise ValueError("all weights are 0; expected at least one above 0")
    return numbers


def _alpha(value: Any) -> Any:
    words = "a number from 0 to 1, or a list with a number of at least 0 for each class"
    if value is None or isinstance(value, list | tuple):
        return value if value is None else _numbers(value, 0.0, words)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise ValueError(f"expected {words}")


def _pos_weight(value: Any) -> Any:
    words = "a number above 0, or a list with one for each class"
    smallest = float(np.finfo(np.float32).tiny)
    if isinstance(value, list | tuple):
        return _numbers(value, smallest, words)
    return _numbers([value], smallest, words)[0]


def _labels(value: Any) -> Any:
    if value is None:
        return None
    if not (
        isinstance(value, list | tuple)
        and value
        and all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in value)
        and len(set(value)) == len(value)
    ):
        raise ValueError("expected a list of different labels, such as [1, 2]")
    return tuple(value)


@dataclasses.dataclass(frozen=True)
class CrossEntropyOptions:
    """Options of cross_entropy.

    Attributes:
        class_weights: one weight for each class, or "inverse_frequency" or "median_frequency" of
            the training split; None for equal weights.
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    class_weights: Annotated[Any, AfterValidator(_weights)] = None
    label_smoothing: BelowOne = 0.0


@dataclasses.dataclass(frozen=True)
class OhemOptions:
    """Options of ohem; see `pixelwise.ohem`.

    Attributes:
        threshold: pixels whose label has a lower probability are kept.
        min_kept: pixels per image that are kept in any case.
        fraction: keep this fraction of the pixels instead.
    """

    threshold: Fraction = 0.7
    min_kept: Annotated[int, Field(ge=0)] = 100_000
    fraction: Fraction | None = None


@dataclasses.dataclass(frozen=True)
class FocalOptions:
    """Options of focal.

    Attributes:
        gamma: exponent.
        alpha: for softmax, one weight for each class; for sigmoids, the weight of pixels of the
            class, and 1 - alpha of the others. None for no weights.
        sigmoid: with "multiclass", each class against the rest, as SMP's `FocalLoss`, instead of
            softmax.
    """

    gamma: NotNegative = 2.0
    alpha: Annotated[Any, AfterValidator(_alpha)] = None
    sigmoid: bool = False


@dataclasses.dataclass(frozen=True)
class DiceOptions:
    """Options of dice and jaccard; see `region.tversky`.

    Attributes:
        smooth: added to both sides of the fraction.
        log: -log instead of 1 - the overlap.
        classes: labels of the classes in the mean; None for all.
    """

    smooth: NotNegative = 0.0
    log: bool = False
    classes: Annotated[Any, AfterValidator(_labels)] = None


@dataclasses.dataclass(frozen=True)
class TverskyOptions(DiceOptions):
    """Options of tversky; see `region.tversky`.

    Attributes:
        alpha: weight of false positives.
        beta: weight of false negatives.
        gamma: power of the mean.
    """

    alpha: NotNegative = 0.5
    beta: NotNegative = 0.5
    gamma: Positive = 1.0


@dataclasses.dataclass(frozen=True)
class LovaszOptions:
    """Options of lovasz.

    Attributes:
        per_image: the mean of the losses of single images.
        classes: "present" for the mean over the classes in the labels, or "all".
    """

    per_image: bool = False
    classes: Literal["present", "all"] = "present"


@dataclasses.dataclass(frozen=True)
class BceOptions:
    """Options of bce.

    Attributes:
        pos_weight: weight of pixels of the class; one number, or one for each class.
        smooth_factor: distance of the targets from 0 and 1.
    """

    pos_weight: Annotated[Any, AfterValidator(_pos_weight)] = 1.0
    smooth_factor: BelowOne = 0.0
