"""Both sides of a comparison: given the same weights, put into train mode, restored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from fcn_jax.convert.load import import_leaves
from fcn_jax.convert.report import LoadReport
from fcn_jax.pytorch import files
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify.layers import match_layers
from fcn_jax.verify.ports import Port
from fcn_jax.verify.torch_side import TorchSide
from fcn_jax.verify.types import Call, Pair


def load_port(port: Port, tensors: Mapping[str, Any], table: Table) -> LoadReport:
    """Load a state dict into a JAX network by a table, all or nothing.

    Raises:
        WeightsError: all missing, surplus and misshapen names in one message.
    """
    leaves, report = import_leaves(port.leaves, port.name, tensors, table)
    port.load(leaves)
    return report


@contextlib.contextmanager
def paired(
    torch_module: Any,
    port: Port,
    table: Table,
    dtype: str,
    call_torch: Call | None = None,
    *,
    as_is: bool = False,
) -> Iterator[Pair]:
    """Both networks in eval mode without dropout. JAX's dropout is restored at the end."""
    with port.without_dropout():
        side = TorchSide(torch_module, dtype, call_torch or called, as_is=as_is)
        side.train(False)
        matched = match_layers(torch_module, port, table)
        yield Pair(side, port, table, dtype, matched)


@contextlib.contextmanager
def train_mode(pair: Pair) -> Iterator[None]:
    """Put PyTorch into train mode; restore its parameters and statistics at the end."""
    saved = [
        (network, {k: v.clone() for k, v in network.state_dict().items()})
        for network in pair.torch.networks()
    ]
    pair.torch.train(True)
    try:
        yield
    finally:
        for network, state in saved:
            network.load_state_dict(state)
            network.zero_grad(set_to_none=True)
        pair.torch.train(False)


@contextlib.contextmanager
def restored(port: Port) -> Iterator[None]:
    """Restore the values of all leaves at the end."""
    leaves = port.leaves
    try:
        yield
    finally:
        port.load(leaves)


def state_digest(network: Any) -> str:
    """SHA-256 of a PyTorch module's state dict."""
    return files.digest(files.tensors_of(network.state_dict(), "state dict"))


def called(module: Any, inputs: tuple[Any, ...]) -> Any:
    """The result of a module's call, if no other call is given."""
    return module(*inputs)
