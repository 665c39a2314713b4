"""Weights & Biases: https://docs.wandb.ai/ref/python."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.config import Config
from fcn_jax.errors import ConfigError
from fcn_jax.runtime import atomic
from fcn_jax.train.ending import gist


class WandbRun:
    """A run of Weights & Biases; a `Logger`.

    What was sent cannot be taken back. A resumed run computes the same values again, bit for bit,
    and sends only those after the last ones that were sent. `wandb.json` in the run directory has
    the run's id and, for each kind of tag, the last step that was sent.
    """

    def __init__(self, config: Config, run: Path) -> None:
        """Begin or continue the run. Its step is the value "step", not W&B's own counter.

        Raises:
            ConfigError: Weights & Biases refuses, for example because nobody is logged in.
        """
        import wandb

        settings = config.log.wandb
        assert settings is not None
        self._wandb, self._path = wandb, run / "wandb.json"
        self._sent: dict[str, int] = {}
        identifier = secrets.token_hex(4)
        try:
            stored = json.loads(self._path.read_text("utf-8"))
            identifier, self._sent = stored["id"], stored["sent"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the run is new here
        self._id = identifier
        try:
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                name=settings.name or run.absolute().name,
                group=settings.group,
                tags=list(settings.tags),
                id=identifier,
                resume="allow",
                dir=str(run.absolute()),
                config=config.model_dump(mode="json"),
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:
            raise ConfigError(
                f"log.wandb: {gist(error)} (log in with `wandb login`, set WANDB_MODE=offline to "
                "keep the run here, or leave the setting out)"
            ) from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        self._send(step, values)

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """See `Logger`."""
        self._send(step, {tag: self._wandb.Image(array) for tag, array in pictures.items()})

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """See `Logger`."""
        self._send(step, {tag: self._wandb.Histogram(array) for tag, array in values.items()})

    def close(self, *, failed: bool) -> None:
        """See `Logger`."""
        self._run.finish(exit_code=int(failed))

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        kind = next(iter(values)).partition("/")[0]
        if step <= self._sent.get(kind, -1):
            return
        self._sent[kind] = step
        atomic.write_json(self._path, {"id": self._id, "sent": self._sent})
        self._run.log({"step": step, **values})
