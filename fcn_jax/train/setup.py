"""What a recipe trains: model, losses, optimizer and training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax
from flax import nnx

from fcn_jax.checkpoint import Spec
from fcn_jax.config import Config
from fcn_jax.convert.init import init_from
from fcn_jax.models.build import build
from fcn_jax.models.spec import resolve
from fcn_jax.plugins.api import Classes, LossContext, ModelSpec
from fcn_jax.train import groups, losses, optim
from fcn_jax.train import step as train_step
from fcn_jax.train.schedules import schedule
from fcn_jax.train.settings import for_classes, settings_at_fault
from fcn_jax.train.sharding import Placement


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a recipe trains, without the values.

    Attributes:
        spec: of the model, for the classes of the dataset.
        graphdef: the model in train mode.
        random_keys: the part of the model's state that no step changes.
        weights: record of the initial weights, or None; see `fcn_jax.convert.load.Init`.
        losses: the weighted sum of losses.
        rates: how each parameter is trained, by name.
        schedule: learning rate by step.
        notes: lines for the log.
    """

    spec: ModelSpec
    graphdef: nnx.GraphDef
    random_keys: nnx.State
    weights: Mapping[str, Any] | None
    losses: losses.Losses
    rates: Mapping[str, groups.Rate]
    schedule: optax.Schedule
    notes: tuple[str, ...]


def make(
    config: Config,
    classes: Classes,
    steps: int,
    pixels: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    earlier: Spec | None = None,
    *,
    blocks: bool | None = None,
    placement: Placement | None = None,
) -> tuple[Setup, train_step.TrainState, train_step.Step]:
    """Build the model, the losses, the optimizer and the training step of a recipe.

    State and step are not part of the `Setup`, so that the caller can let go of them: each step
    deletes the values of the state before, and JAX keeps a traced program as long as its function.

    Args:
        config: the recipe.
        classes: classes of the dataset.
        steps: length of the run, at least 1.
        pixels: numbers of pixels by class, for class weights from the data; see `LossContext`.
        earlier: spec of the checkpoint that a run is resumed from. Initial weights are not loaded,
            because their file need not exist any more, and losses keep their class weights.
        blocks: see `fcn_jax.train.step.make`.
        placement: see `fcn_jax.train.step.make`.

    Raises:
        ConfigError: settings do not fit together.
        WeightsError, PluginError: as their docstrings say.
    """
    spec = for_classes(config.model, classes)
    with settings_at_fault("the model cannot be built", config):
        model = build(spec, rngs=nnx.Rngs(config.train.seed))
    weights, init = None, config.init
    if init.weights and earlier is None:
        weights = init_from(model, init.weights, init.reinit, drop=init.drop, key=init.key)
    started = dataclasses.asdict(weights) if weights else None
    record = earlier.weights if earlier else started
    criterion = losses.build(
        losses.select(config.losses(), config.model.task),
        LossContext(len(classes), spec.task, *pixels),
        earlier.losses if earlier else None,
    )
    reinitialized = record["reinit"] if record else ()
    settings = groups.with_reinitialized(config.optim, reinitialized, init.reinit_lr_mult)
    with settings_at_fault("the optimizer cannot be made", config):
        layers = groups.backbone_layers(model) if settings.layer_decay is not None else {}
        rates = groups.assign(settings, nnx.state(model, nnx.Param), layers)
        state, step = train_step.make(
            model,
            optim.make(settings, steps, rates),
            resolve(spec).preprocess,
            losses=criterion,
            aux_weight=config.optim.aux_weight,
            accumulate_steps=config.optim.accumulate_steps,
            remat=config.optim.remat,
            blocks=blocks,
            ema_decay=config.optim.ema_decay,
            ema_warmup=config.optim.ema_warmup,
            frozen=groups.frozen_names(rates),
            freeze_batch_norm=settings.freeze_batch_norm,
            placement=placement,
        )
    notes = [f"initial weights: {weights}"] if weights else []
    notes += groups.notes(rates, layers, model)
    graphdef, *states = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    setup = Setup(
        spec,
        graphdef,
        states.pop(),
        record,
        criterion,
        rates,
        schedule(config.optim, steps),
        tuple(notes),
    )
    return setup, state, step
