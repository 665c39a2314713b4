"""Scores of the validation split during training, and sample pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from fcn_jax.config import Config
from fcn_jax.data.images.picture import as_rgb
from fcn_jax.data.source import Source
from fcn_jax.errors import WriteError
from fcn_jax.eval import draw
from fcn_jax.eval.evaluate import choose_multiple, require_images, score_each
from fcn_jax.eval.meter import Meter, check_metrics
from fcn_jax.eval.metrics import Scores
from fcn_jax.eval.predictor import Predictor
from fcn_jax.eval.protocols import choose
from fcn_jax.plugins.api import Example
from fcn_jax.train.signals import StopRequest
from fcn_jax.train.step import TrainState


@dataclasses.dataclass
class Validation:
    """Scores the states of a run on its validation split, by the protocol of its recipe.

    Attributes:
        graphdef: the model.
        random_keys: the part of the model's state that no step changes.
        source: the validation split.
        config: settings.
        run: run directory, to which pictures are written.
        say: prints a line.
    """

    graphdef: nnx.GraphDef
    random_keys: nnx.State
    source: Source
    config: Config
    run: Path
    say: Callable[[str], None]
    _predictor: Predictor | None = None
    _draws: bool = True

    def __post_init__(self) -> None:
        """Raises `ConfigError` if the section `eval` of the recipe is wrong."""
        self._protocol = choose(recipe=self.config)
        check_metrics(self.config.eval.metrics)

    def scores(self, number: int, state: TrainState, stop: StopRequest) -> Scores | None:
        """Score the state after step `number`, and draw the first images; None if stopped.

        If there are averages of the weights, they are scored.
        """
        values = state.params, state.batch_stats
        if self._predictor is None:
            multiple, note = choose_multiple(self.source, self._protocol)
            if note:
                self.say(f"val: {note}")
            model = nnx.merge(self.graphdef, *values, self.random_keys)
            self._predictor = Predictor(
                model,
                protocol=self._protocol,
                pad_to_multiple=multiple,
                batch_size=self.config.eval.batch_size,
                devices=jax.devices(),
            )
        self._predictor.update(*values, *([] if state.ema is None else [state.ema]))
        meter = Meter(len(self.source.classes), self.config.eval.metrics)
        workers = self.config.data.num_workers
        found = score_each(self._predictor, self.source, meter, workers=workers)
        images = 0
        with contextlib.closing(found) as examples:
            for index, (example, mask) in enumerate(examples):
                if index < self.config.train.num_visualizations:
                    self._draw(number, example, mask)
                if stop.signal:
                    return None
                images += 1
        require_images(images, len(self.source), self._protocol)
        return meter.scores()

    def _draw(self, number: int, example: Example, mask: np.ndarray) -> None:
        """Write a picture. The first failure is a warning; it does not end the training."""
        folder = self.run / "samples" / f"step_{number:07d}"
        picture = draw.panel(as_rgb(example.image), example.mask, mask, self.source.classes)
        try:
            draw.write_image(folder / f"{os.path.basename(example.id)}.png", picture)
        except (WriteError, OSError) as error:
            if self._draws:
                self.say(f"warning: {error}; the training goes on without sample pictures")
            self._draws = False
