"""A serialized pipeline of Albumentations, whose randomness follows from a seed for each image."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import IGNORE_INDEX, Example

_KEY = "augment.albumentations"
_NEAREST = (0, 6)
"""OpenCV's INTER_NEAREST and INTER_NEAREST_EXACT."""


class Pipeline:
    """A pipeline that `albumentations.save` wrote. It can be pickled and used by several threads.

    Use: `pipeline(example, seed) -> Example`.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        """Build the pipeline, to find mistakes before the first image.

        Args:
            table: the contents of the file, as `albumentations.to_dict` returns them.

        Raises:
            ConfigError: Albumentations is not installed or does not read the table; or a transform
                would put labels into masks that are not there.
        """
        self._table = table
        self._threads = threading.local()
        if problems := list(_mask_problems(self._transform())):
            raise ConfigError(f"{_KEY}: {'; '.join(problems)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Pipeline, (self._table,)

    def __call__(self, example: Example, seed: int) -> Example:
        """Transform an image and its mask.

        Args:
            example: the image and its mask.
            seed: of all randomness, 0 to 2**32 - 1.

        Raises:
            ConfigError: the pipeline fails, or its result is not an image with a mask of the same
                size, dtypes and labels.
        """
        name, image, mask = example
        transform = self._transform()
        transform.set_random_seed(seed)
        try:
            result = transform(image=image, mask=mask)
        except Exception as error:  # whatever the transforms raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"{_KEY}: the pipeline fails on image '{name}': {reason}") from error
        changed, labels = result["image"], result["mask"]
        if problem := _result_problem(example, changed, labels):
            raise ConfigError(f"{_KEY}: image '{name}': {problem}")
        return Example(name, changed, labels)

    def _transform(self) -> Any:
        """The pipeline of this thread: Albumentations keeps random state in the transforms."""
        found = getattr(self._threads, "transform", None)
        if found is None:
            found = self._threads.transform = _load(self._table)
        return found


def _load(table: Mapping[str, Any]) -> Any:
    # Albumentations asks PyPI for newer releases when it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        import albumentations
    except ImportError as error:
        raise ConfigError(
            f"{_KEY} needs the package albumentations, which is missing ({error}): "
            "pip install 'fcn-jax[albumentations]'"
        ) from error
    try:
        transform = albumentations.from_dict(table)
        if not isinstance(transform, albumentations.Compose):
            transform = albumentations.Compose([transform])
    except Exception as error:  # whatever the constructors of transforms raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"{_KEY}: Albumentations {albumentations.__version__} does not read the pipeline: "
            f"{reason}"
        ) from error
    return transform


def _mask_problems(transform: Any) -> Iterator[str]:
    """Yield a clause for each setting by which a mask would get wrong labels."""
    for inner in getattr(transform, "transforms", ()):
        yield from _mask_problems(inner)
    name = type(transform).__name__
    fill, border = getattr(transform, "fill_mask", None), getattr(transform, "border_mode", 0)
    # Other border modes repeat or mirror the mask.
    fills = border == 0 and fill is not None and getattr(transform, "pad_if_needed", True)
    if fills and np.any(np.asarray(fill) != IGNORE_INDEX):
        values = ", ".join(f"{value:g}" for value in np.unique(np.asarray(fill)))
        yield (f"{name} fills masks with {values}; set its fill_mask to {IGNORE_INDEX} (ignored)")
    interpolation = getattr(transform, "mask_interpolation", 0)
    if interpolation is not None and interpolation not in _NEAREST:
        yield f"{name} blends labels; set its mask_interpolation to 0 (nearest)"


def _result_problem(example: Example, image: Any, mask: Any) -> str:
    """What is wrong with the result of a pipeline; empty if nothing is."""
    if not isinstance(image, np.ndarray) or not isinstance(mask, np.ndarray):
        return "the pipeline does not return arrays; leave out ToTensorV2"
    if image.dtype != example.image.dtype:
        return (
            f"the pipeline turns {example.image.dtype} into {image.dtype}; leave out Normalize and "
            "ToFloat, because the model normalizes"
        )
    channels = example.image.shape[2]
    if image.ndim != 3 or image.shape[2] != channels or mask.shape != image.shape[:2]:
        return (
            f"the pipeline returns an image of shape {list(image.shape)} and a mask of shape "
            f"{list(mask.shape)}; expected [H, W, {channels}] and [H, W]"
        )
    if mask.dtype != np.uint8:
        return f"the pipeline turns the mask's dtype into {mask.dtype}; expected uint8"
    before, after = (
        np.bincount(labels.reshape(-1), minlength=256) for labels in (example.mask, mask)
    )
    before[IGNORE_INDEX] = 1
    if len(new := np.flatnonzero((after > 0) & (before == 0))):
        return f"the pipeline puts label {new[0]} into a mask that has no such label"
    return ""
