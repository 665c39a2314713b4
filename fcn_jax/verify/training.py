"""A run of training steps on both sides at once, compared after every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fcn_jax.api import Preprocess
from fcn_jax.config import OptimConfig
from fcn_jax.convert.engine import export
from fcn_jax.models.names import named
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.train import optim, step
from fcn_jax.verify import jax_side
from fcn_jax.verify.compare import FACTORS, Comparison, Section, Yardstick
from fcn_jax.verify.modules import Advance, Pair, training
from fcn_jax.verify.torch_side import TRUTH, TorchSide, Variant, array, import_torch

RECIPE = OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, schedule="poly", power=0.9)
"""What both sides train with."""

_STATISTICS = (".running_mean", ".running_var")
_COUNT = ".num_batches_tracked"


def compare_training(
    pair: Pair, model: Segmenter, batches: Sequence[tuple[np.ndarray, np.ndarray]], preprocess: Preprocess, advance: Advance
) -> list[Section]:
    """Train both sides on the same batches with SGD, momentum, decay and the poly schedule.

    JAX's side is the step that `fcn-jax train` takes; PyTorch's is torch's own SGD and PolynomialLR. Every tensor is judged after the
    first step, before rounding errors have been amplified, and after the last; between them the losses, and all parameters and all
    running statistics together.

    Args:
        pair: both sides, whose JAX side is `model`.
        model: whose arrays are not touched.
        batches: (u8[N,H,W,3] images, u8[N,H,W] labels) for each step.
        preprocess: the backbone's.
        advance: told of every step done.
    """
    steps = len(batches)
    with training(pair):
        ours = _JaxRun(pair, model, preprocess, steps)
        truth = _TorchRun(pair.torch, TRUTH, preprocess, steps)
        runs = [_TorchRun(pair.torch, variant, preprocess, steps) for variant in pair.torch.variants]
        first: tuple[Comparison, ...] = ()
        last: tuple[Comparison, ...] = ()
        between: list[Comparison] = []
        for number, (images, labels) in enumerate(batches, start=1):
            together = {f"loss, step {number}": truth.step(images, labels)} | _together(truth.tensors(), number)
            whole, each = Yardstick(together, pair.dtype), Yardstick(truth.tensors(), pair.dtype)
            for run in runs:
                loss = run.step(images, labels)
                whole.add({f"loss, step {number}": loss} | _together(run.tensors(), number))
                if number in (1, steps):
                    each.add(run.tensors())
            found = {f"loss, step {number}": ours.step(images, labels)} | _together(ours.tensors(), number)
            between += whole.judge(found, FACTORS["training"])
            if number == 1:
                first = each.judge(ours.tensors(), FACTORS["gradients"])
            if number == steps:
                last = each.judge(ours.tensors(), FACTORS["training"])
            advance(f"training step {number}")
    sections = [
        Section("training, after step 1", FACTORS["gradients"], first),
        Section("training, each step", FACTORS["training"], tuple(between)),
    ]
    return sections if steps == 1 else [*sections, Section(f"training, after step {steps}", FACTORS["training"], last)]


def _together(tensors: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """All parameters, and all running statistics, each as one vector."""
    names = sorted(name for name in tensors if not name.endswith(_COUNT))  # each side has an order of its own
    kinds = {
        "all parameters": [tensors[name] for name in names if not name.endswith(_STATISTICS)],
        "all running statistics": [tensors[name] for name in names if name.endswith(_STATISTICS)],
    }
    return {f"{kind}, step {number}": np.concatenate([x.ravel() for x in found]) for kind, found in kinds.items() if found}


class _TorchRun:
    """PyTorch's own training loop in one variant."""

    def __init__(self, side: TorchSide, variant: Variant, preprocess: Preprocess, steps: int) -> None:
        import copy

        torch = import_torch()
        self._side, self._variant, self._preprocess = side, variant, preprocess
        self._network = copy.deepcopy(side.network(variant))
        self._optimizer = torch.optim.SGD(
            self._network.parameters(), RECIPE.lr, momentum=RECIPE.momentum, weight_decay=RECIPE.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.PolynomialLR(self._optimizer, steps, RECIPE.power)

    def step(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        torch = import_torch()
        preprocess = self._preprocess
        wide: Any = np.float64 if self._variant == TRUTH else np.float32
        ordered = images[..., ::-1] if preprocess.channel_order == "bgr" else images
        mean, std = np.asarray(preprocess.mean, wide), np.asarray(preprocess.std, wide)
        x = (ordered.astype(wide) * wide(preprocess.scale / 255) - mean) / std
        self._optimizer.zero_grad(set_to_none=True)
        with self._side.running(self._variant):
            logits = self._network(self._side.tensor(x, self._variant))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long(), ignore_index=255)
            loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return array(loss)

    def tensors(self) -> dict[str, np.ndarray]:
        trained = {name for name, p in self._network.named_parameters() if p.grad is not None}
        buffers = {name for name, _ in self._network.named_buffers()}
        return {name: array(x) for name, x in self._network.state_dict().items() if name in trained or name in buffers}


class _JaxRun:
    """The step of the library's training loop."""

    recipe = RECIPE

    def __init__(self, pair: Pair, model: Segmenter, preprocess: Preprocess, steps: int) -> None:
        self._table = pair.table
        self._state, advance = step.make(model, lambda params: optim.make(self.recipe, steps, params), preprocess)
        self._step = jax.jit(advance, donate_argnums=0)

    def step(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with jax_side.precise():
            self._state, metrics = self._step(self._state, {"image": images, "mask": labels})
        return np.asarray(metrics["loss"])

    def tensors(self) -> dict[str, np.ndarray]:
        return export({**named(self._state.params), **named(self._state.batch_stats)}, self._table)
