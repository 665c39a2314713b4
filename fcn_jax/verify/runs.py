"""Training on each side, one step at a time, from given values of all tensors."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.config import OptimConfig, ParamGroup
from fcn_jax.convert.export import export_leaves
from fcn_jax.models.names import named
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.plugins.api import IGNORE_INDEX, Preprocess
from fcn_jax.pytorch.rules import Table
from fcn_jax.train import groups, optim, step
from fcn_jax.verify import jax_side
from fcn_jax.verify.torch_side import REFERENCE, Variant, array, import_torch
from fcn_jax.verify.types import Pair

if TYPE_CHECKING:
    import torch

Values = Mapping[str, np.ndarray]
"""Parameters and buffers by PyTorch's names, in PyTorch's layout."""

AVERAGE = "EMA of "
"""Prefix of the names of averages."""

SGD = OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="poly", power=0.9)

ADAMW = OptimConfig(
    name="adamw",
    lr=1e-3,
    eps=1e-4,
    weight_decay=1e-2,
    schedule="cosine",
    warmup_steps=2,
    param_groups=(
        ParamGroup(match="*.bias", decay_mult=0),
        ParamGroup(match="*.scale", decay_mult=0),
    ),
)
"""Without weight decay of biases and normalizations. Some gradients are zero except for rounding.
With PyTorch's default eps of 1e-8 their steps would be as large as others, in random directions.
1e-4 is above such gradients, and shows where eps is added."""

ADAMW_EMA = ADAMW.model_copy(update={"ema_decay": 0.9})
"""With averages of the weights. With the usual 0.999, those of a few steps would hardly differ from
the first weights."""

RECIPES = {"sgd": SGD, "adamw": ADAMW, "adamw-ema": ADAMW_EMA}
"""Recipes of the comparison by name."""

_OPTIMIZERS = ("sgd", "adamw")


def recipe_problems(recipe: OptimConfig) -> list[str]:
    """Settings with which the two sides cannot be compared, one clause each."""
    problems = []
    if recipe.accumulate_steps != 1:
        problems.append(
            f"train_recipe.accumulate_steps is {recipe.accumulate_steps}: expected 1, because "
            "PyTorch computes whole batches"
        )
    if recipe.schedule not in _SCHEDULES:
        problems.append(
            f"train_recipe.schedule is '{recipe.schedule}': expected one of {', '.join(_SCHEDULES)}"
        )
    if recipe.name not in _OPTIMIZERS:
        problems.append(
            f"train_recipe.name is '{recipe.name}': expected one of {', '.join(_OPTIMIZERS)}"
        )
    if recipe.freeze_batch_norm not in ((), ("*",)):
        problems.append(
            f"train_recipe.freeze_batch_norm is {list(recipe.freeze_batch_norm)}: expected true, "
            "false, or no globs other than *"
        )
    unsupported = ("clip_value", "decay_norm_and_bias", "ema_warmup", "freeze", "layer_decay")
    problems += [
        f"train_recipe.{name} is {getattr(recipe, name)!r}: it is not compared; leave it out"
        for name in (*unsupported, "final_factor")
        if getattr(recipe, name) != OptimConfig.model_fields[name].default
    ]
    return problems


def recipe_for(recipe: str | OptimConfig, model: nnx.Module) -> OptimConfig:
    """A recipe of `RECIPES` without the param groups that have no parameter; others unchanged."""
    if isinstance(recipe, OptimConfig):
        return recipe
    chosen, names = RECIPES[recipe], list(named(nnx.state(model, nnx.Param)))
    groups = tuple(g for g in chosen.param_groups if fnmatch.filter(names, g.match))
    return chosen.model_copy(update={"param_groups": groups})


def torch_loss(
    outputs: Mapping[str, Any], labels: torch.Tensor, aux_weight: float = SGD.aux_weight
) -> torch.Tensor:
    """`segmentation_loss` in PyTorch: outputs "out" and "aux" f[N,K,H,W], labels i64[N,H,W]."""

    def entropy(logits: Any) -> Any:
        cross_entropy = import_torch().nn.functional.cross_entropy
        return cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)

    loss = entropy(outputs["out"])
    return loss + aux_weight * entropy(outputs["aux"]) if "aux" in outputs else loss


@contextlib.contextmanager
def frozen_batch_norm(pair: Pair, frozen: bool) -> Iterator[None]:
    """Keep PyTorch's batch normalizations in eval mode, while all else is in train mode."""
    torch = import_torch()
    layers = [
        layer
        for network in pair.torch.networks()
        for layer in network.modules()
        if frozen and isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
    ]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


