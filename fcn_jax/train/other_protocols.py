"""Scores of the validation split by further protocols during training (`eval.also`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from fcn_jax.config import Config
from fcn_jax.data.source import Source
from fcn_jax.eval.evaluate import add_up, choose_multiple, require_images, score_each
from fcn_jax.eval.meter import Meter
from fcn_jax.eval.metrics import Scores
from fcn_jax.eval.predictor import Predictor
from fcn_jax.eval.protocols import Protocol
from fcn_jax.train.processes import on_this_process
from fcn_jax.train.settings import protocols
from fcn_jax.train.signals import StopRequest
from fcn_jax.train.step import TrainState


class OtherProtocols:
    """Scores the states of a run by the protocols of `eval.also`."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        random_keys: nnx.State,
        source: Source,
        config: Config,
        say: Callable[[str], None],
    ) -> None:
        """Prepare; nothing is computed if the recipe names no such protocol.

        Args:
            graphdef: the model.
            random_keys: the part of the model's state that no step changes.
            source: the validation split.
            config: settings.
            say: prints a line.
        """
        self._model, self._random_keys = graphdef, random_keys
        self._source, self._config, self._say = source, config, say
        self._protocols = dict(zip(config.eval.also, protocols(config)[1:], strict=True))
        self._predictors: dict[str, Predictor] = {}

    def scores(self, state: TrainState, stop: StopRequest) -> dict[str, Scores] | None:
        """Score a state by each protocol, by its name; None if stopped.

        If there are averages of the weights, they are scored.
        """
        values = on_this_process((state.params, state.batch_stats))
        average = on_this_process(state.ema)
        found = {}
        for name, protocol in self._protocols.items():
            if name not in self._predictors:
                self._predictors[name] = self._predictor(protocol, *values)
            predictor = self._predictors[name]
            predictor.update(*values, *([] if average is None else [average]))
            meter = Meter(len(self._source.classes), self._config.eval.metrics)
            workers, images = self._config.data.num_workers, 0
            with contextlib.closing(
                score_each(predictor, self._source, meter, workers=workers)
            ) as examples:
                for _ in examples:
                    images += 1
                    if stop.signal:
                        break
            total = add_up(meter, images, protocol, stopped=stop.signal is not None)
            if total is None:
                return None
            require_images(total, len(self._source), protocol)
            found[name] = meter.scores()
        return found

    def to_dict(self, scores: Mapping[str, Scores]) -> dict[str, Any]:
        """The scores by name, JSON-able."""
        return {name: found.to_dict(self._source.classes) for name, found in scores.items()}

    def _predictor(self, protocol: Protocol, *values: nnx.State) -> Predictor:
        multiple, note = choose_multiple(self._source, protocol)
        if note:
            self._say(f"val by {protocol.name}: {note}")
        return Predictor(
            nnx.merge(self._model, *values, self._random_keys),
            protocol=protocol,
            pad_to_multiple=multiple,
            batch_size=self._config.eval.batch_size,
            devices=jax.local_devices(),
        )
