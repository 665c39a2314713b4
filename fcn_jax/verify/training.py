"""A run of training steps on both sides at once, compared after every step."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fcn_jax.config import OptimConfig
from fcn_jax.convert.export import export_leaves
from fcn_jax.models.names import named
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.plugins.api import IGNORE_INDEX, Preprocess
from fcn_jax.train import optim, step
from fcn_jax.verify import jax_side
from fcn_jax.verify.compare import (
    FACTORS,
    NOT_FINITE,
    TORCH_NOT_FINITE,
    Comparison,
    Section,
    Yardstick,
    allowed,
)
from fcn_jax.verify.modules import NEGLIGIBLE, Advance, Pair, training
from fcn_jax.verify.torch_side import TRUTH, TorchSide, Variant, array, import_torch

if TYPE_CHECKING:
    import torch

RECIPE = OptimConfig(
    name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, schedule="poly", power=0.9
)
"""What both sides train with, at another rate if one is asked for."""

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
    """Train both sides on the same batches with SGD, momentum, decay and the poly schedule.

    JAX's side is the step that `fcn-jax train` takes; PyTorch's is torch's own SGD and
    PolynomialLR. What is compared is how far each tensor has moved from its initial value: a wrong
    step is a small part of the tensor itself. Every tensor is judged after the first step, before
    rounding errors have been amplified, and after the last; after each step the loss, all
    parameters together and all running statistics together.

    Args:
        pair: both sides, whose JAX side is `model`.
        model: whose arrays are not touched.
        batches: (u8[N,H,W,3] images, u8[N,H,W] labels) for each step.
        preprocess: the backbone's.
        advance: told of every step done.
        lr: the first step's learning rate, above 0.
    """
    steps, recipe = len(batches), RECIPE.model_copy(update={"lr": lr})
    with training(pair):
        ours = _JaxRun(pair, model, preprocess, recipe, steps)
        names = set(
            ours.tensors()
        )  # PyTorch may hold a classifier that the model here has no place for
        truth = _TorchRun(pair.torch, TRUTH, preprocess, recipe, steps, names)
        runs = [
            _TorchRun(pair.torch, variant, preprocess, recipe, steps, names)
            for variant in pair.torch.variants
        ]
        start = {name: value.copy() for name, value in truth.tensors().items()}
        first: tuple[Comparison, ...] = ()
        last: tuple[Comparison, ...] = ()
        between: list[Comparison] = []
        for number, (images, labels) in enumerate(batches, start=1):
            losses = Yardstick({f"loss, step {number}": truth.step(images, labels)}, pair.dtype)
            goal = truth.tensors()
            whole = [
                _Movement(f"{kind}, step {number}", goal, start, found)
                for kind, found in _kinds(goal).items()
            ]
            least = NEGLIGIBLE * math.hypot(*(movement.norm for movement in whole))
            each = (
                [_Movement(name, goal, start, [name], least) for name in goal]
                if number in (1, steps)
                else []
            )
            for run in runs:
                losses.add({f"loss, step {number}": run.step(images, labels)})
                found = run.tensors()
                for movement in (*whole, *each):
                    movement.add(found)
            between += losses.judge(
                {f"loss, step {number}": ours.step(images, labels)}, FACTORS["training"]
            )
            found = ours.tensors()
            between += [
                movement.judge(found, FACTORS["training"], pair.dtype) for movement in whole
            ]
            if number == 1:
                first = tuple(
                    movement.judge(found, FACTORS["gradients"], pair.dtype) for movement in each
                )
            if number == steps:
                last = tuple(
                    movement.judge(found, FACTORS["training"], pair.dtype) for movement in each
                )
            advance(f"training step {number}")
    sections = [
        Section("training, after step 1", FACTORS["gradients"], first),
        Section("training, each step", FACTORS["training"], tuple(between)),
    ]
    return (
        sections
        if steps == 1
        else [*sections, Section(f"training, after step {steps}", FACTORS["training"], last)]
    )


def _kinds(tensors: Iterable[str]) -> dict[str, list[str]]:
    """All parameters, and all running statistics where there are any."""
    names = [name for name in tensors if not name.endswith(_COUNT)]
    kinds = {
        "all parameters": [name for name in names if not name.endswith(_STATISTICS)],
        "all running statistics": [name for name in names if name.endswith(_STATISTICS)],
    }
    return {kind: found for kind, found in kinds.items() if found}


class _Movement:
    """How far a tensor has moved in the truth, or several as one vector, which is never put together; and PyTorch's worst error of it."""

    def __init__(
        self,
        name: str,
        goal: dict[str, np.ndarray],
        start: dict[str, np.ndarray],
        parts: list[str],
        least_norm: float = 0.0,
    ) -> None:
        self._name, self._goal, self._parts = name, goal, parts
        squares, self._largest = _squares_and_largest(goal[part] - start[part] for part in parts)
        self.norm = math.sqrt(squares)
        self._divisor = max(self.norm, least_norm) or 1.0
        self._worst = 0.0

    def add(self, run: dict[str, np.ndarray]) -> None:
        """Take in a correct run of PyTorch from the same start. Unlike max, this lets a NaN through."""
        self._worst = float(np.maximum(self._worst, self._errors(run)[0]))

    def judge(self, found: dict[str, np.ndarray], factor: float, dtype: str) -> Comparison:
        """Hold JAX's tensors, from the same start, against the truth and PyTorch's worst error."""
        sizes = [self._goal[part].shape for part in self._parts]
        shape = sizes[0] if len(sizes) == 1 else (sum(math.prod(size) for size in sizes),)
        error, largest = self._errors(found)
        fault = "" if math.isfinite(error) else NOT_FINITE
        if not math.isfinite(self._worst + self.norm):
            fault = TORCH_NOT_FINITE
        limit = allowed(self._worst, factor, dtype, single=math.prod(shape) == 1)
        return Comparison(
            self._name,
            shape,
            math.inf if fault else error,
            self._worst,
            limit,
            math.inf if fault else largest,
            fault,
        )

    def _errors(self, found: dict[str, np.ndarray]) -> tuple[float, float]:
        """Relative L2 error, and largest difference as a share of the largest movement."""
        squares, largest = _squares_and_largest(
            found[part] - self._goal[part] for part in self._parts
        )  # float64, as the truth is
        return math.sqrt(squares) / self._divisor, largest / (self._largest or 1.0)