class TorchRun:
    """PyTorch's training in one variant.

    Variants of one memory layout share a network, so each step starts with loading all values.
    """

    def __init__(
        self, pair: Pair, variant: Variant, preprocess: Preprocess, recipe: OptimConfig, steps: int
    ) -> None:
        """Make the optimizer and its schedule for a run of `steps` steps."""
        self._side, self._variant, self._preprocess = pair.torch, variant, preprocess
        self._recipe = recipe
        self.network = pair.torch.network(variant)
        self._optimizer = _optimizer(self.network, recipe, pair.table)
        self._schedule = _schedule(self._optimizer, recipe, steps)
        self._average: Any = None
        if recipe.ema_decay is not None:
            swa = import_torch().optim.swa_utils
            average = swa.get_ema_multi_avg_fn(recipe.ema_decay)
            self._average = swa.AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)

    def load(self, values: Values) -> None:
        """Set all parameters and buffers."""
        torch = import_torch()
        with torch.no_grad():
            for name, x in self.network.state_dict().items():
                x.copy_(torch.as_tensor(values[name]))

    def inputs(self, images: np.ndarray) -> torch.Tensor:
        """The network's input f[N,3,H,W] of u8[N,H,W,3] images, normalized in its precision."""
        preprocess = self._preprocess
        wide: Any = np.float64 if self._variant == REFERENCE else np.float32
        ordered = images[..., ::-1] if preprocess.channel_order == "bgr" else images
        mean, std = np.asarray(preprocess.mean, wide), np.asarray(preprocess.std, wide)
        x = (ordered.astype(wide) * wide(preprocess.scale / 255) - mean) / std
        return self._side.tensor(x, self._variant)

    def after(
        self, values: Values, images: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, Values]:
        """Load values and take a step.

        Returns:
            The loss, and the new values, which the next step with the same network overwrites.
        """
        torch = import_torch()
        self.load(values)
        with self._side.forward(self._variant):
            outputs = self.network(self.inputs(images))
            target = torch.from_numpy(labels).long()
            loss = torch_loss(outputs, target, self._recipe.aux_weight)
        with self._side.kernels(self._variant):
            loss.backward()
        if self._recipe.clip_norm is not None:
            trained = [p for group in self._optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, self._recipe.clip_norm)
        self._optimizer.step()
        # The gradients of all runs together would fill the memory.
        self.network.zero_grad(set_to_none=True)
        self._schedule.step()
        if self._average is not None:
            self._average.update_parameters(self.network)
        return array(loss), self.values()

    def values(self) -> Values:
        """The present values and averages, which the next step overwrites."""
        tensors = self.network.state_dict()
        if self._average is not None:
            averages = self._average.module.state_dict()
            tensors = {**tensors, **{AVERAGE + name: x for name, x in averages.items()}}
        return {name: x.detach().numpy() for name, x in tensors.items()}

    def saved(self) -> Any:
        """A copy of the states of the optimizer, the schedule and the averages."""
        states = [self._optimizer.state_dict(), self._schedule.state_dict()]
        if self._average is not None:
            states.append(self._average.state_dict())
        return copy.deepcopy(states)

    def restore(self, saved: Any) -> None:
        """Go back to a saved state."""
        self._optimizer.load_state_dict(saved[0])
        self._schedule.load_state_dict(saved[1])
        if self._average is not None:
            self._average.load_state_dict(saved[2])


