"""Optimizers and schedules with PyTorch's arithmetic, and rules by parameter name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fcn_jax.config import OptimConfig, Rule
from fcn_jax.errors import ConfigError


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step.

    The poly schedule is lr (1 - step / steps) ^ power (Liu et al. 2015, arXiv:1506.04579; torch's
    `PolynomialLR`); for the first `warmup_steps` it is multiplied by (step + 1) / warmup_steps.

    Args:
        config: the recipe's.
        steps: length of the run, at least 1.

    Returns:
        Function i32[] -> f32[].
    """

    def rate(step: Any) -> Any:
        fraction = jnp.clip(1 - step / steps, 0, 1) if config.schedule == "poly" else 1.0
        warmup = jnp.minimum((step + 1) / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
        return config.lr * fraction**config.power * warmup

    return rate


def make(config: OptimConfig, steps: int, params: Any) -> optax.GradientTransformation:
    """The optimizer of a recipe.

    SGD adds the decay to the gradient before the momentum, AdamW takes it off the parameter, both
    as in PyTorch.

    Args:
        config: the recipe's.
        steps: length of the run, at least 1.
        params: tree of parameters, whose names the rules are matched against.

    Raises:
        ConfigError: a rule that no parameter's name matches.
    """
    rate = schedule(config, steps)

    def transform(rule: Rule) -> optax.GradientTransformation:
        if rule.lr == 0:
            return optax.set_to_zero()
        decay = config.weight_decay * rule.weight_decay

        def learning_rate(step: Any) -> Any:
            return rule.lr * rate(step)

        if config.name == "adamw":
            return optax.adamw(learning_rate, *config.betas, eps=config.eps, weight_decay=decay)
        return optax.chain(
            optax.add_decayed_weights(decay) if decay else optax.identity(),
            optax.sgd(learning_rate, momentum=config.momentum or None),
        )

    rules = (*config.rules, Rule(match="*"))
    names = parameter_names(params)
    labels = {
        name: next(i for i, rule in enumerate(rules) if fnmatch.fnmatchcase(name, rule.match))
        for name in names
    }
    unused = [rule.match for i, rule in enumerate(config.rules) if i not in labels.values()]
    if unused:
        raise ConfigError(
            f"optim.rules: no parameter is left for {', '.join(unused)}; names look like {names[0]}, {names[-1]}"
        )
    used = sorted(set(labels.values()))
    if used == [len(rules) - 1]:
        return transform(rules[-1])
    label_tree = jax.tree.unflatten(jax.tree.structure(params), [labels[name] for name in names])
    return optax.partition({i: transform(rules[i]) for i in used}, label_tree)


def with_fresh(config: OptimConfig, kernels: Iterable[str], factor: float) -> OptimConfig:
    """The same settings, where kernels that a pretrained backbone lacked learn at `factor` times the rate.

    torchvision draws a ResNet's convolutions for training from nothing. Under batch normalization a
    kernel's scale does not matter, but the larger it is, the slower a step turns it: in a short
    fine-tuning such layers hardly move.

    Args:
        config: the recipe's, whose own rules come first.
        kernels: names of what was drawn anew; only the backbone's kernels are meant, since a head
            learns from nothing in any case.
        factor: on the learning rate, at least 0.
    """
    fresh = [
        name
        for name in kernels
        if name.startswith("backbone.")
        and name.endswith(".kernel")
        and not any(fnmatch.fnmatchcase(name, rule.match) for rule in config.rules)
    ]
    if factor == 1 or not fresh:
        return config
    return config.model_copy(
        update={"rules": (*config.rules, *(Rule(match=name, lr=factor) for name in fresh))}
    )


def parameter_names(params: Any) -> list[str]:
    """Dotted names of a tree's leaves, such as `head.final_conv.kernel`, in the tree's order."""
    return [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def name_of(path: tuple[Any, ...]) -> str:
    """The dotted name of a tree path; NNX's last entry, the variable's own value, is left out."""
    parts = [
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
    ]
    return ".".join(part for part in parts if part != "value" and not part.startswith("."))
