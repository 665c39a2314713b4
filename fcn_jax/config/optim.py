"""The section `optim` of a recipe."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fcn_jax.config.types import (
    NUMBER,
    AtLeastOne,
    BelowOne,
    Count,
    Flag,
    Fraction,
    NotNegative,
    Positive,
    Section,
    Share,
    StepCount,
)


def _globs(value: Any) -> Any:
    """Read true as a glob for all, false as none, and one glob as a list."""
    if isinstance(value, bool):
        return ["*"] if value else []
    return [value] if isinstance(value, str) else value


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    for i, (value, after) in enumerate(itertools.pairwise(values), start=1):
        if after <= value:
            raise ValueError(f"item [{i}] is not above item [{i - 1}]; expected rising fractions")
    return values


class ParamGroup(Section):
    """Learning rate and weight decay of the parameters whose names match a glob."""

    match: str
    """Glob over parameter names, such as head.final_conv.kernel or backbone.*."""
    lr_mult: NotNegative = 1.0
    """Learning rate multiplier; 0 freezes."""
    decay_mult: NotNegative = 1.0
    """Weight decay multiplier."""


class OptimConfig(Section):
    """The optimizer, its schedule, and how a step is computed."""

    name: Literal["sgd", "adam", "adamw", "lion", "muon"] = "sgd"
    """Optimizer. Muon trains kernels, and AdamW the scales and biases; learning rates and decays of
    AdamW fit it.
    """
    lr: Positive = 0.02
    """Peak learning rate."""
    momentum: BelowOne = 0.9
    """Momentum of SGD and Muon."""
    betas: tuple[BelowOne, BelowOne] | None = None
    """Betas of Adam, AdamW and Lion. If not set, 0.9 and 0.999, for Lion 0.9 and 0.99."""
    eps: Positive = 1e-8
    """Epsilon of Adam and AdamW."""
    weight_decay: NotNegative = 1e-4
    """Weight decay: added to the gradient for SGD and Adam, decoupled for the others, as in
    PyTorch.
    """
    decay_norm_and_bias: Flag = True
    """Apply the weight decay to parameters with one axis, too: scales of normalizations, biases and
    layer scales.
    """
    clip_norm: Positive | None = None
    """Largest global norm of the gradient; a larger one is scaled down to it. No clipping if not
    set.
    """
    clip_value: Positive | None = None
    """Largest absolute value in the gradient; larger ones are replaced by it. No clipping if not
    set.
    """
    schedule: Literal["poly", "cosine", "constant", "one_cycle", "multi_step"] = "poly"
    """Learning rate after s of S steps: poly is lr (1 - s/S)^power, cosine half a cosine from lr to
    lr * final_factor, one_cycle half a cosine up to lr and half a cosine down, multi_step lr *
    gamma^(milestones passed).
    """
    power: Positive = 0.9
    """Exponent of the poly schedule."""
    final_factor: Fraction = 0.0
    """Last learning rate of the cosine schedule, as a fraction of lr."""
    milestones: Annotated[tuple[Share, ...], AfterValidator(_ascending)] = ()
    """Milestones of the multi_step schedule, as rising fractions of the run, such as [0.6, 0.9]."""
    gamma: Positive = 0.1
    """Factor of the learning rate at each milestone."""
    rise: Share = 0.3
    """Fraction of the run in which the learning rate of one_cycle rises; PyTorch's pct_start."""
    div_factor: AtLeastOne = 25.0
    """one_cycle starts at lr / div_factor."""
    final_div_factor: AtLeastOne = 1e4
    """one_cycle ends at lr / div_factor / final_div_factor."""
    warmup_steps: StepCount = 0
    """Number of first steps in which the learning rate rises linearly to the schedule."""
    accumulate_steps: Count = 1
    """Parts in which a batch is computed, one after the other. Four or more take less memory."""
    remat: Literal[False, True, "blocks"] = False
    """What the backward pass computes again, which takes less memory: with true, normalizations and
    activations; with "blocks", all blocks of the backbone, of which only the inputs are kept. On
    CPUs it saves memory only with accumulate_steps.
    """
    aux_weight: NotNegative = 0.5
    """Weight of the auxiliary head's loss, if the model has such a head."""
    ema_decay: Share | None = None
    """Decay of averages of the weights over the steps, such as 0.999. They are evaluated, saved
    next to the raw weights, and used by eval, predict and export. No averages if not set.
    """
    ema_warmup: Flag = False
    """Use the decay min(ema_decay, (1 + t) / (10 + t)) after t steps."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0), NUMBER] | None = None
    """Layer-wise decay of the learning rate: that of layer i of the backbone's n layers, from 0, is
    multiplied by layer_decay^(n - i). A layer is a block, such as a residual block.
    """
    freeze: Annotated[tuple[str, ...], BeforeValidator(_globs)] = ()
    """Globs over names of parameters, or of modules around them, that are not trained, such as
    backbone.layer1. Statistics of batch normalization still change, see optim.freeze_batch_norm.
    """
    freeze_batch_norm: Annotated[tuple[str, ...], BeforeValidator(_globs)] = ()
    """Globs over names of batch normalizations, or of modules around them, that use their running
    statistics and do not change them, as in eval mode; true for all.
    """
    param_groups: tuple[ParamGroup, ...] = ()
    """Learning rate and weight decay by parameter name. The first group that matches a name
    decides.
    """
