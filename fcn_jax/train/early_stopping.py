"""The end of a run whose validation score no longer rises."""

from __future__ import annotations

import json
import math
from pathlib import Path

from fcn_jax import checkpoint
from fcn_jax.config import Config, EarlyStoppingConfig
from fcn_jax.eval.metrics import Scores


class EarlyStopping:
    """Counts the evaluations since the best score, as the callbacks of Keras and Lightning do.

    Attributes:
        best: best score so far; -inf before the first.
        best_step: step of the best score; 0 before the first.
        waited: evaluations since then.
    """

    def __init__(self, settings: EarlyStoppingConfig | None) -> None:
        """Start before the first evaluation. Without settings, the run never ends early."""
        self._settings = settings
        self.best, self.best_step, self.waited = -math.inf, 0, 0

    @classmethod
    def read(cls, config: Config, step: int, run: Path, store: Path) -> EarlyStopping:
        """Continue from the evaluations in a run's `metrics.jsonl`, up to those after `step`.

        The evaluation after `step` itself does not count if its checkpoint has no score, because it
        is done again. `store` holds the checkpoints: the run directory, or another place.
        """
        found = cls(config.train.early_stopping)
        if found._settings is None:
            return found
        last = step if checkpoint.is_evaluated(store, step) else step - 1
        try:
            text = (run / "metrics.jsonl").read_bytes().decode("utf-8", errors="replace")
        except OSError:
            return found
        for line in text.splitlines():
            try:
                record = json.loads(line)
                if record["event"] == "val" and record["step"] <= last:
                    found._add(record["step"], record[found._settings.metric])
            except (ValueError, KeyError, TypeError):
                continue  # a line that a kill cut off
        return found

    def add(self, step: int, scores: Scores) -> None:
        """Count an evaluation."""
        if self._settings is not None:
            self._add(step, getattr(scores, self._settings.metric))

    def _add(self, step: int, score: float | None) -> None:
        """Count a score; None and NaN are no rise."""
        assert self._settings is not None
        least = self.best + self._settings.min_delta if self.best_step else -math.inf
        if score is not None and score > least:
            self.best, self.best_step, self.waited = score, step, 0
        else:
            self.waited += 1

    @property
    def is_over(self) -> bool:
        """Whether the run ends."""
        return self._settings is not None and self.waited >= self._settings.patience

    def __str__(self) -> str:
        """The reason for the end, for the log."""
        if self._settings is None:
            return "no early stopping"
        delta = self._settings.min_delta
        rise = f" by more than {delta:g}" if delta else ""
        best = f"{self.best:.4f} after step {self.best_step}" if self.best_step else "none"
        metric, count = self._settings.metric, self.waited
        plural = "s" if count > 1 else ""
        return f"{metric} has not risen{rise} in {count} evaluation{plural} (best: {best})"
