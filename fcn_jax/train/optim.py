"""Optimizers and schedules with PyTorch's arithmetic, and param groups by parameter name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import jax
import optax

from fcn_jax.config import OptimConfig, ParamGroup
from fcn_jax.errors import ConfigError
from fcn_jax.train import adam


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step.

    `poly` is lr (1 - step / steps) ^ power (Liu et al. 2015, arXiv:1506.04579; torch's
    `PolynomialLR`), `cosine` is lr (1 + cos(pi step / steps)) / 2 (torch's `CosineAnnealingLR`). In
    the first `warmup_steps` the schedule is multiplied by (step + 1) / warmup_steps.

    Args:
        config: settings of the optimizer.
        steps: length of the run, at least 1.

    Returns:
        Function i32[] -> f32[].
    """
    rate = {
        "poly": optax.polynomial_schedule(config.lr, 0.0, config.power, steps),
        "cosine": optax.cosine_decay_schedule(config.lr, steps),
        "constant": optax.constant_schedule(config.lr),
    }[config.schedule]
    if config.warmup_steps < 2:
        return rate
    warmup = optax.linear_schedule(1 / config.warmup_steps, 1.0, config.warmup_steps - 1)
    return lambda step: rate(step) * warmup(step)


def make(config: OptimConfig, steps: int, params: Any) -> optax.GradientTransformation:
    """Make the optimizer.

    SGD adds the weight decay to the gradient before the momentum; AdamW subtracts it from the
    parameter. Both are as in PyTorch. `clip_norm` clips the norm of all gradients together, as
    `torch.nn.utils.clip_grad_norm_` does; frozen parameters do not count.

    Args:
        config: settings of the optimizer.
        steps: length of the run, at least 1.
        params: tree of parameters; only the names of its leaves are used.

    Raises:
        ConfigError: a param group decides about no parameter.
    """
    rate = schedule(config, steps)

    def transform(group: ParamGroup) -> optax.GradientTransformation:
        if group.lr_mult == 0:
            return optax.set_to_zero()
        decay = config.weight_decay * group.decay_mult

        def learning_rate(step: Any) -> Any:
            return group.lr_mult * rate(step)

        if config.name == "adamw":
            return optax.chain(
                adam.scale_by_adam(*config.betas, config.eps),
                optax.add_decayed_weights(decay),
                optax.scale_by_learning_rate(learning_rate),
            )
        return optax.chain(
            optax.add_decayed_weights(decay) if decay else optax.identity(),
            optax.sgd(learning_rate, momentum=config.momentum or None),
        )

    groups = (*config.param_groups, ParamGroup(match="*"))
    names = parameter_names(params)
    labels = [
        next(i for i, group in enumerate(groups) if fnmatch.fnmatchcase(name, group.match))
        for name in names
    ]
    unused = [group.match for i, group in enumerate(config.param_groups) if i not in labels]
    if unused:
        raise ConfigError(
            f"optim.param_groups: no parameter is left for {', '.join(unused)}; "
            f"names look like {names[0]}, {names[-1]}"
        )
    used, tree = sorted(set(labels)), jax.tree.structure(params)
    if used == [len(groups) - 1]:
        optimizer = transform(groups[-1])
    else:
        optimizer = optax.partition(
            {i: transform(groups[i]) for i in used}, jax.tree.unflatten(tree, labels)
        )
    if config.clip_norm is None:
        return optimizer
    trained = jax.tree.unflatten(tree, [groups[i].lr_mult > 0 for i in labels])
    return optax.chain(
        optax.masked(optax.clip_by_global_norm(config.clip_norm), trained), optimizer
    )


def with_reinitialized(config: OptimConfig, names: Iterable[str], lr_mult: float) -> OptimConfig:
    """Multiply the learning rate of reinitialized kernels of a pretrained backbone.

    torchvision initializes a ResNet's convolutions for training from scratch. Under batch
    normalization a kernel's scale has no effect, but the larger it is, the smaller the change of
    direction per step: in a short fine-tuning such layers hardly move.

    Args:
        config: settings of the optimizer; their own param groups take precedence.
        names: names of the tensors that were reinitialized. Only kernels of the backbone are
            changed, because a head starts from random values in any case.
        lr_mult: learning rate multiplier, at least 0.
    """
    kernels = [
        name
        for name in names
        if name.startswith("backbone.")
        and name.endswith(".kernel")
        and not any(fnmatch.fnmatchcase(name, group.match) for group in config.param_groups)
    ]
    if lr_mult == 1 or not kernels:
        return config
    more = (ParamGroup(match=name, lr_mult=lr_mult) for name in kernels)
    return config.model_copy(update={"param_groups": (*config.param_groups, *more)})


def parameter_names(params: Any) -> list[str]:
    """Return dotted names of a tree's leaves, such as `head.final_conv.kernel`, in tree order."""
    return [
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
