"""A plugin's tie to its PyTorch original, held against both: names, layouts, outputs."""

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
    """Check that every table names every leaf once, and that each rule brings its values back bit for bit."""
    targets = leaves(nnx.eval_shape(lambda: subject.build(jnp.float32)))
    for tables in (
        bridge.tables(options),
        *([] if bridge.alone is None else [bridge.alone(options)]),
    ):
        require(
            "torchvision" in tables,
            f"{subject.label}: its tables are {listing(tables)}; the scheme 'torchvision' must be there",
        )
        for scheme, table in tables.items():
            _check_table(f"{subject.label}: the '{scheme}' table", table, targets)


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
            f"{where} turns '{path}' into '{name}', but that back into '{back and back[0]}'",
        )
        value = _random_like(leaf)
        there = np.asarray(rule.op.to_torch(value))
        here = np.asarray(rule.op.to_jax(there))
        require(
            here.shape == value.shape
            and here.dtype == value.dtype
            and here.tobytes() == value.tobytes(),
            f"{where}: '{rule.op.name}' does not bring '{path}' of shape {value.shape} back as it was",
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
    """Show that the plugin equals its PyTorch original, layer by layer, if there is one and torch is installed."""
    if bridge.reference is None or importlib.util.find_spec("torch") is None:
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = build(bridge.reference).eval()
    randomize_batch_norm(reference, seed=0)
    try:
        report = compare_modules(
            reference,
            subject.build(jnp.float32),
            bridge.tables(options)["torchvision"],
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
