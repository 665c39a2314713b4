"""Compare a plugin with its PyTorch reference: names, layouts, outputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.errors import FcnJaxError, listing
from fcn_jax.models.names import leaves
from fcn_jax.plugins.api import TorchBridge
from fcn_jax.plugins.testing.subject import Subject, require
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify.modules import compare_modules
from fcn_jax.verify.reference import randomize_batch_norm


def check_tables(subject: Subject, bridge: TorchBridge, options: Any) -> None:
    """Check that each table names every parameter once, and that its rules are invertible."""
    targets = leaves(nnx.eval_shape(lambda: subject.build(jnp.float32)))
    for standalone in (False, True):
        tables = bridge.tables_of(options, standalone=standalone)
        require(
            "torchvision" in tables,
            f"{subject.label}: it has tables for {listing(tables)}; a table for the key format "
            "'torchvision' is required",
        )
        for key_format, table in tables.items():
            _check_table(f"{subject.label}: the '{key_format}' table", table, targets)


def _check_table(where: str, table: Table, targets: Mapping[str, nnx.Variable[Any]]) -> None:
    owners: dict[str, str] = {}
    for path, leaf in targets.items():
        found = table.to_torch(path)
        if found is None:
            raise AssertionError(f"{where} has no rule for '{path}'")
        name, rule = found
        require(
            name not in owners,
            f"{where} gives both '{owners.get(name)}' and '{path}' the name '{name}'",
        )
        owners[name] = path
        back = table.to_jax(name)
        require(
            back == (path, rule),
            f"{where} maps '{path}' to '{name}', but '{name}' to '{back and back[0]}'",
        )
        value = _random_like(leaf)
        there = np.asarray(rule.op.to_torch(value))
        here = np.asarray(rule.op.to_jax(there))
        require(
            here.shape == value.shape
            and here.dtype == value.dtype
            and here.tobytes() == value.tobytes(),
            f"{where}: the operation '{rule.op.name}' is not inverted exactly for '{path}' of "
            f"shape {value.shape}",
        )


def _random_like(leaf: nnx.Variable[Any]) -> np.ndarray:
    rng = np.random.default_rng(0)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return rng.integers(0, 1000, leaf.shape).astype(leaf.dtype)
    return rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)


def check_reference(
    subject: Subject,
    bridge: TorchBridge,
    options: Any,
    inputs: Mapping[str, Any],
    build: Callable[[Any], Any],
    call: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]],
) -> None:
    """Check that the plugin equals its PyTorch reference, layer by layer.

    Without a reference, or without torch, nothing is checked.
    """
    if bridge.reference is None or importlib.util.find_spec("torch") is None:
        return
    import torch

    subject.start("PyTorch reference")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = build(bridge.reference).eval()
    randomize_batch_norm(reference, seed=0)
    try:
        report = compare_modules(
            reference,
            subject.build(jnp.float32),
            bridge.tables_of(options)["torchvision"],
            [x[:1] for x in inputs.values()],
            call_torch=lambda network, found: call(network, dict(zip(inputs, found, strict=True))),
            call_jax=lambda module, found: subject.call(
                module, dict(zip(inputs, found, strict=True))
            ),
            grad=False,
        )
    except FcnJaxError as error:
        raise AssertionError(f"{subject.label} against its PyTorch reference: {error}") from error
    require(report.equal, f"{subject.label} differs from its PyTorch reference: {report.failure}")
