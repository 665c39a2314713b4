"""yourname: a loss that is robust against wrong labels, as an example.

Generalized cross entropy: the mean over pixels of (1 - p^q) / q, with p the probability of the
label. Replace the function with your own. The descriptor at the end must stay true; the tests
compare it with the function.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
from pydantic import Field

from fcn_jax.api import IGNORE_INDEX, Loss, LossContext, MeanLoss


@dataclasses.dataclass(frozen=True)
class YournameOptions:
    """Options of yourname, which a recipe sets in `[loss.yourname]`.

    Attributes:
        q: 1 for the mean absolute error; near 0, the cross entropy.
    """

    q: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7


def _total(logits: jax.Array, labels: jax.Array, q: float) -> jax.Array:
    """The sum over all pixels that are not ignored.

    Args:
        logits: f32[N, H, W, K].
        labels: i32[N, H, W], 0 to K-1 or `IGNORE_INDEX`.
        q: the option.

    Returns:
        f32[].
    """
    valid = labels != IGNORE_INDEX
    chosen = jnp.where(valid, labels, 0)[..., None]
    logs = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, axis=-1)[..., 0]
    return jnp.where(valid, (1 - jnp.exp(q * logs)) / q, 0).sum()


def _pixels(labels: jax.Array) -> jax.Array:
    """The number by which the sum is divided. It follows from the labels alone."""
    return (labels != IGNORE_INDEX).sum()


def _build(options: YournameOptions, context: LossContext) -> MeanLoss:
    """A sum and its divisor. For a loss that is no mean, return a function of logits and labels."""
    return MeanLoss(functools.partial(_total, q=options.q), _pixels)


YOURNAME = Loss(
    name="yourname",
    summary="generalized cross entropy, for labels with errors",
    reference="Zhang and Sabuncu 2018, arXiv:1805.07836",
    options=YournameOptions,
    build=_build,
    api_version=(2, 1),
)
