"""The images of a run, and the settings that are decided by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.config import AUTO, Config
from fcn_jax.data import order, value_range
from fcn_jax.data.labels.remap import Remap
from fcn_jax.data.pipeline import TrainIterator, steps_per_epoch, train_batches
from fcn_jax.data.source import Source
from fcn_jax.data.splits import open_splits
from fcn_jax.data.training_set import training_set
from fcn_jax.data.transforms import Augment
from fcn_jax.plugins import registry
from fcn_jax.train import auto
from fcn_jax.train.settings import require_units


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The splits of a recipe, opened.

    Attributes:
        config: the recipe, with values instead of "auto".
        train: images to train on, without those that are left out.
        val: the validation split.
        value_range: how stored values are scaled.
        identity: of the training split, which a continued run must have; see `Splits`.
        pixels: numbers of pixels by class, for class weights from the data; see `LossContext`.
        notes: lines for the log.
    """

    config: Config
    train: Source
    val: Source
    value_range: value_range.Scaling
    identity: Mapping[str, Any]
    pixels: tuple[np.ndarray | None, np.ndarray | None]
    notes: tuple[str, ...]

    @property
    def epoch_steps(self) -> int:
        """Number of steps in an epoch."""
        return steps_per_epoch(self.train, self.config.data.batch_size)

    @property
    def order(self) -> dict[str, str | None]:
        """The order of the images; see `fcn_jax.data.order.fingerprint`."""
        train = self.config.train
        return order.fingerprint(len(self.train), self.config.data.batch_size, train.seed)

    @property
    def total_steps(self) -> int:
        """Number of steps in the run."""
        return self.epoch_steps * self.config.train.epochs

    @property
    def mask_channels(self) -> int | None:
        """Number of classes if masks have a channel for each (task "multilabel"), else None."""
        return len(self.train.classes) if self.config.model.task == "multilabel" else None

    def is_evaluated(self, step: int) -> bool:
        """Return whether the run is evaluated after a step."""
        every = self.epoch_steps * self.config.train.eval_every_epochs
        return step % every == 0 or step == self.total_steps

    def batches(self, rows: Sequence[int] | None = None) -> TrainIterator:
        """Return the training batches, from the first one of the run on; to be closed.

        `rows` are the images of each batch that this process reads; None for all.
        """
        data = self.config.data
        return train_batches(
            self.train,
            augment=Augment.of(data, self.config.augment),
            batch_size=data.batch_size,
            seed=self.config.train.seed,
            num_workers=data.num_workers,
            rows=rows,
        )


def open_inputs(config: Config, recorded: Any = None) -> Inputs:
    """Open the splits of a recipe.

    Args:
        config: the recipe.
        recorded: value range in a checkpoint of the run, if it is resumed; see
            `fcn_jax.data.value_range.to_json`.

    Raises:
        ConfigError: a setting does not fit the data.
        DataError, PluginError: as their docstrings say.
    """
    dataset = registry.default().dataset(config.data.dataset)
    config, decided = auto.find_classes(config, dataset)
    data = config.data
    opened = open_splits(
        dataset,
        Path(data.root) if data.root else None,
        (data.train_split, data.val_split),
        classes=data.classes,
        value_range=data.value_range or value_range.from_json(recorded),
        channels=config.model.in_channels,
        keep_stored=config.model.mean is not None,
        damaged=data.damaged,
        remap=Remap.of(data),
        task=config.model.task,
    )
    if config.model.std != AUTO:
        require_units(config.model, opened.value_range)
    config, more_decided = auto.decide(config, opened)
    data = config.data
    train, left_out = training_set(
        opened.sources[data.train_split],
        data.crop_size,
        drop_small=data.drop_small,
        void_as_background=data.void_as_background,
    )
    return Inputs(
        config,
        train,
        opened.sources[data.val_split],
        opened.value_range,
        opened.identity,
        (opened.class_pixels, opened.image_pixels),
        (*decided, *opened.notes, *more_decided, *left_out),
    )
