"""The losses of a recipe in PyTorch: PyTorch's own, and segmentation_models_pytorch's."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fcn_jax.plugins.api import IGNORE_INDEX

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits f[N,K,H,W], labels i64[N,H,W]) -> f[]."""


def weighted_sum(record: Mapping[str, Mapping[str, Any]], task: str) -> Loss:
    """Build the sum of a recipe's losses.

    Args:
        record: weight and complete options of each loss, as `Losses.record` returns them.
        task: "multiclass" or "binary".

    Raises:
        SystemExit: losses or options that are not supported here, all of them.
    """
    terms, problems = [], []
    for name, table in record.items():
        options = {key: value for key, value in table.items() if key != "weight"}
        try:
            terms.append((table["weight"], _BUILDERS[name](task, **options)))
        except KeyError:
            problems.append(f"loss '{name}'; it has {', '.join(_BUILDERS)}")
        except _UnsupportedError as error:
            problems.append(f"loss '{name}' with {error}")
    if problems:
        raise SystemExit(f"this benchmark does not support {'; nor '.join(problems)}")

    def total(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        values = [weight * loss(logits, labels) for weight, loss in terms if weight]
        return torch.stack(values).sum()

    return total


class _UnsupportedError(Exception):
    """An option has no counterpart."""


def _cross_entropy(task: str, class_weights: Any, label_smoothing: float) -> Loss:
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if task == "binary":
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        return torch.nn.functional.cross_entropy(
            logits, labels, weight, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing
        )

    return loss


def _focal(task: str, gamma: float, alpha: Any, sigmoid: bool) -> Loss:
    if sigmoid or task == "binary":
        return smp().FocalLoss(task, alpha=alpha, gamma=gamma, ignore_index=IGNORE_INDEX)  # type: ignore[no-any-return]
    if alpha is not None:
        raise _UnsupportedError("alpha and softmax")
    function = sys.modules[f"{smp().__name__}._functional"].softmax_focal_loss_with_logits

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        valid = labels != IGNORE_INDEX
        return function(logits.permute(0, 2, 3, 1)[valid], labels[valid], gamma=gamma)  # type: ignore[no-any-return]

    return loss


def _tversky(
    task: str, smooth: float, log: bool, classes: Any, alpha: float, beta: float, gamma: float = 1.0
) -> Loss:
    # SMP's Jaccard loss ignores no labels, and its Dice loss adds `smooth` in another place.
    return smp().TverskyLoss(  # type: ignore[no-any-return]
        task,
        classes=None if classes is None else list(classes),
        log_loss=log,
        smooth=smooth,
        ignore_index=IGNORE_INDEX,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
    )


def _lovasz(task: str, per_image: bool, classes: str) -> Loss:
    if classes != "present":
        raise _UnsupportedError(f"classes = '{classes}'")
    return smp().LovaszLoss(task, per_image=per_image, ignore_index=IGNORE_INDEX)  # type: ignore[no-any-return]


_BUILDERS: dict[str, Callable[..., Loss]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "dice": functools.partial(_tversky, alpha=0.5, beta=0.5),
    "jaccard": functools.partial(_tversky, alpha=1.0, beta=1.0),
    "tversky": _tversky,
    "lovasz": _lovasz,
}


@functools.cache
def smp() -> Any:
    """SMP's module of losses, imported alone, because the rest of SMP needs more packages.

    Raises:
        SystemExit: SMP is not installed.
    """
    found = importlib.util.find_spec("segmentation_models_pytorch")
    if found is None or found.origin is None:
        raise SystemExit("this loss needs SMP: pip install --no-deps segmentation-models-pytorch")
    folder = Path(found.origin).parent / "losses"
    name = "benchmarks_smp_losses"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
