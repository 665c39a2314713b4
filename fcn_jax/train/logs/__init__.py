"""Scalars, pictures and histograms of a run, for TensorBoard and Weights & Biases.

The training loop knows neither of them: it passes its records, pictures and parameters to `Logs`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from flax import nnx

from fcn_jax.config import Config, LogConfig
from fcn_jax.errors import ConfigError
from fcn_jax.models.names import named
from fcn_jax.runtime import distributed
from fcn_jax.train.ending import gist


class Logger(Protocol):
    """One destination. A resumed run never writes the same tags of a step twice."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write finite numbers by tag, such as "train/loss"; a call has tags of one kind."""

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write pictures u8[H,W,3] by tag."""

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Write the distribution of finite values f32[N], N at least 1, by tag."""

    def close(self, *, failed: bool) -> None:
        """Write what is left; `failed` if an error ends the run."""


class Logs:
    """All destinations of a run. A context manager.

    An error of one destination is a warning: the training goes on without it.
    """

    def __init__(self, loggers: Mapping[str, Logger], say: Callable[[str], None]) -> None:
        """Store destinations by their names, and the function that prints a line."""
        self._loggers, self._say = dict(loggers), say

    def record(self, record: Mapping[str, Any]) -> None:
        """Write the scalars of a record of `metrics.jsonl`."""
        if values := scalars_of(record):
            self._call(lambda logger: logger.scalars(record["step"], values))

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write pictures u8[H,W,3] of validation images, by the images' ids."""
        if pictures:
            tagged = {f"samples/{name}": picture for name, picture in pictures.items()}
            self._call(lambda logger: logger.images(step, tagged))

    def histograms(self, step: int, params: nnx.State) -> None:
        """Write the distributions of parameters."""
        if not self._loggers:
            return
        arrays = {name: np.asarray(leaf[...]).ravel() for name, leaf in named(params).items()}
        finite = {f"parameters/{name}": a[np.isfinite(a)] for name, a in arrays.items()}
        values = {tag: a for tag, a in finite.items() if a.size}
        self._call(lambda logger: logger.histograms(step, values))

    def __enter__(self) -> Logs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call(lambda logger: logger.close(failed=kind is not None))

    def _call(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # clients of services raise many types
                del self._loggers[name]
                self._say(f"warning: {name}: {gist(error)}; the training goes on without it")


_BY_NAME = ("losses", "iou", "boundary_iou")
"""Tables of a record whose items are scalars: by loss, or by class."""

_ABOUT_DATA = ("step", "event", "classes", "classes_scored", "ignored_share")


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a training or validation record by tag.

    Args:
        record: an object of `metrics.jsonl`.

    Returns:
        Such as {"train/loss": 0.7, "train/losses/dice": 0.2} or {"val/iou/car": 0.8}.
    """
    kind, found = record["event"], {}
    if kind not in ("train", "val"):
        return {}
    for key, value in record.items():
        if key in _BY_NAME:
            found.update({f"{kind}/{key}/{name}": item for name, item in value.items()})
        elif key not in _ABOUT_DATA:
            found[f"{kind}/{key}"] = value
    return {
        tag: float(value)
        for tag, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def require_installed(config: LogConfig) -> None:
    """Raise `ConfigError` if a package that the section `log` needs is not installed."""
    needed = [
        ("log.tensorboard", config.tensorboard, "tensorboardX", "fcn-jax[tensorboard]"),
        ("log.wandb", config.wandb is not None, "wandb", "wandb"),
    ]
    problems = [
        f"{setting} needs the package {package}, which is not installed: pip install "
        f"'{install}', or leave the setting out"
        for setting, used, package, install in needed
        if used and not _is_installed(package)
    ]
    if config.histograms_every_steps and not (config.tensorboard or config.wandb):
        problems.append(
            "log.histograms_every_steps: given without log.tensorboard or log.wandb, which show "
            "histograms; set one, such as log.tensorboard=true"
        )
    if problems:
        raise ConfigError("; ".join(problems))


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    # A folder of that name, such as the `wandb` folder of earlier runs, is not the package.
    return spec is not None and spec.origin is not None


def start(
    config: Config, run: Path, step: int, *, evaluate_again: bool, say: Callable[[str], None]
) -> Logs:
    """Open the destinations of a run that continues after a step; none but in the first process.

    Args:
        config: settings of the run.
        run: run directory.
        step: number of steps taken; what was written about later ones is not kept.
        evaluate_again: the evaluation of that step is done again.
        say: prints a line.

    Raises:
        ConfigError: Weights & Biases cannot be used, for example because nobody is logged in.
        WriteError: the event files of TensorBoard cannot be written.
    """
    loggers: dict[str, Logger] = {}
    if not distributed.is_first():
        return Logs(loggers, say)
    # Imported only here: both are optional.
    if config.log.wandb is not None:
        from fcn_jax.train.logs.wandb import WandbRun

        loggers["Weights & Biases"] = WandbRun(config, run)
    if config.log.tensorboard:
        from fcn_jax.train.logs.tensorboard import EventFiles

        loggers["TensorBoard"] = EventFiles(run / "tensorboard", step, evaluate_again)
    return Logs(loggers, say)
