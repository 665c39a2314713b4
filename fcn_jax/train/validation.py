"""Scores of the validation split during training, and sample pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.config import Config
from fcn_jax.data.images.picture import as_rgb
from fcn_jax.data.source import Source
from fcn_jax.errors import WriteError
from fcn_jax.eval import draw, stored
from fcn_jax.eval.evaluate import add_up, choose_multiple, require_images, score_each
from fcn_jax.eval.evaluation import Evaluation
from fcn_jax.eval.meter import Meter, check_metrics
from fcn_jax.eval.metrics import Scores
from fcn_jax.eval.predictor import Predictor
from fcn_jax.eval.protocols import choose
from fcn_jax.plugins.api import Example
from fcn_jax.runtime import distributed
from fcn_jax.train.logs import Logs
from fcn_jax.train.processes import on_this_process
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
        logs: receives the pictures.
    """

    graphdef: nnx.GraphDef
    random_keys: nnx.State
    source: Source
    config: Config
    run: Path
    say: Callable[[str], None]
    logs: Logs
    _predictor: Predictor | None = None
    _writes: bool = True

    def __post_init__(self) -> None:
        """Raises `ConfigError` if the section `eval` of the recipe is wrong."""
        self._protocol = choose(recipe=self.config)
        check_metrics(self.config.eval.metrics)
        earlier = (table for folder, table in stored.read(self.run) if folder == self._folder)
        self._best = max((table["miou"] or 0.0 for table in earlier), default=-math.inf)

    @property
    def _folder(self) -> Path:
        """The folder of the best evaluation."""
        return self.run / stored.FOLDER / stored.TRAINING

    def scores(self, number: int, state: TrainState, stop: StopRequest) -> Scores | None:
        """Score the state after step `number`, and draw the first images; None if stopped.

        All processes call it, and all return the same. If there are averages of the weights, they
        are scored.
        """
        values = on_this_process((state.params, state.batch_stats))
        average = on_this_process(state.ema)
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
                devices=jax.local_devices(),
            )
        self._predictor.update(*values, *([] if average is None else [average]))
        task = self.config.model.task
        meter = Meter(len(self.source.classes), self.config.eval.metrics, task)
        workers = self.config.data.num_workers
        found = score_each(self._predictor, self.source, meter, workers=workers)
        images, each, pictures = 0, stored.ImageScores(), {}
        with contextlib.closing(found) as examples:
            for index, (example, mask) in enumerate(examples):
                each.add(example, mask)
                # The first process has the first images.
                if index < self.config.train.num_visualizations and distributed.is_first():
                    pictures[example.id] = self._draw(number, example, mask)
                images += 1
                if stop.signal:
                    break
        total = add_up(meter, images, self._protocol, stopped=stop.signal is not None)
        if total is None:
            return None
        require_images(total, len(self.source), self._protocol)
        scores = meter.scores()
        self.logs.images(number, pictures)
        self._keep_best(number, scores, each, total, "raw" if state.ema is None else "ema")
        return scores

    def _keep_best(
        self, number: int, scores: Scores, each: stored.ImageScores, images: int, weights: str
    ) -> None:
        """Store the evaluation, with its pictures, if none was better."""
        miou = 0.0 if math.isnan(scores.miou) else scores.miou
        if miou < self._best:
            return
        self._best = miou
        if self._protocol.by_image:
            each.gather()
        if not distributed.is_first():
            return
        evaluation = Evaluation(
            checkpoint=Path(self.config.train.checkpoint_dir or self.run)
            / checkpoint.STEPS
            / str(number),
            dataset=self.config.data.dataset,
            split=self.config.data.val_split,
            images=images,
            classes=self.source.classes,
            scores=scores,
            protocol=self._protocol,
            notes=scores.notes(self.source.classes),
            weights=weights,
            images_skipped=len(self.source) - images,
        )
        with self._warning("the best evaluation in its directory"):
            each.store(self._folder, evaluation)

    def _draw(self, number: int, example: Example, mask: np.ndarray) -> np.ndarray:
        """Write a picture, and return it."""
        folder = self.run / "samples" / f"step_{number:07d}"
        picture = draw.panel(as_rgb(example.image), example.mask, mask, self.source.classes)
        with self._warning("sample pictures"):
            draw.write_image(folder / f"{os.path.basename(example.id)}.png", picture)
        return picture

    @contextlib.contextmanager
    def _warning(self, what: str) -> Iterator[None]:
        """Turn a failure of the block into a warning. Later ones are not reported."""
        try:
            yield
        except (WriteError, OSError) as error:
            if self._writes:
                self.say(f"warning: {error}; the training goes on without {what}")
            self._writes = False
