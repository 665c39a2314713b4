"""Checkpoints on disk, written and read with Orbax.

A checkpoint is a directory with the items `model` (parameters and batch statistics by dotted name)
and `spec` (the model to build and its classes). The checkpoints of a training run also hold `train`
(optimizer state and step), `data` (position of the input pipeline) and, with `optim.ema_decay`,
`ema` (averages of the weights). A checkpoint gets its final name only when it is complete.
`files.json` lists its files with their checksums, to detect later damage. The evaluation adds
`score.json`, and `fcn-jax convert --verify` adds `verify.json`.
"""

from fcn_jax.checkpoint.files import EVIDENCE, STEPS, Retention, is_evaluated
from fcn_jax.checkpoint.model import (
    arrays,
    choose_weights,
    find,
    load_model,
    load_module,
    read_arrays,
    require_empty,
    save_model,
)
from fcn_jax.checkpoint.run import Checkpoints
from fcn_jax.checkpoint.spec import FormatError, Spec, latest_spec, make_spec, read_spec

__all__ = [
    "EVIDENCE",
    "STEPS",
    "Checkpoints",
    "FormatError",
    "Retention",
    "Spec",
    "arrays",
    "choose_weights",
    "find",
    "is_evaluated",
    "latest_spec",
    "load_model",
    "load_module",
    "make_spec",
    "read_arrays",
    "read_spec",
    "require_empty",
    "save_model",
]