class JaxRun:
    """Training with the step of `fcn-jax train`."""

    def __init__(
        self, pair: Pair, model: Segmenter, preprocess: Preprocess, recipe: OptimConfig, steps: int
    ) -> None:
        """Make the step for a run of `steps` steps; the model's arrays do not change."""
        self._table, self._port = pair.table, pair.port
        rates = groups.assign(recipe, nnx.state(model, nnx.Param))
        self._state, advance = step.make(
            model,
            optim.make(recipe, steps, rates),
            preprocess,
            aux_weight=recipe.aux_weight,
            remat=recipe.remat,
            ema_decay=recipe.ema_decay,
            frozen=groups.frozen_names(rates),
            freeze_batch_norm=recipe.freeze_batch_norm,
        )
        # Without donation, because a saved state must survive the step.
        self._step = jax.jit(advance)

    def after(
        self, values: Values, images: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, Values]:
        """Load values and take a step; returns the loss and the new values."""
        state = self._state
        params, batch_stats = (self._loaded(x, values) for x in (state.params, state.batch_stats))
        state = dataclasses.replace(state, params=params, batch_stats=batch_stats)
        with jax_side.precise(self._port):
            self._state, metrics = self._step(state, {"image": images, "mask": labels})
        return np.asarray(metrics["loss"]), self.values()

    def values(self) -> Values:
        """The present values and averages."""
        state = self._state
        values = export_leaves({**named(state.params), **named(state.batch_stats)}, self._table)
        averages = {} if state.ema is None else export_leaves(named(state.ema), self._table)
        return {**values, **{AVERAGE + name: value for name, value in averages.items()}}

    def saved(self) -> step.TrainState:
        """The present state."""
        return self._state

    def restore(self, saved: step.TrainState) -> None:
        """Go back to a saved state."""
        self._state = saved

    def _loaded(self, tree: Any, values: Values) -> Any:
        """A tree of parameters or statistics with new values, where PyTorch has such a tensor."""
        leaves, structure = jax.tree.flatten(tree)
        for i, path in enumerate(groups.parameter_names(tree)):
            found = self._table.to_torch(path)
            if found is not None and found[0] in values:
                name, rule = found
                # A copy, because JAX may otherwise share memory that PyTorch overwrites.
                leaves[i] = jnp.array(rule.op.to_jax(values[name]), leaves[i].dtype)
        return jax.tree.unflatten(structure, leaves)


def _optimizer(network: torch.nn.Module, recipe: OptimConfig, table: Table) -> Any:
    """PyTorch's optimizer. Its param groups follow the globs over JAX's names of the parameters."""
    torch = import_torch()
    globs = (*recipe.param_groups, ParamGroup(match="*"))
    members: dict[int, list[Any]] = {}
    for name, parameter in network.named_parameters():
        found = table.to_jax(name)
        path = found[0] if found else name
        number = next(i for i, g in enumerate(globs) if fnmatch.fnmatchcase(path, g.match))
        if parameter.requires_grad and globs[number].lr_mult > 0:
            members.setdefault(number, []).append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": recipe.lr * globs[number].lr_mult,
            "weight_decay": recipe.weight_decay * globs[number].decay_mult,
        }
        for number, parameters in sorted(members.items())
    ]
    if recipe.name == "adamw":
        return torch.optim.AdamW(groups, betas=recipe.betas or (0.9, 0.999), eps=recipe.eps)
    return torch.optim.SGD(groups, momentum=recipe.momentum)


_SCHEDULES = {
    "poly": lambda module, steps, recipe: (module.PolynomialLR, (steps, recipe.power)),
    "cosine": lambda module, steps, recipe: (module.CosineAnnealingLR, (steps,)),
    "constant": lambda module, steps, recipe: (module.ConstantLR, (1.0,)),
}
"""PyTorch's class of each schedule, and its arguments."""


def _schedule(optimizer: Any, recipe: OptimConfig, steps: int) -> Any:
    module = import_torch().optim.lr_scheduler
    make, settings = _SCHEDULES[recipe.schedule](module, steps, recipe)
    schedules = [make(optimizer, *settings)]
    if (warmup := recipe.warmup_steps) >= 2:
        schedules.append(module.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1))
    return module.ChainedScheduler(schedules, optimizer)
