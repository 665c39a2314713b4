"""Checkpoints on disk, by Orbax.

A checkpoint is a directory with the items `model` (parameters and batch statistics by dotted name)
and `spec` (what to build, for which classes). Those of a training run also hold `train` (optimizer
and step) and `data` (the input pipeline's position). Each appears whole or not at all. `files.json`
lists its files with their checksums, so that later damage is found; `score.json` is added by the
evaluation.
"""

from fcn_jax.checkpoint.files import METRIC, STEPS, is_evaluated
from fcn_jax.checkpoint.model import (
    arrays,
    fill,
    find,
    load,
    read_arrays,
    require_empty,
    save_model,
)
from fcn_jax.checkpoint.run import Checkpoints, Restored
from fcn_jax.checkpoint.spec import FORMAT, Spec, describe, latest_spec, read_spec

__all__ = [
    "FORMAT",
    "METRIC",
    "STEPS",
    "Checkpoints",
    "Restored",
    "Spec",
    "arrays",
    "describe",
    "fill",
    "find",
    "is_evaluated",
    "latest_spec",
    "load",
    "read_arrays",
    "read_spec",
    "require_empty",
    "save_model",
]
