"""Compare a plugin with its PyTorch reference: names, layouts, outputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from fcn_jax.errors import FcnJaxError, listing
from fcn_jax.models.names import leaves
from fcn_jax.plugins.api import TorchBridge
from fcn_jax.plugins.testing.subject import Network, Subject
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify.modules import compare
from fcn_jax.verify.randomize import randomize
from fcn_jax.verify.torch_side import to_nchw


def check_bridge(
    network: Network,
    bridge: TorchBridge | None,
    inputs: Sequence[np.ndarray],
    call: Callable[[Any, Sequence[Any]], Mapping[str, Any]],
    *,
    options: Any,
    **settings: Any,
) -> None:
    """Check the tables, and that the plugin equals its PyTorch reference, layer by layer.

    Without a reference, or without torch, only the tables are checked.

    Args:
        network: the plugin's network.
        bridge: from its descriptor.
        inputs: inputs of the network; the first image of each is used.
        call: (reference, inputs) -> outputs by name.
        options: the plugin's validated options.
        settings: the other arguments of `bridge.reference`.
    """
    if bridge is None:
        return
    check_tables(network, bridge, options)
    if bridge.reference is None or importlib.util.find_spec("torch") is None:
        return
    import torch

    network.subject.start("PyTorch reference")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = bridge.reference(options=options, **settings).eval()
    tensors = tuple(torch.from_numpy(to_nchw(x[:1]).copy()) for x in inputs)
    try:
        randomize(reference, seed=0, run=lambda network: call(network, tensors))
        report = compare(
            reference,
            network.build(),
            [x[:1] for x in inputs],
            rules=bridge.tables_of(options)["torchvision"],
            layout="NHWC",
            call_torch=call,
            call_jax=network.call,
            grad=False,
            sensitive=False,
        )
    except FcnJaxError as error:
        network.subject.fail(f"against its PyTorch reference: {error}")
    if not report.equal:
        network.subject.fail(f"it differs from its PyTorch reference: {report.failure}")


def check_tables(network: Network, bridge: TorchBridge, options: Any) -> None:
    """Check that each table names every parameter once, and that its rules are invertible."""
    targets = leaves(nnx.eval_shape(network.build))
    for standalone in (False, True):
        tables = bridge.tables_of(options, standalone=standalone)
        if "torchvision" not in tables:
            network.subject.fail(
                f"it has tables for {listing(tables)}; a table for the key format 'torchvision' is "
                "required"
            )
        for key_format, table in tables.items():
            _check_table(network.subject.part(f": the '{key_format}' table"), table, targets)


def _check_table(subject: Subject, table: Table, targets: Mapping[str, nnx.Variable[Any]]) -> None:
    owners: dict[str, str] = {}
    rng = np.random.default_rng(0)
    for path, leaf in targets.items():
        found = table.to_torch(path)
        if found is None:
            subject.fail(f"it has no rule for '{path}'")
        name, rule = found
        if name in owners:
            subject.fail(f"it gives both '{owners.get(name)}' and '{path}' the name '{name}'")
        owners[name] = path
        back = table.to_jax(name)
        if back != (path, rule):
            subject.fail(f"it maps '{path}' to '{name}', but '{name}' to '{back and back[0]}'")
        value = np.asarray(1000 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
        here = np.asarray(rule.op.to_jax(np.asarray(rule.op.to_torch(value))))
        if (here.shape, here.dtype, here.tobytes()) != (value.shape, value.dtype, value.tobytes()):
            subject.fail(
                f"the operation '{rule.op.name}' is not inverted exactly for '{path}' of shape "
                f"{value.shape}"
            )