def _squares_and_largest(arrays: Iterable[np.ndarray]) -> tuple[float, float]:
    """Sum of all squares, and largest absolute value."""
    squares, largest = 0.0, 0.0
    for x in arrays:
        flat = x.ravel().astype(np.float64, copy=False)
        squares += float(flat @ flat)
        largest = max(largest, float(np.abs(flat).max(initial=0.0)))
    return squares, largest


def torch_loss(outputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """PyTorch's counterpart of `segmentation_loss`: outputs "out" and perhaps "aux" f[N,K,H,W], labels i64[N,H,W]."""
    entropy = functools.partial(
        import_torch().nn.functional.cross_entropy, target=labels, ignore_index=IGNORE_INDEX
    )
    loss = entropy(outputs["out"])
    return loss + RECIPE.aux_weight * entropy(outputs["aux"]) if "aux" in outputs else loss


class _TorchRun:
    """PyTorch's own training loop in one variant."""

    def __init__(
        self,
        side: TorchSide,
        variant: Variant,
        preprocess: Preprocess,
        recipe: OptimConfig,
        steps: int,
        names: set[str],
    ) -> None:
        import copy

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
        wide: Any = np.float64 if self._variant == TRUTH else np.float32
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
        self._optimizer.zero_grad(
            set_to_none=True
        )  # gradients of every run at once would fill the memory
        self._schedule.step()
        return array(loss)

    def tensors(self) -> dict[str, np.ndarray]:
        """Parameters and statistics by name, as they are now: the next step writes into the same memory."""
        return {
            name: x.detach().numpy()
            for name, x in self._network.state_dict().items()
            if name in self._names
        }


class _JaxRun:
    """The step of the library's training loop."""

    def __init__(
        self, pair: Pair, model: Segmenter, preprocess: Preprocess, recipe: OptimConfig, steps: int
    ) -> None:
        self._table = pair.table
        self._state, advance = step.make(
            model,
            lambda params: optim.make(recipe, steps, params),
            preprocess,
            aux_weight=recipe.aux_weight,
        )
        self._step = jax.jit(advance, donate_argnums=0)

    def step(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with jax_side.precise():
            self._state, metrics = self._step(self._state, {"image": images, "mask": labels})
        return np.asarray(metrics["loss"])

    def tensors(self) -> dict[str, np.ndarray]:
        return export_leaves({**named(self._state.params), **named(self._state.batch_stats)}, self._table)
