"""Schedules of the learning rate, with PyTorch's values."""

from __future__ import annotations

import collections
import math

import jax
import jax.numpy as jnp
import optax

from fcn_jax.config import OptimConfig


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step.

    In the first `warmup_steps` the schedule is multiplied by (step + 1) / warmup_steps, as by
    torch's `LinearLR(start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)` in a
    `ChainedScheduler`.

    Args:
        config: settings of the optimizer.
        steps: length of the run, at least 1.

    Returns:
        Function i32[] -> f32[].
    """
    rate = {
        "poly": _poly,
        "cosine": _cosine,
        "constant": _constant,
        "one_cycle": _one_cycle,
        "multi_step": _multi_step,
    }[config.schedule](config, steps)
    if config.warmup_steps < 2:
        return rate
    warmup = optax.linear_schedule(1 / config.warmup_steps, 1.0, config.warmup_steps - 1)
    return lambda step: rate(step) * warmup(step)


def _poly(config: OptimConfig, steps: int) -> optax.Schedule:
    """From lr to 0 as (1 - step / steps) ^ power: torch's `PolynomialLR`.

    Liu et al. 2015, arXiv:1506.04579.
    """
    return optax.polynomial_schedule(config.lr, 0.0, config.power, steps)


def _cosine(config: OptimConfig, steps: int) -> optax.Schedule:
    """Half a cosine from lr to lr * final_factor: torch's `CosineAnnealingLR`."""
    return optax.cosine_decay_schedule(config.lr, steps, alpha=config.final_factor)


def _constant(config: OptimConfig, steps: int) -> optax.Schedule:
    return optax.constant_schedule(config.lr)


def _one_cycle(config: OptimConfig, steps: int) -> optax.Schedule:
    """Half a cosine up and half a cosine down: torch's `OneCycleLR` without its momentum cycle.

    Smith and Topin 2017, arXiv:1708.07120. `optax.cosine_onecycle_schedule` rounds the peak down to
    a step, and reaches the last value one step after the end.
    """
    first = config.lr / config.div_factor
    last = first / config.final_div_factor
    peak, end = config.rise * steps - 1, steps - 1

    def cosine(start: float, stop: float, fraction: jax.Array) -> jax.Array:
        return stop + (start - stop) / 2 * (1 + jnp.cos(math.pi * jnp.clip(fraction, 0, 1)))

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        now = jnp.asarray(step, jnp.float32)
        falling = cosine(config.lr, last, (now - peak) / (end - peak))
        rising = cosine(first, config.lr, now / max(peak, 1e-6))
        return jnp.where(now <= peak, rising, falling)

    return rate


def _multi_step(config: OptimConfig, steps: int) -> optax.Schedule:
    """From lr on, multiplied by gamma at each milestone: torch's `MultiStepLR`.

    A milestone is a fraction of the run; it becomes the nearest step.
    """
    passed = collections.Counter(round(fraction * steps) for fraction in config.milestones)
    factors = {step: config.gamma**count for step, count in passed.items()}
    return optax.piecewise_constant_schedule(config.lr, factors)
