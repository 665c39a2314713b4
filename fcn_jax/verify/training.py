"""Training steps on both sides at once, compared after every step."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from fcn_jax.config import OptimConfig
from fcn_jax.convert.export import export_leaves
from fcn_jax.models.names import named
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.plugins.api import IGNORE_INDEX, Preprocess
from fcn_jax.train import optim, step
from fcn_jax.verify import jax_side
from fcn_jax.verify.compare import FACTORS, NEGLIGIBLE, Comparison, ReferenceErrors, Section
from fcn_jax.verify.modules import train_mode
from fcn_jax.verify.torch_side import REFERENCE, TorchSide, Variant, array, import_torch
from fcn_jax.verify.types import Advance, Pair

if TYPE_CHECKING:
    import torch

RECIPE = OptimConfig(
    name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, schedule="poly", power=0.9
)
"""Optimizer of both sides; the learning rate can be set."""

_STATISTICS = (".running_mean", ".running_var")
_COUNT = ".num_batches_tracked"


def compare_training(
    pair: Pair,
    model: Segmenter,
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
    preprocess: Preprocess,
    advance: Advance,
    lr: float = RECIPE.lr,
) -> list[Section]:
    """Train both sides on the same batches with SGD, momentum, weight decay and a poly schedule.

    JAX's side is the step of `fcn-jax train`. PyTorch's side is its own SGD and PolynomialLR. The
    compared value is the change of each tensor from its initial value, because a wrong step is a
    small part of the tensor itself. Every tensor is compared after the first step, before rounding
    errors are amplified, and after the last. After each step, the loss, all parameters together and
    all running statistics together are compared.

    Args:
        pair: both sides.
        model: JAX's side of the pair; its arrays do not change.
        batches: (u8[N,H,W,3] images, u8[N,H,W] labels) for each step.
        preprocess: that of the backbone.
        advance: called after every step.
        lr: the first step's learning rate, above 0.
    """
    steps, recipe = len(batches), RECIPE.model_copy(update={"lr": lr})
    factor, first_factor = FACTORS["training"], FACTORS["gradients"]
    with train_mode(pair):
        model.train()
        ours = _JaxRun(pair, model, preprocess, recipe, steps)
        # PyTorch may have a classifier for which the model here has no place.
        names = set(ours.tensors())
        reference, *runs = (
            _TorchRun(pair.torch, variant, preprocess, recipe, steps, names)
            for variant in (REFERENCE, *pair.torch.variants)
        )
        start = {name: value.copy() for name, value in reference.tensors().items()}
        first: tuple[Comparison, ...] = ()
        last: tuple[Comparison, ...] = ()
        between: list[Comparison] = []
        for number, (images, labels) in enumerate(batches, start=1):
            loss = f"loss, step {number}"
            losses = ReferenceErrors({loss: reference.step(images, labels)}, pair.dtype)
            goal = reference.tensors()
            groups = {f"{kind}, step {number}": names for kind, names in _kinds(goal).items()}
            whole = ReferenceErrors(goal, pair.dtype, start=start, groups=groups)
            compared = goal if number in (1, steps) else {}
            least = NEGLIGIBLE * whole.norm
            each = ReferenceErrors(compared, pair.dtype, start=start, least_norm=least)
            for run in runs:
                losses.add({loss: run.step(images, labels)})
                found = run.tensors()
                whole.add(found)
                each.add(found)
            between += losses.compare({loss: ours.step(images, labels)}, factor)
            found = ours.tensors()
            between += whole.compare(found, factor)
            if number == 1:
                first = each.compare(found, first_factor)
            if number == steps:
                last = each.compare(found, factor)
            advance(f"training step {number}")
    model.eval()
    sections = [
        Section("training, after step 1", first_factor, first),
        Section("training, each step", factor, tuple(between)),
    ]
    if steps > 1:
        sections.append(Section(f"training, after step {steps}", factor, last))
    return sections


def _kinds(tensors: Iterable[str]) -> dict[str, list[str]]:
    """Names of all parameters and, if there are any, of all running statistics."""
    names = [name for name in tensors if not name.endswith(_COUNT)]
    kinds = {
        "all parameters": [name for name in names if not name.endswith(_STATISTICS)],
        "all running statistics": [name for name in names if name.endswith(_STATISTICS)],
    }
    return {kind: found for kind, found in kinds.items() if found}


def torch_loss(outputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """`segmentation_loss` in PyTorch: outputs "out" and "aux" f[N,K,H,W], labels i64[N,H,W]."""
    entropy = functools.partial(
        import_torch().nn.functional.cross_entropy, target=labels, ignore_index=IGNORE_INDEX
    )
    loss = entropy(outputs["out"])
    return loss + RECIPE.aux_weight * entropy(outputs["aux"]) if "aux" in outputs else loss


class _TorchRun:
    """PyTorch's training in one variant."""

    def __init__(
        self,
        side: TorchSide,
        variant: Variant,
        preprocess: Preprocess,
        recipe: OptimConfig,
        steps: int,
        names: set[str],
    ) -> None:
        torch = import_torch()
        self._side, self._variant, self._preprocess, self._names = side, variant, preprocess, names
        self._network = copy.deepcopy(side.network(variant))
        self._optimizer = torch.optim.SGD(
            self._network.parameters(),
            recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self._schedule = torch.optim.lr_scheduler.PolynomialLR(self._optimizer, steps, recipe.power)

    def step(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        torch = import_torch()
        preprocess = self._preprocess
        wide: Any = np.float64 if self._variant == REFERENCE else np.float32
        ordered = images[..., ::-1] if preprocess.channel_order == "bgr" else images
        mean, std = np.asarray(preprocess.mean, wide), np.asarray(preprocess.std, wide)
        x = (ordered.astype(wide) * wide(preprocess.scale / 255) - mean) / std
        with self._side.forward(self._variant):
            loss = torch_loss(
                self._network(self._side.tensor(x, self._variant)), torch.from_numpy(labels).long()
            )
        with self._side.kernels(self._variant):
            loss.backward()
        self._optimizer.step()
        # The gradients of all runs together would fill the memory.
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step()
        return array(loss)

    def tensors(self) -> dict[str, np.ndarray]:
        """Parameters and statistics by name. The next step overwrites them in place."""
        return {
            name: x.detach().numpy()
            for name, x in self._network.state_dict().items()
            if name in self._names
        }


class _JaxRun:
    """Training with the step of `fcn-jax train`."""

    def __init__(
        self, pair: Pair, model: Segmenter, preprocess: Preprocess, recipe: OptimConfig, steps: int
    ) -> None:
        self._table = pair.table
        self._state, advance = step.make(
            model,
            optim.make(recipe, steps, nnx.state(model, nnx.Param)),
            preprocess,
            aux_weight=recipe.aux_weight,
        )
        self._step = jax.jit(advance, donate_argnums=0)

    def step(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with jax_side.precise():
            self._state, metrics = self._step(self._state, {"image": images, "mask": labels})
        return np.asarray(metrics["loss"])

    def tensors(self) -> dict[str, np.ndarray]:
        leaves = {**named(self._state.params), **named(self._state.batch_stats)}
        return export_leaves(leaves, self._table)
