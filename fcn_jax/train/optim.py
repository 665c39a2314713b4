"""Optimizers with PyTorch's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fcn_jax.config import OptimConfig
from fcn_jax.train.adam import scale_by_adam
from fcn_jax.train.groups import Rate, parameter_names
from fcn_jax.train.schedules import schedule

_DECOUPLED = ("adamw", "lion", "muon")
"""Optimizers that subtract the weight decay from the parameter; others add it to the gradient."""


def make(
    config: OptimConfig, steps: int, rates: Mapping[str, Rate]
) -> optax.GradientTransformation:
    """Make the optimizer of the parameters that are trained.

    SGD, Adam and AdamW are as in PyTorch, Lion as in Chen et al. 2023, arXiv:2302.06675. Muon (see
    `_muon`) is for kernels; it leaves scales and biases to AdamW. SGD and Adam add the weight decay
    to the gradient. The others subtract it, times the learning rate, from the parameter.

    `clip_norm` clips the norm of all gradients together, as `torch.nn.utils.clip_grad_norm_` does,
    and `clip_value` each value, as `clip_grad_value_` does. Frozen parameters do not count.

    Args:
        config: settings of the optimizer.
        steps: length of the run, at least 1.
        rates: how each parameter is trained, as `fcn_jax.train.groups.assign` returns it.
    """

    def by_name(tree: Any, value: Callable[[Rate], float]) -> Any:
        values = [value(rates[name]) for name in parameter_names(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), values)

    def add_decay(updates: Any, params: Any) -> Any:
        decays = by_name(params, lambda rate: rate.weight_decay)
        return jax.tree.map(lambda u, p, d: u + d * p if d else u, updates, params, decays)

    def multiply(updates: Any, _: Any) -> Any:
        factors = by_name(updates, lambda rate: rate.lr_mult)
        return jax.tree.map(lambda u, factor: factor * u if factor != 1 else u, updates, factors)

    decay, rule = optax.stateless(add_decay), _rule(config)
    parts = [rule, decay] if config.name in _DECOUPLED else [decay, rule]
    if config.clip_norm is not None:
        parts.insert(0, optax.stateless(_clip_norm(config.clip_norm)))
    if config.clip_value is not None:
        parts.insert(0, optax.clip(config.clip_value))
    rate = optax.scale_by_learning_rate(schedule(config, steps))
    return optax.chain(*parts, optax.stateless(multiply), rate)


def _clip_norm(limit: float) -> Callable[[Any, Any], Any]:
    """`torch.nn.utils.clip_grad_norm_`; Optax's has no 1e-6."""

    def clip(updates: Any, _: Any) -> Any:
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda update: factor * update, updates)

    return clip


def _rule(config: OptimConfig) -> optax.GradientTransformation:
    """The optimizer without decay and learning rate."""
    if config.name == "sgd":
        return optax.trace(config.momentum) if config.momentum else optax.identity()
    if config.name == "lion":
        return optax.scale_by_lion(*(config.betas or (0.9, 0.99)))
    rest = scale_by_adam(*(config.betas or (0.9, 0.999)), config.eps)
    if config.name == "muon":
        return optax.partition({"muon": _muon(config.momentum), "adam": rest}, _muon_or_adam)
    return rest


def _muon_or_adam(params: Any) -> Any:
    return jax.tree.map(lambda leaf: "muon" if jnp.ndim(leaf) > 1 else "adam", params)


def _muon(momentum: float) -> optax.GradientTransformation:
    """Muon for kernels [..., I, O], as matrices [... * I, O].

    The momentum is replaced by its nearest orthogonal matrix, approximately (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon), times 0.2 sqrt(max(rows, columns)) as in Liu et al. 2025,
    arXiv:2502.16982: the update then has AdamW's size, and learning rates and decays of AdamW fit.
    """
    # It is applied to each matrix alone, because trees need axes for each of its leaves.
    inner = optax.contrib.scale_by_muon(beta=momentum)

    def matrix(x: jax.Array) -> jax.Array:
        return x.reshape(-1, x.shape[-1])

    def init(params: Any) -> tuple[Any, ...]:
        return tuple(inner.init(matrix(leaf)) for leaf in jax.tree.leaves(params))

    def update(updates: Any, states: Any, params: Any = None) -> Any:
        leaves, tree = jax.tree.flatten(updates)
        found, after = [], []
        for leaf, state in zip(leaves, states, strict=True):
            direction, state = inner.update(matrix(leaf), state)
            scaled = 0.2 * math.sqrt(max(direction.shape)) * direction
            found.append(scaled.reshape(leaf.shape))
            after.append(state)
        return jax.tree.unflatten(tree, found), tuple(after)

    return optax.GradientTransformation(init, update)
